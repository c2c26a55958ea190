"""Who gets past the gate of the operator's page: every condition alone, without a socket."""

import pytest

from deploy.dashboard.gate import Gate

TOKEN = "secret-token"
GOOD = {
    "REQUEST_METHOD": "POST",
    "PATH_INFO": "/api/estop",
    "HTTP_HOST": "127.0.0.1:8765",
    "HTTP_ORIGIN": "http://127.0.0.1:8765",
    "HTTP_SEC_FETCH_SITE": "same-origin",
    "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
    "CONTENT_TYPE": "application/json",
}


def answer(**changes):
    """(status, headers, body, calls of the application) of the good request with changes; None removes an entry."""
    calls, answers = [], []
    environ = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}

    def app(environ, start_response):
        calls.append(environ)
        start_response("200 OK", [("Content-Type", "text/plain"), ("cache-control", "public")])
        return [b"inside"]

    body = b"".join(
        Gate(app, TOKEN, 8765)(environ, lambda status, headers, *_: answers.append((status, headers))),
    )
    ((status, headers),) = answers
    return status, headers, body, len(calls)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"HTTP_HOST": "localhost:8765", "HTTP_ORIGIN": "http://localhost:8765"},
        {"HTTP_SEC_FETCH_SITE": None},  # an older browser, or curl
        {"CONTENT_TYPE": "application/json; charset=utf-8"},
        {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/state", "HTTP_ORIGIN": None, "CONTENT_TYPE": None},
        # The page itself holds no data: anybody may load it, from a link too.
        {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_ORIGIN": None, "HTTP_AUTHORIZATION": None,
         "HTTP_SEC_FETCH_SITE": "cross-site"},
    ],
)  # fmt: skip
def test_passes(changes):
    status, _, body, calls = answer(**changes)
    assert (status, body, calls) == ("200 OK", b"inside", 1)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"HTTP_AUTHORIZATION": None}, "401"),
        ({"HTTP_AUTHORIZATION": "Bearer "}, "401"),
        ({"HTTP_AUTHORIZATION": f"Bearer {TOKEN}x"}, "401"),
        ({"HTTP_AUTHORIZATION": f"Bearer {TOKEN[:-1]}"}, "401"),
        ({"HTTP_AUTHORIZATION": f"Basic {TOKEN}"}, "401"),
        ({"HTTP_AUTHORIZATION": "Bearer \xff\u0107"}, "401"),
        ({"REQUEST_METHOD": "GET", "PATH_INFO": "/api/state", "HTTP_AUTHORIZATION": None}, "401"),
        ({"REQUEST_METHOD": "GET", "PATH_INFO": "/api/unknown", "HTTP_AUTHORIZATION": None}, "401"),
        # DNS rebinding: the browser believes evil.example is this machine.
        ({"HTTP_HOST": "evil.example:8765", "HTTP_ORIGIN": "http://evil.example:8765"}, "403"),
        ({"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_HOST": "evil.example"}, "403"),
        ({"HTTP_HOST": "127.0.0.1:8766"}, "403"),
        ({"HTTP_HOST": "127.0.0.1"}, "403"),
        ({"HTTP_HOST": None}, "403"),
        # Requests of other sites.
        ({"HTTP_ORIGIN": "http://evil.example"}, "403"),
        ({"HTTP_ORIGIN": "null"}, "403"),
        ({"HTTP_ORIGIN": "http://127.0.0.1:9999"}, "403"),
        ({"HTTP_ORIGIN": "https://127.0.0.1:8765"}, "403"),
        ({"HTTP_ORIGIN": None}, "403"),
        ({"HTTP_SEC_FETCH_SITE": "cross-site"}, "403"),
        ({"HTTP_SEC_FETCH_SITE": "same-site"}, "403"),  # another port of this machine
        ({"CONTENT_TYPE": "text/plain"}, "415"),  # what a form can send
        ({"CONTENT_TYPE": None}, "415"),
        ({"REQUEST_METHOD": "OPTIONS"}, "405"),
        ({"REQUEST_METHOD": "DELETE"}, "405"),
    ],
)
def test_refuses(changes, code):
    status, _, body, calls = answer(**changes)
    assert status.startswith(code)
    assert calls == 0
    assert TOKEN.encode() not in body


@pytest.mark.parametrize("changes", [{}, {"HTTP_HOST": "evil.example"}])
def test_every_answer_forbids_foreign_content_and_frames(changes):
    _, headers, _, _ = answer(**changes)
    found = dict(headers)
    policy = found["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert found["X-Content-Type-Options"] == "nosniff"
    assert found["Referrer-Policy"] == "no-referrer"
    assert [value for name, value in headers if name.lower() == "cache-control"] == ["no-store"]
    assert not [name for name in found if name.lower().startswith("access-control")]
