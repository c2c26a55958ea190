import hypothesis.strategies as st
from hypothesis import given

from deploy.rate_limit import RateLimiter

SECOND = 1_000_000_000


def send(limiter, peer, times, cost=1.0):
    passed = 0
    for now_ns in times:
        if limiter.allow(peer, now_ns):
            limiter.charge(peer, cost)
            passed += 1
    return passed


def test_a_burst_passes_and_then_the_rate():
    limiter = RateLimiter(100.0, 50)
    assert send(limiter, "a", [0] * 200) == 50
    assert send(limiter, "a", [SECOND // 2] * 200) == 50
    assert send(limiter, "b", [SECOND // 2] * 200) == 50  # others do not pay for it
    assert send(limiter, "a", [SECOND] * 200) == 50


def test_expensive_messages_go_into_debt_of_one_burst_at_most():
    limiter = RateLimiter(100.0, 50)
    assert send(limiter, "a", [0] * 5, cost=1000.0) == 1
    assert not limiter.allow("a", SECOND // 2)
    assert limiter.allow("a", int(0.52 * SECOND))  # 50 tokens of debt and one to spend


def test_a_refused_peer_is_told_once():
    limiter = RateLimiter(100.0, 50)
    send(limiter, "a", [0] * 50)
    told = []
    for now_ns in range(0, SECOND // 4, SECOND // 400):  # four times the rate
        if limiter.allow("a", now_ns):
            limiter.charge("a", 1.0)
        else:
            told.append(limiter.should_tell("a"))
    assert told.count(True) == 1
    assert limiter.allow("a", 10 * SECOND)
    limiter.charge("a", 50.0)
    assert not limiter.allow("a", 10 * SECOND)
    assert limiter.should_tell("a")


def test_zero_limits_nobody_and_remembers_nobody():
    limiter = RateLimiter(0.0, 1)
    assert send(limiter, "a", [0] * 1000) == 1000
    assert len(limiter) == 0


def test_only_those_who_owe_something_are_remembered():
    limiter = RateLimiter(100.0, 50)
    send(limiter, "a", [0] * 50)
    send(limiter, "b", [0])
    limiter.prune(SECOND // 10)
    assert len(limiter) == 1
    limiter.prune(SECOND)
    assert len(limiter) == 0


@given(st.lists(st.integers(0, SECOND // 20), max_size=300), st.floats(1, 1000), st.integers(1, 100))
def test_never_more_than_the_burst_and_the_rate(gaps, rate, burst):
    limiter, now_ns, times = RateLimiter(rate, burst), 0, []
    for gap in gaps:
        now_ns += gap
        times.append(now_ns)
    assert send(limiter, "a", times) <= burst + rate * now_ns / SECOND + 1
