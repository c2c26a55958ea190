import os
import subprocess

import pytest

from deploy import trusted_files
from deploy.trusted_files import find_doubt, find_doubt_above, require_trusted
from mpo_robot.errors import ConfigError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.key"
    path.write_text("key")
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o444, 0o755])
def test_what_only_its_owner_can_write_is_trusted(file, mode):
    file.chmod(mode)
    assert find_doubt(file) == ""
    require_trusted(file)


@pytest.mark.parametrize(("mode", "who"), [(0o666, "every user"), (0o602, "every user"), (0o664, "its group")])
def test_what_others_can_write_is_not_and_the_remedy_helps(file, mode, who):
    file.chmod(mode)
    with pytest.raises(ConfigError, match=rf"^{who} can write to {file} \(mode 0{mode:o}\)") as caught:
        require_trusted(file)
    command = str(caught.value).split("`")[1]
    assert command == f"chmod go-w {file}"
    subprocess.run(command.split(), check=True)
    require_trusted(file)


def test_what_belongs_to_another_user_is_not(file, monkeypatch):
    if os.geteuid() == 0:
        os.chown(file, 54321, -1)
    else:
        monkeypatch.setattr(trusted_files.os, "geteuid", lambda: 54321)
    assert "belongs to" in find_doubt(file)
    assert f" {file}`" in find_doubt(file)


def test_a_link_is_a_reason_where_links_are_not_wanted(file, tmp_path):
    link = tmp_path / "link.key"
    link.symlink_to(file)
    assert find_doubt(link) == ""
    assert "symbolic link" in find_doubt(link, links=False)
    file.chmod(0o666)
    assert "every user can write" in find_doubt(link)


def test_the_folders_above_count_also_those_of_links(tmp_path):
    real, linked = tmp_path / "real", tmp_path / "linked"
    for folder in (real / "in", linked):
        folder.mkdir(parents=True)
    file, link = real / "in" / "a.key", linked / "a.key"
    file.write_text("key")
    link.symlink_to(file)
    for folder in (real, real / "in", linked):
        folder.chmod(0o777)
        assert f"chmod o-w {folder}`" in find_doubt_above(link)
        folder.chmod(0o1777)  # like /tmp
        assert find_doubt_above(link) == ""
        folder.chmod(0o775)
        assert find_doubt_above(link) == ""


def test_what_is_not_there_is_no_file_to_rely_on(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        require_trusted(tmp_path / "none.key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_above_of_another_user_is_a_reason(tmp_path):
    (tmp_path / "theirs").mkdir()
    file = tmp_path / "theirs" / "a.key"
    file.write_text("key")
    assert find_doubt_above(file) == ""
    os.chown(tmp_path / "theirs", 54321, -1)
    assert str(tmp_path / "theirs") in find_doubt_above(file)
