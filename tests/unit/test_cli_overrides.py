import argparse

import pytest

from mpo_robot.cli.main import main


@pytest.fixture
def command(monkeypatch):
    """Stands in for `serve` and keeps what it was called with."""
    calls = []

    def add_arguments(parser):
        parser.add_argument("policy")
        parser.add_argument("overrides", nargs="*")
        parser.add_argument("--seed", type=int)

    def run(args):
        calls.append(args)
        return 0

    module = argparse.Namespace(add_arguments=add_arguments, run=run)
    monkeypatch.setattr("importlib.import_module", lambda name: module)
    return calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["p", "a=1", "b.c=2", "--seed", "3"],
        ["p", "a=1", "--seed", "3", "b.c=2"],
        ["p", "--seed", "3", "a=1", "b.c=2"],
        ["--seed=3", "p", "a=1", "b.c=2"],
    ],
)
def test_overrides_may_stand_anywhere_after_the_command(command, arguments):
    assert main(["serve", *arguments]) == 0
    assert command[0].policy == "p"
    assert command[0].overrides == ["a=1", "b.c=2"]
    assert command[0].seed == 3


@pytest.mark.parametrize(
    "arguments", [["p", "--seed", "3", "stray"], ["p", "--unknown", "a=1"], ["p", "--seed", "3", "--unknown=1"]]
)
def test_anything_else_is_still_refused(command, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", *arguments])
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err
    assert command == []
