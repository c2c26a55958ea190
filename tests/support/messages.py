"""Hypothesis strategies for every message of the wire protocol."""

from __future__ import annotations

import hypothesis.strategies as st

from deploy import protocol

hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
counts = st.integers(0, 2**63 - 1)
instants = st.integers(-(2**63), 2**63 - 1)
LETTERS = 'az09 ._-/\\\0"é漢🤖'  # a small alphabet: the full one costs seconds to set up
names = st.text(LETTERS, max_size=256)
arrays = st.binary(max_size=400)
log_probs = st.none() | st.floats(allow_nan=False)
HEADER = {
    "protocol_version": st.just(protocol.PROTOCOL_VERSION),
    "spec_hash": hashes,
    "request_id": counts,
    "sent_ns": instants,
}
BODIES = {
    protocol.Hello: {"client_id": names, "spec_json": st.text(LETTERS, max_size=1000)},
    protocol.Welcome: {
        "policy_version": hashes,
        "spec_json": st.text(LETTERS, max_size=1000),
        "stochastic": st.booleans(),
        "takes_outcomes": st.booleans(),
    },
    protocol.BeginEpisode: {"episode_id": names, "step_index": counts, "resume_policy_version": st.none() | hashes},
    protocol.EpisodeReady: {"episode_id": names, "policy_version": hashes, "stochastic": st.booleans()},
    protocol.ActRequest: {"step_index": counts, "observation": arrays},
    protocol.ActReply: {
        "step_index": counts,
        "action": arrays,
        "log_prob": log_probs,
        "policy_version": hashes,
        "inference_ns": counts,
        "received_ns": instants,
    },
    protocol.EndEpisode: {
        "episode_id": names,
        "steps": counts,
        "undiscounted_return": log_probs,
        "misses": counts,
        "fault": st.booleans(),
        "reason": names,
    },
    protocol.EpisodeNoted: {},
    protocol.Operate: {"command": names, "reason": names, "token": names, "expect": names},
    protocol.Operated: {"state_json": st.text(LETTERS, max_size=1000)},
    protocol.Ping: {},
    protocol.Pong: {"session": st.booleans()},
    protocol.Error: {"code": names, "text": st.text(LETTERS, max_size=4096)},
}
messages = st.one_of([st.builds(kind, **HEADER, **body) for kind, body in BODIES.items()])
