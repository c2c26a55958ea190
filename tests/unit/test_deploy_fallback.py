from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.fallback import FallbackConfig, LadderState, Mode, Rung, advance, mode_of, pass_over
from mpo_robot.errors import ConfigError

FULL = FallbackConfig(
    ladder=(Rung("hold", ticks=2), Rung("local", ticks=3), Rung("safe_pose", ticks=2, recover=False), Rung("stop"))
)


def run(config: FallbackConfig, actions: str, local_usable: bool = True) -> list[str]:
    """Modes for a string of periods: `+` an action came, `-` none."""
    state, modes = LadderState(), []
    for character in actions:
        state = advance(state, config, character == "+", local_usable)
        modes.append(mode_of(state, config).value)
    return modes


def test_policy_acts_as_long_as_actions_come() -> None:
    assert run(FULL, "+++") == ["policy"] * 3


def test_each_rung_gets_its_ticks_and_stop_is_final() -> None:
    expected = ["hold"] * 2 + ["local"] * 3 + ["safe_pose"] * 2 + ["stop"] * 3
    assert run(FULL, "-------" + "-++") == expected


def test_an_action_leads_back_and_the_next_miss_starts_at_the_top() -> None:
    assert run(FULL, "-+-") == ["hold", "policy", "hold"]
    assert run(FULL, "---+-") == ["hold", "hold", "local", "policy", "hold"]


def test_rung_without_recovery_goes_on_to_stop() -> None:
    assert run(FULL, "------++") == [*["hold"] * 2, *["local"] * 3, "safe_pose", "safe_pose", "stop"]


def test_recovery_wants_consecutive_actions() -> None:
    config = FallbackConfig(ladder=(Rung("hold"), Rung("stop")), recover_after=2)
    assert run(config, "-+-++-") == ["hold", "hold", "hold", "hold", "policy", "hold"]


def test_zero_ticks_stay_on_the_rung() -> None:
    config = FallbackConfig(ladder=(Rung("hold", ticks=0), Rung("stop")))
    assert set(run(config, "-" * 50)) == {"hold"}


def test_local_rung_is_passed_over_when_it_cannot_act() -> None:
    assert run(FULL, "----", local_usable=False) == ["hold", "hold", "safe_pose", "safe_pose"]


def test_ladder_may_start_with_local() -> None:
    config = FallbackConfig(ladder=(Rung("local", ticks=1), Rung("stop")))
    assert run(config, "--") == ["local", "stop"]
    assert run(config, "-", local_usable=False) == ["stop"]


def test_failed_local_policy_is_passed_over_within_the_period() -> None:
    state = advance(LadderState(1, 1, 0), FULL, False, True)
    assert mode_of(pass_over(state, FULL), FULL) is Mode.SAFE_POSE
    assert mode_of(pass_over(LadderState(3, 1, 0), FULL), FULL) is Mode.STOP


@given(actions=st.text(alphabet="+-", max_size=60), recover_after=st.integers(1, 3))
def test_ladder_never_goes_up_except_to_the_policy(actions: str, recover_after: int) -> None:
    config = FallbackConfig(ladder=FULL.ladder, recover_after=recover_after)
    order = ["policy", "hold", "local", "safe_pose", "stop"]
    modes = run(config, actions)
    for before, after, action in zip(["policy", *modes], modes, actions):
        assert after == "policy" or order.index(after) >= order.index(before)
        assert action == "+" or after != "policy"
        assert before not in ("stop", "safe_pose") or after != "policy"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"ladder": (Rung("hold"),)}, "must end with"),
        ({"ladder": ()}, "must end with"),
        ({"ladder": (Rung("hold"), Rung("hold"), Rung("stop"))}, "twice"),
        ({"ladder": (Rung("hold", ticks=-1), Rung("stop"))}, "negative"),
        ({"recover_after": 0}, "recover_after"),
    ],
)
def test_senseless_ladders_are_refused(settings: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        FallbackConfig(**settings)
