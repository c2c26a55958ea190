import json

import pytest

from deploy.registry import PolicyRegistry
from mpo_robot.cli.main import main
from tests.support.onnx_files import small_spec, write_linear_policy

SPEC = small_spec()


@pytest.fixture
def files(tmp_path):
    return [write_linear_policy(tmp_path / f"{number}.onnx", SPEC, bias=number / 10) for number in range(3)]


def test_publish_try_promote_roll_back_and_verify(files, tmp_path, capsys):
    folder = str(tmp_path / "registry")
    registry = PolicyRegistry(folder)
    assert main(["policies", "publish", folder, str(files[0])]) == 0
    a = registry.current_version()
    assert main(["policies", "trial", folder, str(files[1]), "--share", "0.2"]) == 0
    assert "on trial, 0.2 of the episodes" in capsys.readouterr().out
    b = registry.pointer().trial.version
    assert main(["policies", "end-trial", folder, "--reason", "enough"]) == 0
    assert main(["policies", "trial", folder, b[:10], "--share", "0.5"]) == 0
    assert main(["policies", "promote", folder]) == 0
    assert registry.current_version() == b
    assert main(["policies", "rollback", folder, "--reason", "limps"]) == 0
    assert registry.current_version() == a
    capsys.readouterr()
    assert main(["policies", "history", folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["publish", "trial", "trial_end", "trial", "promote", "rollback"]
    assert "limps" in lines[-1]
    assert "@" in lines[-1]
    assert main(["policies", "verify", folder]) == 0
    out = capsys.readouterr().out
    head = registry.audit.verify().head
    assert f"head {head}" in out
    assert main(["policies", "verify", folder, "--head", head]) == 0
    text = registry.audit.path.read_text()
    registry.audit.path.write_text(text.replace("limps", "walks"))
    assert main(["policies", "verify", folder, "--head", head]) == 1
    err = capsys.readouterr().err
    assert "does not hold the entry" in err
    assert "missing from the audit" in err


def test_a_policy_file_stands_for_the_registry_beside_it(files, capsys):
    registry = PolicyRegistry(f"{files[0]}.versions")
    registry.publish(files[0])
    registry.publish(files[1])
    assert main(["policies", "rollback", str(files[0])]) == 0
    assert len(registry.previous_versions()) == 0
    capsys.readouterr()
    assert main(["inspect", str(registry.directory), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["audit_head"] == registry.audit.verify().head
    assert facts["trial"] is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["rollback", "absent"], "no policy file or registry"),
        (["rollback", "REGISTRY"], "no version before"),
        (["promote", "REGISTRY"], "has no trial"),
        (["trial", "REGISTRY", "absent.onnx", "--share", "0.5"], "neither a file nor the beginning of one version"),
        (["trial", "REGISTRY", "1.onnx", "--share", "1.5"], "between 0 and 1"),
        (["publish", "REGISTRY", "absent.onnx"], "cannot read policy"),
        (["remote", "status", "--secret-key", "x"], "go together"),
        (["remote", "status", "--token", "absent"], "cannot read"),
        (["remote", "status", "--endpoint", "tcp://10.0.0.1:5"], "CURVE"),
    ],
)
def test_what_does_not_work_is_said(files, tmp_path, capsys, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    PolicyRegistry("REGISTRY").publish(files[0])
    assert main(["policies", *arguments]) == 2
    assert text in capsys.readouterr().err
