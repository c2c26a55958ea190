import json
import os
import shutil
import stat

import pytest
import zmq.auth

from deploy.allow_list import AllowList, Role
from deploy.key_files import create_keys, load_public, load_secret
from mpo_robot.cli.main import main
from mpo_robot.errors import ConfigError


@pytest.fixture
def made(tmp_path):
    """Key pairs by name: (public file, secret file)."""
    return {name: create_keys(tmp_path / "keys", name) for name in ("robot1", "robot2", "anna")}


@pytest.fixture
def allowed(tmp_path):
    return AllowList(tmp_path / "allowed")


def names(allowed):
    allowed.refresh()
    return [(entry.name, entry.role) for entry in allowed]


def test_keys_are_those_of_zmq_and_the_secret_is_private(made):
    public, secret = made["robot1"]
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert zmq.auth.load_certificate(secret) == load_secret(secret)
    assert zmq.auth.load_certificate(public) == (load_public(public), None)
    assert load_secret(secret)[0] == load_public(public)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o660])
def test_a_secret_that_others_can_reach_is_refused_with_the_remedy(made, mode):
    _, secret = made["robot1"]
    secret.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {secret}"):
        load_secret(secret)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a" * 65, "a b", "ü", "a\n"])
def test_names_that_must_not_become_files(tmp_path, name):
    with pytest.raises(ConfigError, match="not a name"):
        create_keys(tmp_path, name)


def test_allow_and_revoke_are_followed_and_audited(made, allowed):
    key = load_public(made["robot1"][0]).decode()
    assert not allowed.refresh() or allowed.find(key) is None
    allowed.allow(made["robot1"][0], Role.ROBOT)
    allowed.allow(made["anna"][0], Role.OPERATOR)
    assert allowed.refresh()
    assert not allowed.refresh()
    assert names(allowed) == [("anna", Role.OPERATOR), ("robot1", Role.ROBOT)]
    assert allowed.find(key).name == "robot1"
    assert [entry.name for entry in allowed.revoke("robot1")] == ["robot1"]
    assert allowed.refresh()
    assert allowed.find(key) is None
    entries = [json.loads(line) for line in (allowed.directory / "history.jsonl").read_text().splitlines()]
    assert [(entry["event"], entry["name"], entry["role"]) for entry in entries] == [
        ("allow", "robot1", "robot"),
        ("allow", "anna", "operator"),
        ("revoke", "robot1", "robot"),
    ]


def test_revoking_removes_the_key_under_all_its_names_and_roles(made, allowed):
    allowed.allow(made["robot1"][0], Role.OPERATOR)
    shutil.copy(made["robot1"][0], allowed.directory)
    shutil.copy(made["robot1"][0], allowed.directory / "alias.key")
    allowed.allow(made["robot2"][0], Role.ROBOT)
    assert allowed.find(load_public(made["robot1"][0]).decode()) is None  # not refreshed yet
    allowed.refresh()
    assert allowed.find(load_public(made["robot1"][0]).decode()).role is Role.OPERATOR
    assert len(allowed.revoke("robot1")) == 3
    assert names(allowed) == [("robot2", Role.ROBOT)]
    with pytest.raises(ConfigError, match=r"no key 'robot1'.*it has: robot2"):
        allowed.revoke("robot1")


def test_a_key_that_cannot_be_read_allows_nobody_and_can_be_revoked(made, allowed, caplog):
    allowed.allow(made["robot1"][0], Role.ROBOT)
    (allowed.directory / "bad.key").write_text("no key in here")
    assert names(allowed) == [("robot1", Role.ROBOT)]
    assert "bad.key" in caplog.text
    with pytest.raises(ConfigError, match=r"bad\.key"):
        allowed.require_usable()
    allowed.revoke("bad")
    allowed.require_usable()
    assert names(allowed) == [("robot1", Role.ROBOT)]


def test_what_must_not_be_added(made, allowed, tmp_path):
    with pytest.raises(ConfigError, match="never the secret one"):
        allowed.allow(made["robot1"][1], Role.ROBOT)
    allowed.allow(made["robot1"][0], Role.ROBOT)
    allowed.allow(made["robot1"][0], Role.ROBOT)  # again is fine
    other, _ = create_keys(tmp_path / "other", "robot1")
    with pytest.raises(ConfigError, match="another key of that name"):
        allowed.allow(other, Role.ROBOT)
    (tmp_path / "short.key").write_text('curve\n    public-key = "abcde"\n')
    with pytest.raises(ConfigError, match="cannot read key file"):
        allowed.allow(tmp_path / "short.key", Role.ROBOT)


@pytest.mark.parametrize("place", [".", "operators", "robot1.key", "operators/anna.key"])
@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_list_that_others_can_change_is_refused(made, allowed, place, mode):
    with pytest.raises(ConfigError, match="keys allow"):
        allowed.require_usable()
    allowed.allow(made["robot1"][0], Role.ROBOT)
    allowed.allow(made["anna"][0], Role.OPERATOR)
    allowed.require_usable()
    changed = allowed.directory / place
    changed.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod go-w {changed}"):
        allowed.require_usable()
    changed.chmod(0o755)
    allowed.require_usable()


