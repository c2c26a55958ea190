"""The MPO learner for discrete actions: one update from one batch of sequences. No action is sampled.

Expectations over the policy are sums over its K actions: of Q in the Retrace target, and of the weights in the E-step.
Axes: B sequences, L steps, S = B * (L + 1) states, K actions.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from mpo_robot.actor_critic import ActorCritic, TensorBatch
from mpo_robot.categorical_acting import CategoricalActor
from mpo_robot.categorical_config import CategoricalConfig
from mpo_robot.categorical_networks import CategoricalCritics, CategoricalPolicy, Interface
from mpo_robot.duals import MIN_RAW_ALPHA, MIN_RAW_TEMPERATURE, positive, raw_of
from mpo_robot.losses import categorical_policy as losses
from mpo_robot.losses.categorical_policy import CategoricalEStep
from mpo_robot.losses.constraint import bound, price
from mpo_robot.losses.mstep import SingleMStep
from mpo_robot.losses.parametric import categorical_parametric_step
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.networks import inverse_softplus
from mpo_robot.replay import SequenceBatch
from mpo_robot.return_estimator import critic_targets
from mpo_robot.specs import PolicySpec


class CategoricalTargets(NamedTuple):
    """What the target networks say about a batch; no gradient."""

    logits: Tensor  # [S, K]
    q_values: Tensor  # [S, K]
    returns: Tensor  # [B, L]
    coefficients: Tensor  # [B, L]


class CategoricalMetrics(NamedTuple):
    """Scalars of one update, by name in `metrics.csv`. Values of returns and Q are in units of reward."""

    loss_critic: float
    loss_policy: float
    loss_penalty: float
    temperature: float
    kl_q_rel: float
    kl_policy_rel: float
    alpha: float
    entropy: float
    largest_probability_mean: float
    q_mean: float
    q_min: float
    q_max: float
    return_target_mean: float
    trace_coefficient_mean: float


class CategoricalDuals(nn.Module):
    """Temperature and multiplier as softplus(raw) + 1e-8, kept in range by `clamp_`, as in `mpo_robot.duals`."""

    def __init__(self, config: CategoricalConfig) -> None:
        super().__init__()
        self.raw_temperature = nn.Parameter(torch.full((1,), inverse_softplus(config.init_temperature)))
        self.raw_alpha = nn.Parameter(torch.full((1,), inverse_softplus(config.init_alpha)))

    @property
    def temperature(self) -> Tensor:
        """E-step temperature, [1]."""
        return positive(self.raw_temperature)

    @property
    def alpha(self) -> Tensor:
        """Multiplier of the policy's KL bound, [1]."""
        return positive(self.raw_alpha)

    @torch.no_grad()
    def set_temperature_(self, temperature: Tensor) -> None:
        """Write the temperature from a positive value [1]."""
        self.raw_temperature.copy_(raw_of(temperature))

    @torch.no_grad()
    def clamp_(self) -> None:
        """Projection after each optimiser step."""
        self.raw_temperature.clamp_(min=MIN_RAW_TEMPERATURE)
        self.raw_alpha.clamp_(min=MIN_RAW_ALPHA)


