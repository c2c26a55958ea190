from __future__ import annotations

import os
import signal
import threading

import pytest

from deploy.stopping import STOP_ATTEMPTS, StopFailedError, StopSignals, Watchdog, stop_robot
from tests.support.fake_robot import FakeRobot


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_is_a_request_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert not signals.requested()
        os.kill(os.getpid(), number)
        assert signals.requested()
    assert signal.getsignal(number) is before


def test_second_signal_interrupts_a_program_that_does_not_look() -> None:
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_noticed_stop_is_not_interrupted() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.requested()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGINT)
    inside: list[object] = []

    def use() -> None:
        with StopSignals():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert inside == [before]


def test_stop_that_keeps_failing_is_reported() -> None:
    robot, attempts = FakeRobot(), []

    def broken() -> None:
        attempts.append(1)
        raise OSError("bus")

    robot.stop = broken  # type: ignore[method-assign]
    with pytest.raises(StopFailedError, match="bus") as raised:
        stop_robot(robot)
    assert isinstance(raised.value.__cause__, OSError)
    assert len(attempts) == STOP_ATTEMPTS


def test_interrupted_stop_is_done_before_the_interrupt_goes_on() -> None:
    robot, attempts = FakeRobot(), []

    def interrupted_once() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise KeyboardInterrupt

    robot.stop = interrupted_once  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stop_robot(robot)
    assert len(attempts) == 2


@pytest.mark.parametrize("failures", [STOP_ATTEMPTS - 1, STOP_ATTEMPTS])
def test_interrupts_do_not_use_up_the_attempts(failures: int) -> None:
    robot = FakeRobot()
    script = iter([*[KeyboardInterrupt()] * 4, *[OSError("bus")] * failures])

    def scripted() -> None:
        for error in script:
            raise error
        robot.calls.append("stopped")

    robot.stop = scripted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt if failures < STOP_ATTEMPTS else StopFailedError):
        stop_robot(robot)
    assert ("stopped" in robot.calls) == (failures < STOP_ATTEMPTS)


def test_driver_that_interrupts_itself_counts_as_failed() -> None:
    robot = FakeRobot()

    def interrupted() -> None:
        raise KeyboardInterrupt

    robot.stop = interrupted  # type: ignore[method-assign]
    with pytest.raises(StopFailedError):
        stop_robot(robot)


def test_other_thread_that_looks_does_not_keep_the_main_thread_from_being_interrupted() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        seen: list[bool] = []
        thread = threading.Thread(target=lambda: seen.append(signals.requested()))
        thread.start()
        thread.join()
        assert seen == [True]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.requested()
        os.kill(os.getpid(), signal.SIGINT)


def test_watchdog_stops_a_robot_whose_driver_hangs() -> None:
    robot, stopped = FakeRobot(), threading.Event()
    robot.stop = stopped.set  # type: ignore[method-assign]
    with Watchdog(robot, 0.02) as watchdog:
        assert stopped.wait(60)
    assert watchdog.fired


def test_fed_or_switched_off_watchdog_does_nothing() -> None:
    robot = FakeRobot()
    with Watchdog(robot, 60.0) as watchdog:
        watchdog.feed()
    with Watchdog(robot, 0.0) as off:
        pass
    assert not watchdog.fired
    assert not off.fired
    assert robot.calls == []
