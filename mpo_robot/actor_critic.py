"""`ActorCritic`: what every off-policy learner here shares. Optimisers, target networks, checkpoints.

A subclass gives the losses (`backward`), the names of its metrics and the way its policy acts. `learners.make_learner`
chooses the subclass. Axes: B sequences, L steps, O observation size, A action size.
"""

from __future__ import annotations

import abc
import copy
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mpo_robot.acting import FloatArray, SampledAction
from mpo_robot.errors import DivergenceError
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.networks import flat_gradient, flatten_parameters
from mpo_robot.replay import SequenceBatch


class TensorBatch(NamedTuple):
    """A `SequenceBatch` as tensors that share its memory."""

    observation: Tensor  # [B, L + 1, O] normalised
    action: Tensor  # [B, L, A] as sampled
    reward: Tensor  # [B, L]
    terminated: Tensor  # [B, L]
    behavior_log_prob: Tensor  # [B, L]
    trace_valid: Tensor  # [B, L]
    is_transition: Tensor  # [B, L]
    policy_state: Tensor  # [B, L + 1]

    @staticmethod
    def of(batch: SequenceBatch, reward_scale: float = 1.0) -> TensorBatch:
        """Tensors over the arrays' memory, with rewards divided by `reward_scale`: in the critic's unit."""
        tensors = TensorBatch(*(torch.from_numpy(array) for array in batch))
        return tensors._replace(reward=tensors.reward / reward_scale)

    def before(self, values: Tensor) -> Tensor:
        """[S, ...] of all states to [B, L, ...]: those before each step."""
        return values.unflatten(0, self.policy_state.shape)[:, :-1]

    def after(self, values: Tensor) -> Tensor:
        """[S, ...] of all states to [B, L, ...]: those after each step."""
        return values.unflatten(0, self.policy_state.shape)[:, 1:]


class ValueMetrics(NamedTuple):
    """Metrics that every learner has, in units of reward."""

    q_mean: float
    q_min: float
    q_max: float
    return_target_mean: float
    trace_coefficient_mean: float


class Actor(Protocol):
    """How a policy acts in the training loop, on one normalised observation [O] at a time."""

    def distribution(self, observation: FloatArray) -> tuple[FloatArray, Any]:
        """The action [A] of evaluations (mean or most probable), and what else describes the policy there."""
        ...

    def sample(self, observation: FloatArray, noise: FloatArray, noise_scale: float = 1.0) -> SampledAction:
        """Action made of standard-normal `noise` [A], as the replay stores it, and its exact log density in nats.

        `noise_scale` multiplies the standard deviation.
        """
        ...