class CategoricalLearner(ActorCritic):
    """MPO for discrete actions; of `config.mpo` only `temperature_update`, `kl_form` and `variational` apply.

    The rest is `config.categorical`.

    Raises:
        ConfigError: the task's actions are continuous, or a setting does not fit the task.
    """

    metric_names: ClassVar[tuple[str, ...]] = CategoricalMetrics._fields
    online_policy: CategoricalPolicy

    def __init__(self, spec: PolicySpec, config: LearnerConfig, seed: int) -> None:
        interface, own = Interface.of(spec), config.categorical
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.online_policy = CategoricalPolicy(interface, own, config.policy)
            self.online_critic = CategoricalCritics(interface, own, config.critic)
        self.duals = CategoricalDuals(own)
        super().__init__(config, self.online_policy, self.online_critic, self.duals, seed)
        self.target_policy = cast(CategoricalPolicy, self._target_modules["policy"])
        self.target_critic = cast(CategoricalCritics, self._target_modules["critic"])

    def make_actor(self, policy: CategoricalPolicy) -> CategoricalActor:
        """The policy, acting."""
        return CategoricalActor(policy)

    def project(self) -> None:
        """Keep the dual variables in their range, and a fixed temperature what the settings say."""
        self.duals.clamp_()
        if self.config.mpo.temperature_update == "fixed":  # a resumed run may have learned it before
            self.duals.set_temperature_(torch.full((1,), self.config.categorical.init_temperature))

    def backward(
        self, batch: SequenceBatch, reward_scale: float = 1.0, want_metrics: bool = False
    ) -> CategoricalMetrics | None:
        """First half of `update`: all losses, and their gradients in the parameters' `grad`."""
        tensors = TensorBatch.of(batch, reward_scale)
        targets = self.target_pass(tensors)
        loss_critic = self.critic_loss(tensors, targets.returns)
        state_weights = self.state_weights(tensors)
        online = self.online_policy(tensors.observation.flatten(0, 1))
        if self.config.mpo.variational == "parametric":
            estep, mstep = self._parametric_improvement(online, targets, state_weights)
        else:
            estep, mstep = self._expectation_maximization(online, targets, state_weights)
        loss_duals = estep.loss_temperature + mstep.penalty.loss_alpha
        loss = loss_critic + mstep.loss_policy + mstep.penalty.loss_kl + loss_duals
        self.require_finite(loss)
        loss.backward()
        if not want_metrics:
            return None
        return self._metrics(loss_critic, estep, mstep, online, targets, state_weights, tensors, reward_scale)

    def _expectation_maximization(
        self, online: Tensor, targets: CategoricalTargets, state_weights: Tensor
    ) -> tuple[CategoricalEStep, SingleMStep]:
        """E-step over all actions and the M-step towards its weights."""
        temperature, epsilon = self._temperature(targets, state_weights), self.config.categorical.epsilon
        estep = losses.categorical_estep(targets.q_values, targets.logits, temperature, epsilon, state_weights)
        return estep, self._mstep(online, targets.logits, estep.normalized_weights, state_weights)

    def _parametric_improvement(
        self, online: Tensor, targets: CategoricalTargets, state_weights: Tensor
    ) -> tuple[CategoricalEStep, SingleMStep]:
        """The online policy is itself the variational distribution; the weights are the target policy's."""
        limit = bound(self.duals.alpha, self.config.categorical.epsilon_policy)
        step = categorical_parametric_step(online, targets.logits, targets.q_values, limit, state_weights)
        no_estep = CategoricalEStep(targets.logits.softmax(dim=-1), state_weights * 0.0, state_weights.new_zeros(()))
        return no_estep, step

    def _temperature(self, targets: CategoricalTargets, state_weights: Tensor) -> Tensor:
        """Temperature of the E-step, [1]; only a learned one takes part in the dual loss."""
        update, epsilon = self.config.mpo.temperature_update, self.config.categorical.epsilon
        if update != "exact":
            return self.duals.temperature if update == "learned" else self.duals.temperature.detach()
        exact = losses.categorical_exact_temperature(targets.q_values, targets.logits, epsilon, state_weights)
        if self.improves_policy:  # for metrics, and for whoever learns it from here on
            self.duals.set_temperature_(exact)
        return exact

    def _mstep(self, online: Tensor, target: Tensor, weights: Tensor, state_weights: Tensor) -> SingleMStep:
        """The M-step with a bound on its KL, or with a price that stays as it is."""
        own = self.config.categorical
        is_price = self.config.mpo.kl_form == "price"
        limit = price(own.init_alpha) if is_price else bound(self.duals.alpha, own.epsilon_policy)
        return losses.categorical_mstep(online, target, weights, limit, state_weights)

    @torch.no_grad()
    def target_pass(self, batch: TensorBatch) -> CategoricalTargets:
        """Value all actions and form the targets of the critic, for a batch with normalised observations."""
        observation = batch.observation.flatten(0, 1)  # [S, O]
        logits = self.target_policy(observation)
        q_values = self.target_critic.combined(observation)
        taken = batch.action.long()  # [B, L, 1]
        q_taken = batch.before(q_values).gather(-1, taken).squeeze(-1)
        log_probs_taken = losses.log_prob(batch.before(logits), taken.squeeze(-1))
        value = losses.expected_value(q_values, logits)
        return CategoricalTargets(
            logits, q_values, *critic_targets(self.config, batch, log_probs_taken, value, q_taken)
        )

    def critic_loss(self, batch: TensorBatch, returns: Tensor) -> Tensor:
        """Half the mean squared error of Q(s, a) of all critics, over the rows that are transitions."""
        values = self.online_critic(batch.observation[:, :-1].flatten(0, 1))  # [critics, B * L, K]
        taken = batch.action.long().flatten(0, 1).expand(len(values), -1, 1)
        error = 0.5 * (values.gather(-1, taken).squeeze(-1) - returns.flatten()).square().sum(dim=0)
        return self.transition_mean(batch, error.view_as(returns))

    @torch.no_grad()
    def _metrics(
        self,
        loss_critic: Tensor,
        estep: CategoricalEStep,
        mstep: SingleMStep,
        online: Tensor,
        targets: CategoricalTargets,
        state_weights: Tensor,
        batch: TensorBatch,
        reward_scale: float,
    ) -> CategoricalMetrics:
        own = self.config.categorical
        return CategoricalMetrics(
            loss_critic=float(loss_critic),
            loss_policy=float(mstep.loss_policy),
            loss_penalty=float(mstep.penalty.loss_kl),
            temperature=float(self.duals.temperature),
            kl_q_rel=float(state_weights @ estep.kl_nonparametric) / own.epsilon,
            kl_policy_rel=float(mstep.penalty.kl) / own.epsilon_policy,
            alpha=float(self.duals.alpha),
            entropy=float(state_weights @ losses.entropy(online)),
            largest_probability_mean=float(state_weights @ online.softmax(dim=-1).amax(dim=-1)),
            **self.value_metrics(
                batch, targets.q_values, targets.returns, targets.coefficients, reward_scale
            )._asdict(),
        )
