"""Load a policy of a run folder: the newest (of its training, or of what was learnt from real logs), or the best."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from mpo_robot.actor_critic import Actor
from mpo_robot.baselines.ppo_network import PPOActor, PPONetwork
from mpo_robot.best_policy import load_best_policy
from mpo_robot.checkpoint import list_checkpoints, load_checkpoint
from mpo_robot.learners import make_learner
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.normalization import RunningNormalizer
from mpo_robot.run_folder import RunFolder
from mpo_robot.specs import PolicySpec


class LoadedPolicy(NamedTuple):
    """A trained policy with what is needed to use it."""

    policy: nn.Module
    normalizer: RunningNormalizer | None
    spec: PolicySpec
    training: dict[str, Any]
    actor: Actor
    origin: str = ""  # a sentence for people: which checkpoint this is, and which one it is preferred to


def load_policy(folder: RunFolder, config: LearnerConfig, best: bool = False) -> LoadedPolicy:
    """The averaged policy of the newest checkpoint: what `learn` made of the training's newest, else that itself.

    What was learnt from an older training checkpoint than the newest is not used; `origin` says so.

    Args:
        best: The policy of the training's best evaluation instead.

    Raises:
        ConfigError: no run, no checkpoint, or an unreadable one.
    """
    if best:
        return _load_best_policy(folder, config)
    spec = folder.spec()
    state, replay_file = load_checkpoint(folder.checkpoints)
    passed_over = ""
    if list_checkpoints(folder.learn_checkpoints):
        learnt, learnt_file = load_checkpoint(folder.learn_checkpoints)
        if learnt["environment_steps"] >= state["environment_steps"]:
            state, replay_file = learnt, learnt_file
        else:
            passed_over = (
                f". Not used: what was learnt from {learnt['real_steps']:,} real steps in {learnt_file.parent}: "
                f"it began at training step {learnt['environment_steps']:,} and the run was trained on since"
            )
    origin = (
        f"policy of {replay_file.parent} (training step {state['environment_steps']:,}, "
        f"{state.get('real_steps', 0):,} real steps){passed_over}"
    )
    return _loaded(folder, spec, config, state, origin)


def _load_best_policy(folder: RunFolder, config: LearnerConfig) -> LoadedPolicy:
    spec = folder.spec()
    state = load_best_policy(folder.best_policy)
    passed_over = ""
    if list_checkpoints(folder.learn_checkpoints):
        passed_over = f". Not used: what was learnt from real logs in {folder.learn_checkpoints}"
    origin = (
        f"best policy of the training, {folder.best_policy} (step {state['environment_steps']:,}, "
        f"return {state['return_mean']:.1f} in the evaluation that chose it){passed_over}"
    )
    return _loaded(folder, spec, config, state, origin)


def _loaded(
    folder: RunFolder, spec: PolicySpec, config: LearnerConfig, state: dict[str, Any], origin: str
) -> LoadedPolicy:
    policy, actor = _restore_policy(spec, config, state["learner"])
    normalizer = normalizer_from_state(state["normalizer"], spec.observation_size)
    training = {
        "run": str(folder.path),
        "environment_steps": state["environment_steps"],
        "learner_steps": state["learner"]["learner_steps"],
        "real_steps": state.get("real_steps", 0),
    }
    if "return_mean" in state:
        training["best_return"] = state["return_mean"]
    return LoadedPolicy(policy, normalizer, spec, training, actor, origin)


def _restore_policy(spec: PolicySpec, config: LearnerConfig, state: dict[str, Any]) -> tuple[nn.Module, Actor]:
    """What is exported, and what acts."""
    if config.algorithm == "ppo":
        network = PPONetwork.build(spec.observation_size, spec.action_size, config.policy.hidden_sizes)
        network.load_state_dict(state["network"])
        return network, PPOActor(network)
    learner = make_learner(spec, config, seed=0)
    learner.load_state_dict(state)
    return learner.exported_policy(), learner.averaged_actor()


def normalizer_from_state(state: dict[str, Any] | None, size: int) -> RunningNormalizer | None:
    """Rebuild a checkpoint's normaliser, or None if the run has none."""
    if state is None:
        return None
    normalizer = RunningNormalizer(size)
    normalizer.load_state_dict(state)
    return normalizer
