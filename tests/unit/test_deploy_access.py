import stat

import pytest

from deploy.access import Access, Peer, read_or_make_token
from deploy.allow_list import AllowList, Role
from deploy.approval import ApprovedPolicies
from deploy.key_files import create_keys, load_public
from deploy.policy_store import PolicyStore
from deploy.registry import PolicyRegistry
from mpo_robot.errors import ConfigError
from tests.support.onnx_files import small_spec, write_linear_policy

SPEC = small_spec()


def test_without_keys_everybody_talks_and_the_token_operates():
    access = Access(None, "t" * 64)
    assert access.may_talk(Peer(b"x"))
    assert access.operator(Peer(b"x"), "t" * 64)
    for token in ("", "t" * 63, "T" * 64, "ü", "\ud800"):
        assert access.operator(Peer(b"x"), token) == ""
    assert Access().operator(Peer(b"x"), "") == ""


def test_with_keys_the_key_decides_and_a_token_is_nothing(tmp_path):
    allowed = AllowList(tmp_path / "allowed")
    peers = {}
    for name, role in (("robot", Role.ROBOT), ("anna", Role.OPERATOR)):
        public, _ = create_keys(tmp_path, name)
        allowed.allow(public, role)
        peers[name] = Peer(b"x", load_public(public).decode())
    allowed.refresh()
    access = Access(allowed, "")
    assert access.may_talk(peers["robot"])
    assert access.may_talk(peers["anna"])
    assert not access.may_talk(Peer(b"x"))
    assert not access.may_talk(Peer(b"x", "nobody's"))
    assert access.operator(peers["anna"], "") == "operator anna"
    assert access.operator(peers["robot"], "") == access.operator(Peer(b"x"), "") == ""
    allowed.revoke("anna")
    allowed.refresh()
    assert access.operator(peers["anna"], "") == ""


def test_the_token_is_made_once_and_kept_private(tmp_path):
    token = read_or_make_token(tmp_path)
    path = tmp_path / "operator.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) == 64
    assert read_or_make_token(tmp_path) == token
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        read_or_make_token(tmp_path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(ConfigError, match="holds no token"):
        read_or_make_token(tmp_path)


@pytest.fixture
def registry(tmp_path):
    registry = PolicyRegistry(tmp_path / "registry")
    registry.publish(write_linear_policy(tmp_path / "0.onnx", SPEC))
    return registry


def test_only_approved_versions_are_served(registry, tmp_path):
    listed = tmp_path / "approved"
    approved = ApprovedPolicies(listed)
    first = registry.current_version()
    with pytest.raises(ConfigError, match="cannot read the approved policies"):
        PolicyStore(registry, approved)
    listed.write_text("# nothing yet\n\n")
    with pytest.raises(ConfigError, match=f"{first} is not approved"):
        PolicyStore(registry, approved)
    listed.write_text(f"{first}  0.onnx\n")
    store = PolicyStore(registry, approved)
    try:
        second = registry.publish(write_linear_policy(tmp_path / "1.onnx", SPEC, bias=0.1))
        assert store.newest().result(20).current.policy_version == first
        assert store.failures == 1
        with pytest.raises(ConfigError, match="not approved"):
            store.version(second).result(20)
        listed.write_text(f"{first}  0.onnx\n{second}\n")
        assert store.version(second).result(20).current.policy_version == second
    finally:
        store.close()


@pytest.mark.parametrize("line", ["abc", "g" * 64, "A" * 64, "a" * 65])
def test_a_list_of_approved_policies_that_is_wrong_approves_nothing(tmp_path, line):
    listed = tmp_path / "approved"
    listed.write_text(f"{'a' * 64}  x.onnx\n{line}\n")
    with pytest.raises(ConfigError, match="line 2"):
        ApprovedPolicies(listed).require("a" * 64)
    listed.write_text(f"{'a' * 64}  x.onnx # fine\n")
    ApprovedPolicies(listed).require("a" * 64)
    listed.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod o-w"):
        ApprovedPolicies(listed).require("a" * 64)