def test_a_key_that_others_can_change_counts_for_nothing_while_they_can_and_is_told_once(made, allowed, caplog):
    """As a local user would do it: their own key into a file that the administrator has opened to everyone."""
    robot = load_public(made["robot2"][0]).decode()
    allowed.allow(made["anna"][0], Role.OPERATOR)
    allowed.allow(made["robot1"][0], Role.ROBOT)
    assert allowed.refresh()
    path = allowed.directory / "operators" / "anna.key"
    path.chmod(0o666)
    path.write_bytes(made["robot2"][0].read_bytes())
    assert allowed.refresh()
    assert allowed.find(robot) is None
    assert names(allowed) == [("robot1", Role.ROBOT)]
    assert [entry.name for entry in allowed.revoke("robot1")] == ["robot1"]
    assert allowed.refresh()  # another reading
    assert caplog.text.count("every user can write") == 1
    path.chmod(0o644)
    path.write_bytes(made["anna"][0].read_bytes())
    assert names(allowed) == [("anna", Role.OPERATOR)]
    path.chmod(0o666)
    assert allowed.refresh()
    assert caplog.text.count("every user can write") == 2


def test_a_list_that_others_can_change_while_the_server_runs_allows_nobody(made, allowed, caplog):
    allowed.allow(made["anna"][0], Role.OPERATOR)
    allowed.allow(made["robot1"][0], Role.ROBOT)
    for folder in (allowed.directory, allowed.directory / "operators", allowed.directory.parent):
        folder.chmod(0o777)
        assert names(allowed) == []
        assert f"-w {folder}`" in caplog.text
        folder.chmod(0o755)
        assert len(names(allowed)) == 2


def test_a_link_to_a_key_counts_for_nothing(made, allowed):
    allowed.allow(made["robot1"][0], Role.ROBOT)
    (allowed.directory / "linked.key").symlink_to(made["robot2"][0])
    assert names(allowed) == [("robot1", Role.ROBOT)]
    with pytest.raises(ConfigError, match=r"linked\.key is a symbolic link: put a copy"):
        allowed.require_usable()


def test_what_is_added_can_be_relied_on_whatever_the_umask(made, allowed):
    before = os.umask(0o002)
    try:
        allowed.allow(made["anna"][0], Role.OPERATOR)
        allowed.allow(made["robot1"][0], Role.ROBOT)
    finally:
        os.umask(before)
    allowed.require_usable()


def test_a_name_has_one_key_and_one_role_and_a_key_one_name(made, allowed, tmp_path):
    for role, other_role in ((Role.ROBOT, Role.OPERATOR), (Role.OPERATOR, Role.ROBOT)):
        allowed.allow(made["anna"][0], role)
        other, _ = create_keys(tmp_path / f"other-{role.value}", "anna")
        with pytest.raises(ConfigError, match="another key of that name"):
            allowed.allow(other, other_role)
    assert names(allowed) == [("anna", Role.OPERATOR)]
    assert not (allowed.directory / "anna.key").exists()  # no longer a robot too
    with pytest.raises(ConfigError, match=f"stays one: .*keys revoke {allowed.directory} anna"):
        allowed.allow(made["anna"][0], Role.ROBOT)
    alias = shutil.copy(made["anna"][0], tmp_path / "alias.key")
    with pytest.raises(ConfigError, match="that key is allowed already, as operator anna"):
        allowed.allow(alias, Role.ROBOT)
    assert names(allowed) == [("anna", Role.OPERATOR)]


def test_a_list_that_is_gone_allows_nobody(made, allowed):
    allowed.allow(made["robot1"][0], Role.ROBOT)
    allowed.refresh()
    shutil.rmtree(allowed.directory)
    assert allowed.refresh()
    assert list(allowed) == []


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["keys", "new", "robot1"]) == 0
    assert "never leaves this machine" in capsys.readouterr().out
    assert stat.S_IMODE((tmp_path / "keys" / "robot1.key_secret").stat().st_mode) == 0o600
    assert main(["keys", "new", "robot1"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["keys", "list", "allowed"]) == 0
    assert capsys.readouterr().out == "nobody\n"
    assert main(["keys", "allow", "allowed", "keys/robot1.key", "--operator"]) == 0
    assert main(["keys", "list", "allowed"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == f"allowed {listed[1]}"
    assert listed[1].split() == ["operator", "robot1", load_public(tmp_path / "keys" / "robot1.key").decode()]
    assert main(["keys", "revoke", "allowed", "robot1"]) == 0
    assert main(["keys", "revoke", "allowed", "robot1"]) == 2


def test_the_list_itself_may_be_a_link(made, allowed, tmp_path):
    allowed.allow(made["robot1"][0], Role.ROBOT)
    (tmp_path / "link").symlink_to(allowed.directory)
    linked = AllowList(tmp_path / "link")
    linked.require_usable()
    assert names(linked) == [("robot1", Role.ROBOT)]