class ActorCritic(abc.ABC):
    """Policy, critic and dual variables in training.

    Inputs are batches with observations already normalised and rewards in reward units.

    Attributes:
        metric_names: Fields of what `update` returns, the same for the whole run.
        online_policy: Network that acts.
        averaged_policy: Network that is evaluated and exported: the online one averaged over
            `LearnerConfig.policy_average_updates`, or itself.

    Args:
        config: Learning rates, gradient bound and the refresh of the target networks.
        policy: Network that acts.
        critic: Value networks.
        duals: Temperatures and multipliers; may have no parameters.
        seed: Seeds the sampling of actions.
    """

    metric_names: ClassVar[tuple[str, ...]]
    online_policy: nn.Module

    def __init__(self, config: LearnerConfig, policy: nn.Module, critic: nn.Module, duals: nn.Module, seed: int):
        self.config = config
        self._target_modules = {
            "policy": copy.deepcopy(policy).requires_grad_(False),
            "critic": copy.deepcopy(critic).requires_grad_(False),
        }
        online = {"policy": policy, "critic": critic, "duals": duals}
        self._online = {name: flatten_parameters(item) for name, item in online.items() if list(item.parameters())}
        self._targets = {name: flatten_parameters(module) for name, module in self._target_modules.items()}
        self.averaged_policy, self._averages = policy, {}
        if config.policy_average_updates is not None:
            self.averaged_policy = copy.deepcopy(policy).requires_grad_(False)
            self._averages = {"averaged_policy": flatten_parameters(self.averaged_policy)}
        self._rates = {
            "policy": config.learning_rate_policy,
            "critic": config.learning_rate_critic,
            "duals": config.learning_rate_duals,
        }
        self._rate_ends = {
            "policy": config.learning_rate_end,
            "critic": config.learning_rate_end_critic,
            "duals": 1.0,
        }
        self.optimizers = {
            name: torch.optim.Adam([flat], lr=self._rates[name], fused=True) for name, flat in self._online.items()
        }
        self.generator = torch.Generator().manual_seed(seed)
        self.learner_steps = 0
        self._average_start = 0  # learner step from which on the policies are averaged

    @abc.abstractmethod
    def make_actor(self, policy: Any) -> Actor:
        """One of the learner's policies in NumPy; it shares the parameters, so it always acts with the newest ones."""

    def actor(self) -> Actor:
        """The online policy, which collects."""
        return self.make_actor(self.online_policy)

    def averaged_actor(self) -> Actor:
        """The policy that is evaluated and exported."""
        return self.make_actor(self.averaged_policy)

    def exported_policy(self) -> nn.Module:
        """The network that `export_policy` writes: normalised observations to mean and stddev, or to logits."""
        return self.averaged_policy

    @property
    def improves_policy(self) -> bool:
        """Whether the next update is one of policy and duals too (`LearnerConfig.policy_update_period`)."""
        return self.learner_steps % self.config.policy_update_period == 0

    @abc.abstractmethod
    def backward(self, batch: SequenceBatch, reward_scale: float = 1.0, want_metrics: bool = False) -> Any:
        """First half of `update`: all losses, and their gradients in the parameters' `grad`.

        Those of policy and duals are not used unless `improves_policy`.
        """

    def update(self, batch: SequenceBatch, reward_scale: float = 1.0, want_metrics: bool = False) -> Any:
        """One gradient step of critics, and if it is due of policy and duals, then the target networks.

        Args:
            batch: Sequences with normalised observations.
            reward_scale: Rewards are divided by it for the critic.
            want_metrics: Return metrics (costs a few tenths of a millisecond), else None.

        Raises:
            DivergenceError: a loss is not finite; the parameters are then still those from before.
        """
        duals = self._online.get("duals")
        before = None if duals is None else duals.clone()
        try:
            metrics = self.backward(batch, reward_scale, want_metrics)
        except DivergenceError:
            if duals is not None and before is not None:
                duals.copy_(before)  # an exact temperature is written before the losses are known
            raise
        self._step()
        return metrics

    def require_finite(self, loss: Tensor) -> None:
        """Raise DivergenceError for a loss that is not finite."""
        if not torch.isfinite(loss):
            raise DivergenceError(
                f"the loss is {loss.item()} at learner step {self.learner_steps}, and nothing was learnt from it. Look "
                "for observations and rewards of enormous size; otherwise lower learner.learning_rate_critic and "
                "learner.learning_rate_policy. The checkpoints are from before"
            )

    @staticmethod
    def state_weights(batch: TensorBatch) -> Tensor:
        """[S] weights of the states in which a policy acts, sum 1."""
        weights = batch.policy_state.flatten()
        return weights / weights.sum()

    @staticmethod
    def transition_mean(batch: TensorBatch, values: Tensor) -> Tensor:
        """Mean of [B, L] over the rows that are transitions."""
        return (batch.is_transition * values).sum() / batch.is_transition.sum().clamp(min=1.0)

    def value_metrics(
        self, batch: TensorBatch, q_values: Tensor, returns: Tensor, coefficients: Tensor, reward_scale: float
    ) -> ValueMetrics:
        """Summary of target values, of the critic's targets [B, L] and of the trace coefficients [B, L]."""
        return ValueMetrics(
            q_mean=float(q_values.mean()) * reward_scale,
            q_min=float(q_values.min()) * reward_scale,
            q_max=float(q_values.max()) * reward_scale,
            return_target_mean=float(self.transition_mean(batch, returns)) * reward_scale,
            trace_coefficient_mean=float(self.transition_mean(batch, coefficients)),
        )

    def project(self) -> None:
        """Bring dual variables back into their range; called after each optimiser step."""
        return

    def _rate(self, name: str) -> float:
        """Learning rate of an optimiser at this learner step."""
        config = self.config
        if not isinstance(config.learning_rate_decay_steps, int):  # null, or auto outside a training
            return self._rates[name]
        progress = min(1.0, self.learner_steps / config.learning_rate_decay_steps)
        return self._rates[name] * (1.0 - (1.0 - self._rate_ends[name]) * progress)

    @torch.no_grad()
    def _step(self) -> None:
        due = list(self.optimizers) if self.improves_policy else ["critic"]
        if self.config.grad_clip_norm is not None:
            for name in (name for name in due if name != "duals"):
                gradient = flat_gradient(self._online[name])
                norm = torch.linalg.vector_norm(gradient)
                gradient.mul_((self.config.grad_clip_norm / (norm + 1e-6)).clamp(max=1.0))
        for name in due:
            self.optimizers[name].param_groups[0]["lr"] = self._rate(name)
            self.optimizers[name].step()
        for flat in self._online.values():
            flat_gradient(flat).zero_()
        self.project()
        self.learner_steps += 1
        rate, period = self.config.target_update_rate, self.config.target_update_period
        if rate is not None:
            for name, target in self._targets.items():
                target.lerp_(self._online[name], rate)
        elif period is not None and self.learner_steps % period == 0:
            for name, target in self._targets.items():
                target.copy_(self._online[name])
        if (updates := self.config.policy_average_updates) is not None:
            window = min(updates, max(1, (self.learner_steps - self._average_start) // 10))
            self._averages["averaged_policy"].lerp_(self._online["policy"], 1.0 / window)

    def restart_average(self) -> None:
        """Average the policies from the next update on, as at the start of a training: older ones no longer count."""
        self._average_start = self.learner_steps

    @property
    def flat(self) -> dict[str, Tensor]:
        """All parameters, one flat tensor each: `policy`, `critic`, `duals`, `target_...` and `averaged_policy`."""
        return self._online | {f"target_{name}": flat for name, flat in self._targets.items()} | self._averages

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and containers only (loadable with `weights_only=True`)."""
        return {name: flat.clone() for name, flat in self.flat.items()} | {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "generator": self.generator.get_state(),
            "learner_steps": self.learner_steps,
            "average_start": self._average_start,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` exactly.

        Raises:
            ValueError: the state belongs to networks of another size.
        """
        flats = self.flat
        state = {"averaged_policy": state.get("policy")} | state  # an older checkpoint has no average
        for name, flat in flats.items():
            if name not in state or flat.shape != state[name].shape:
                found = state[name].numel() if name in state else 0
                raise ValueError(f"{name} has {flat.numel()} parameters here, {found} in the checkpoint")
        for name, flat in flats.items():
            flat.copy_(state[name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.generator.set_state(state["generator"])
        self.learner_steps = int(state["learner_steps"])
        self._average_start = int(state.get("average_start", 0))
        self.project()  # the state may come from other settings
