"""Whatever clients say, in whatever order: the handler answers, and nothing is a bug to it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy import protocol
from deploy.access import Access, Peer
from deploy.guard import PolicyGuard
from deploy.handler import RequestHandler
from deploy.operations import Operations
from deploy.policy_store import PolicyStore
from deploy.registry import PolicyRegistry
from deploy.server_config import ServerConfig, ServerStatistics
from tests.support.messages import messages
from tests.support.onnx_files import small_spec, write_linear_policy

SPEC = small_spec()
peers = st.sampled_from([Peer(b"a"), Peer(b"b"), Peer(b"a", "key")])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handler")
    registry = PolicyRegistry(folder / "registry")
    registry.publish(write_linear_policy(folder / "p.onnx", SPEC))
    store = PolicyStore(registry)
    yield store, registry
    store.close()


def sound(version):
    """Messages that get past the handshake, so that what follows them meets every state."""
    header = protocol.header(SPEC.spec_hash, 1, 0)
    observation = protocol.encode_array([0.0] * 3)
    return st.sampled_from(
        [
            protocol.Hello(**header, client_id="x", spec_json=protocol.encode_spec(SPEC)),
            protocol.BeginEpisode(**header, episode_id="e"),
            protocol.BeginEpisode(**header, episode_id="e", resume_policy_version=version),
            protocol.ActRequest(**header, step_index=0, observation=observation),
            protocol.EndEpisode(
                **header, episode_id="e", steps=1, undiscounted_return=None, misses=5, fault=True, reason=""
            ),
        ]
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_sequence_of_messages_is_an_internal_error(store, data):
    policies, registry = store
    statistics = ServerStatistics()
    operations = Operations(registry, PolicyGuard(registry, ServerConfig().guard))
    handler = RequestHandler(policies, ServerConfig(), statistics, lambda: 0, operations, Access(None, "t" * 64))
    said = st.lists(st.tuples(peers, messages | sound(registry.current_version())), max_size=30)
    for peer, message in data.draw(said):
        reply = handler.handle(peer, message, 0)
        if reply is not None:
            assert protocol.decode(protocol.encode(reply)) == reply
            assert reply.request_id == message.request_id
    list(handler.finish())
    assert statistics.internal_errors == 0
    assert len(registry.previous_versions()) == 0
