"""The operator's page in a real browser: what a person sees, and what the buttons do when they are pressed."""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest

from deploy.client import EpisodeOutcome, PolicyClient
from tests.support.browser import CHROMIUM, Browser
from tests.support.dashboard import SPEC, DashboardServer
from tests.support.robot_process import wait_until

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="finds the page's process in /proc"),
]
PATIENCE_S = 30.0
ROBOT = "<img src=x onerror=document.title=1>"


def act(client, step):
    return client.act(np.zeros(3, np.float32), step, time.monotonic_ns() + int(PATIENCE_S * 1e9))


def text(browser, selector):
    return browser.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''")


@pytest.fixture
def page(tmp_path):
    with DashboardServer(tmp_path, ROBOT) as server:
        yield server


def test_a_person_sees_live_numbers_and_presses_the_buttons(page):
    with Browser() as browser, PolicyClient(page.server.endpoint, SPEC) as client:
        client.begin_episode(f"{ROBOT}-0000", PATIENCE_S)
        assert act(client, 0) is not None
        client.end_episode(EpisodeOutcome(8, 3.5, 2, True, "<b>safety</b>"), PATIENCE_S)
        client.begin_episode("arm-0001", PATIENCE_S)
        browser.open(page.url)
        steps = iter(range(10**6))

        def see(selector, part):
            """Keep the robot going until the page shows something."""

            def shown():
                assert act(client, next(steps)) is not None
                return part in text(browser, selector)

            wait_until(shown)

        # Live numbers: robot, latency, misses, policies, clients, faults.
        see("#robots .state", "RUN")
        see("#latency-now", "actions/s, p50 ")
        see("#misses-now", "2 of 8 steps in the last 1 episode(s)")
        see("#policies tr.current", page.new[:12])
        see("#sessions", "arm-0001")
        before = int(browser.run("document.querySelector('#sessions td:nth-child(2)').textContent"))
        wait_until(
            lambda: (
                act(client, next(steps)) is not None
                and int(browser.run("document.querySelector('#sessions td:nth-child(2)').textContent")) > before
            )
        )
        assert browser.run("document.querySelectorAll('#latency path').length") == 3
        assert browser.run("document.querySelector('#latency path.p50').getAttribute('d').length") > 0
        assert browser.run("document.querySelectorAll('#misses rect.fault').length") == 1

        # Names with markup are text, and the token is out of sight.
        assert text(browser, "#robots strong") == ROBOT
        assert f"{ROBOT}-0000, <b>safety</b> after 8 steps" in text(browser, "#faults")
        assert browser.run("document.querySelectorAll('img, #faults b').length") == 0
        assert browser.run("document.title") == "mpo_robot"
        assert page.token not in browser.run("location.href")

        # A rollback asks first. While it asks, the e-stop is within reach, and asks nothing.
        browser.click("#rollback")
        wait_until(lambda: browser.run("document.querySelector('#confirm').open"))
        assert text(browser, "#confirm-from") == page.new
        assert text(browser, "#confirm-to") == page.old
        browser.click("#estop")
        wait_until(lambda: page.estop.tripped)
        see("#message", f"{ROBOT}: stopped")
        see("#robots .state", "FAULT")
        assert page.registry.current_version() == page.new

        browser.click("#rollback")
        browser.run("document.querySelector('#confirm-reason').value = 'limps'")
        browser.click("#confirm-no")
        assert not browser.run("document.querySelector('#confirm').open")
        assert page.registry.current_version() == page.new
        browser.click("#rollback")
        browser.click("#confirm-yes")
        wait_until(lambda: page.registry.current_version() == page.old)
        see("#message", f"rolled back to {page.old}")
        see("#policies tr.current", page.old[:12])
        assert browser.run("document.querySelector('#rollback').disabled")
        assert browser.console == [], "no error, nothing that the content policy had to forbid"

        # A page without its process says that its numbers are old.
        os.kill(page.page_process(), signal.SIGKILL)
        wait_until(lambda: "NO CONNECTION" in text(browser, "#link"))
        assert browser.run("document.body.classList.contains('stale')")


def test_a_person_is_told_that_a_robot_did_not_stop(tmp_path):
    with DashboardServer(tmp_path, stop="raises") as page, Browser() as browser:
        browser.open(page.url)
        wait_until(lambda: "RUN" in text(browser, "#robots .state"))
        browser.click("#estop")
        wait_until(lambda: "arm: COULD NOT BE STOPPED" in text(browser, "#message"))
        assert browser.run("document.querySelector('#message').className") == "bad"
        wait_until(lambda: "COULD NOT BE STOPPED" in text(browser, "#robots"))
