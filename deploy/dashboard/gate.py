"""`Gate`: what a request must show before the page's application sees it, and the headers of every answer.

The page acts on robots, so a web site open in the same browser must be able neither to read it nor to press its
buttons. Against DNS rebinding: `Host` must be this machine's. Against requests of other sites: `Origin` must be the
page's own, and the token travels in a header that other sites cannot set; there is no cookie, which a browser would
send along by itself and to every port of this machine.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterable
from typing import Any

API = "/api/"
HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


class Gate:
    """WSGI application in front of another.

    Args:
        app: Gets what is let through.
        token: The secret of the page.
        port: Where the page is served, on loopback.
    """

    def __init__(self, app: Application, token: str, port: int) -> None:
        self._app = app
        self._token = b"Bearer " + token.encode()
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        self._origins = {f"http://{host}" for host in self._hosts}

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Refuse with a line of JSON, or pass on."""

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            ours = {name.lower() for name, _ in HEADERS}
            return start_response(status, [*(item for item in headers if item[0].lower() not in ours), *HEADERS], *rest)

        refusal = self.refusal(environ)
        if refusal is None:
            return self._app(environ, start)
        status, text = refusal
        body = json.dumps({"error": text}).encode()
        start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def refusal(self, environ: Environ) -> tuple[str, str] | None:
        """Status line and reason why a request is refused; None if it may pass."""
        method, origin = environ["REQUEST_METHOD"], environ.get("HTTP_ORIGIN")
        if environ.get("HTTP_HOST") not in self._hosts:
            return "403 Forbidden", "wrong Host: open the URL that mpo-robot serve has printed"
        if origin is not None and origin not in self._origins:
            return "403 Forbidden", "wrong Origin"
        if method not in ("GET", "POST"):
            return "405 Method Not Allowed", "only GET and POST"
        if method == "POST" and origin is None:
            return "403 Forbidden", "no Origin"
        if not environ["PATH_INFO"].startswith(API):
            return None  # the page itself: the same for everybody, without any data
        if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "none"):
            return "403 Forbidden", "a request of another site"
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, self._token):
            return "401 Unauthorized", "no or wrong token: open the URL that mpo-robot serve has printed"
        if method == "POST" and environ.get("CONTENT_TYPE", "").partition(";")[0].strip() != "application/json":
            return "415 Unsupported Media Type", "JSON only"
        return None
