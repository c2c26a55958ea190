"""Routes of the operator's page: three static files, the state, e-stop and rollback. `Gate` stands before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import bottle

from deploy.dashboard.commands import Commands
from deploy.dashboard.monitor import Monitor
from mpo_robot.errors import MpoRobotError

_STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/plots.js": ("plots.js", "text/javascript; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
}


class _Application(bottle.Bottle):
    def default_error_handler(self, res: bottle.HTTPError) -> str:
        return _json({"error": res.status_line})


def make_app(monitor: Monitor, commands: Commands) -> bottle.Bottle:
    """The application.

    Args:
        monitor: What the page shows.
        commands: What its buttons do.
    """

    def state() -> str:
        return _json(monitor.state())

    def estop() -> str:
        return _json(commands.estop(_text(_body(), "reason")))

    def rollback() -> str:
        body = _body()
        try:
            return _json(commands.rollback(expect=_text(body, "expect"), reason=_text(body, "reason")))
        except MpoRobotError as error:
            bottle.response.status = 409
            return _json({"error": str(error)})

    app = _Application()
    folder = resources.files("deploy.dashboard") / "static"
    for path, (name, kind) in _STATIC.items():
        app.route(path, "GET", _static((folder / name).read_bytes(), kind))
    app.route("/api/state", "GET", state)
    app.route("/api/estop", "POST", estop)
    app.route("/api/rollback", "POST", rollback)
    return app


def _static(content: bytes, kind: str) -> Callable[[], bytes]:
    def serve() -> bytes:
        bottle.response.content_type = kind
        return content

    return serve


def _json(data: Any) -> str:
    bottle.response.content_type = "application/json"
    return json.dumps(data, allow_nan=False)


def _body() -> dict[str, Any]:
    body = bottle.request.json
    if not isinstance(body, dict):
        raise bottle.HTTPError(400)
    return body


def _text(body: dict[str, Any], name: str) -> str:
    """A text of the request, short enough for every log it goes into."""
    value = body.get(name, "")
    if not isinstance(value, str):
        raise bottle.HTTPError(400)
    return value[:120]
