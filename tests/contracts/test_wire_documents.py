"""Numbers on docs/security.md and docs/wire_protocol.md are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import client, protocol, server, sessions
from deploy.estop_topic import CONFIRM_S, MAX_BYTES
from deploy.guard import GuardConfig
from deploy.server_config import ServerConfig

DOCS = Path(__file__).parents[2] / "docs"
SERVER, GUARD = ServerConfig(), GuardConfig()


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("security", f"every `registry_poll_s` ({SERVER.registry_poll_s:g} s)"),
        ("security", f"`max_rate_hz` {SERVER.max_rate_hz:,.0f} with a burst of {SERVER.rate_burst:,}."),
        ("security", f"costs 1, anything else {1 + server._COST_OF_SLOW:g}, large frames more"),
        (
            "security",
            f"`max_sessions` ({SERVER.max_sessions}) sessions, `sessions_per_key` ({SERVER.sessions_per_key})",
        ),
        ("security", f"silent for {sessions.YIELDS_AFTER_NS / 1e9:g} s makes room"),
        ("security", f"longer than {server._HANDSHAKE_MS / 1e3:g} s is closed"),
        ("wire_protocol", f"({protocol.MAX_FRAME_BYTES:,} bytes)"),
        ("wire_protocol", f"| `protocol_version` | int | {protocol.PROTOCOL_VERSION}; anything else is refused"),
        ("wire_protocol", f"no answer for {client.LOST_AFTER_NS / 1e9:g} s although asked"),
        ("wire_protocol", f"After {client.HEARTBEAT_INTERVAL_NS / 1e9:g} s without a message"),
        ("wire_protocol", f"`session_idle_s` ({SERVER.session_idle_s:g} s)"),
        ("wire_protocol", f"`return_drop` ({GUARD.return_drop}) of"),
        ("wire_protocol", f"`return_errors` ({GUARD.return_errors:g}) standard errors"),
        ("wire_protocol", f"`fault_rise` ({GUARD.fault_rise})"),
        ("wire_protocol", f"`miss_rise` ({GUARD.miss_rise})"),
        ("wire_protocol", f"at most {MAX_BYTES >> 10} KiB per message"),
        ("wire_protocol", f"or {CONFIRM_S:g} s later"),
    ],
)
def test_numbers_are_those_of_the_code(page: str, text: str) -> None:
    assert text in " ".join((DOCS / f"{page}.md").read_text().split())


def test_error_codes_are_those_of_the_code() -> None:
    page = (DOCS / "wire_protocol.md").read_text()
    table = page.split("| `error` code |")[1].split("\n\n")[0].splitlines()[2:]
    codes = {value for name, value in vars(protocol.ErrorCode).items() if name.isupper()}
    assert {row.split("`")[1] for row in table} == codes


def test_messages_and_their_fields_are_those_of_the_code() -> None:
    common = set(protocol.Message.__struct_fields__)
    page = (DOCS / "wire_protocol.md").read_text()
    rows = page.split("| robot -> server |")[1].split("\n\n")[0].splitlines()[2:]
    documented = {}
    for row in rows:
        request, its_fields, reply, reply_fields = row.strip("|").split("|")
        for name, fields in ((request, its_fields), (reply, reply_fields)):
            documented[name.strip(" `")] = set(fields.split("`")[1::2])
    assert documented == {
        str(kind.__struct_config__.tag): set(kind.__struct_fields__) - common
        for kind in protocol.Message.__subclasses__()
        if kind is not protocol.Error
    }
