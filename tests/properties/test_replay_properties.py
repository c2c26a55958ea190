"""The replay against a plain list, under any sequence of operations; logs reach it bit-exact."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpo_robot.episode import Episode, Source, episodes_from_records
from mpo_robot.replay import SequenceReplay
from tests.support.learning import AllWindows
from tests.support.records import SPEC, make_records

O, A = 2, 1  # noqa: E741


class Row(NamedTuple):
    """What the list remembers of a state: `ends` is None for a transition, else whether its episode terminated."""

    observation: tuple[float, ...]
    action: tuple[float, ...] = (0.0,) * A
    reward: float = 0.0
    terminated: bool = False
    log_prob: float = 0.0
    valid: bool = False
    ends: bool | None = None


@dataclasses.dataclass
class Model:
    """Ring and list side by side."""

    replay: SequenceReplay
    rows: list[Row] = dataclasses.field(default_factory=list)
    added: int = 0

    def play(self, steps: int, terminated: bool, whole: bool, seed: int) -> None:
        """One episode, either step by step or as a whole."""
        rng = np.random.default_rng(seed)
        observations = rng.standard_normal((steps + 1, O)).astype(np.float32)
        actions = rng.standard_normal((steps, A)).astype(np.float32)
        log_probs, rewards = rng.standard_normal((2, steps)).astype(np.float32)
        valid = rng.uniform(size=steps) < 0.5
        if whole:
            self.replay.add_episode(Episode(observations, actions, log_probs, valid, rewards, terminated, ""))
        for t in range(steps):
            last = terminated and t == steps - 1
            if not whole:
                arguments = (float(log_probs[t]), float(rewards[t]), last, bool(valid[t]))
                self.replay.add(observations[t], actions[t], *arguments)
            row = (tuple(observations[t]), tuple(actions[t]), rewards[t], last, log_probs[t], valid[t])
            self.rows.append(Row(*row))
        if not whole:
            self.replay.end_episode(observations[steps], terminated)
        self.rows.append(Row(tuple(observations[steps]), terminated=terminated, ends=terminated))
        self.rows = self.rows[-self.replay.capacity :]
        self.added += steps

    def save_and_load(self) -> None:
        """Go on with a restored copy."""
        copy = SequenceReplay(self.replay.capacity, O, A)
        with tempfile.TemporaryDirectory() as folder:
            self.replay.save(Path(folder) / "replay.npz")
            copy.load(Path(folder) / "replay.npz")
        self.replay = copy

    def check(self, length: int) -> None:
        """All windows, all arrays."""
        assert len(self.replay) == len(self.rows)
        assert self.replay.transitions_added == self.added
        windows = len(self.rows) - length
        assert self.replay.can_sample(length) == (windows > 0)
        if windows <= 0:
            return
        batch = self.replay.sample(AllWindows(), windows, length)
        for start in range(windows):
            states = self.rows[start : start + length + 1]
            steps = states[:-1]
            expected = {
                "observation": [row.observation for row in states],
                "action": [row.action for row in steps],
                "reward": [row.reward for row in steps],
                "terminated": [row.terminated for row in steps],
                "behavior_log_prob": [row.log_prob for row in steps],
                "trace_valid": [row.valid for row in steps],
                "is_transition": [row.ends is None for row in steps],
                "policy_state": [row.ends is not True for row in states],
            }
            for name, value in expected.items():
                assert np.array_equal(getattr(batch, name)[start], np.array(value, np.float32)), (start, name)


episode = st.tuples(st.integers(1, 6), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))


@given(
    capacity=st.integers(7, 30),
    operations=st.lists(st.one_of(episode, st.none()), min_size=1, max_size=10),
    length=st.integers(1, 6),
)
def test_the_replay_behaves_like_a_list(capacity, operations, length):
    model = Model(SequenceReplay(capacity, O, A))
    for operation in operations:
        if operation is None:
            model.save_and_load()
        else:
            model.play(*operation)
        model.check(length)


special = st.fixed_dictionaries(
    {},
    optional={
        "action_modified": st.just(True),
        "source": st.sampled_from([Source.FALLBACK, Source.HUMAN]),
        "behavior_log_prob": st.just(math.nan),
    },
)


@given(
    changes=st.lists(special, min_size=1, max_size=12),
    dropped=st.sets(st.integers(0, 11), max_size=3),
    terminated=st.booleans(),
)
def test_records_reach_the_replay_bit_exact_and_gaps_never_join_states(changes, dropped, terminated):
    records = [
        dataclasses.replace(record, **change) for record, change in zip(make_records(len(changes), SPEC), changes)
    ]
    records[-1] = dataclasses.replace(records[-1], terminated=terminated, truncated=not terminated)
    kept = [record for record in records if record.step_index not in dropped]
    replay = SequenceReplay(100, SPEC.observation_size, SPEC.action_size)
    for episode in episodes_from_records(kept, SPEC):
        replay.add_episode(episode)
    if not kept:
        assert len(replay) == 0
        return
    row = 0
    width = SPEC.observation_size + SPEC.action_size
    for record, after in zip(kept, [*kept[1:], None]):
        packed = replay._rows[row]
        ratio = (
            record.source is Source.POLICY and not record.action_modified and math.isfinite(record.behavior_log_prob)
        )
        action = record.policy_action if ratio else record.sent_action
        log_prob = record.behavior_log_prob if ratio else 0.0
        extra = (record.reward, record.terminated, log_prob, ratio, 1.0)
        expected = np.concatenate([record.observation, action, np.array(extra, np.float32)]).astype(np.float32)
        assert packed.tobytes() == expected.tobytes()
        row += 1
        if after is None or after.step_index != record.step_index + 1:
            final = np.zeros(width + 5, np.float32)
            final[: SPEC.observation_size] = record.next_observation
            final[width + 1] = record.terminated
            assert replay._rows[row].tobytes() == final.tobytes()
            row += 1
    assert row == len(replay)
