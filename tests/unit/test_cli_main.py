import argparse
import importlib
import os
import subprocess
import sys

import pytest

from mpo_robot import __version__
from mpo_robot.cli import main as cli
from mpo_robot.errors import ConfigError


@pytest.fixture
def install(monkeypatch):
    """Puts a function in the place of a command's `run`, or an error in the place of its import."""

    def put(run=None, import_error=None):
        def load(name):
            if import_error is not None:
                raise import_error
            return argparse.Namespace(add_arguments=lambda parser: None, run=run)

        monkeypatch.setattr(importlib, "import_module", load)

    return put


def test_no_command_prints_the_commands(capsys):
    assert cli.main([]) == 2
    text = capsys.readouterr().out
    for name, summary in cli.COMMANDS.items():
        assert name in text
        assert summary.split()[0] in text


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_load_no_command(arguments, install, capsys):
    install(import_error=AssertionError("a command was loaded"))
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    assert (__version__ if "--version" in arguments else "COMMAND") in capsys.readouterr().out


def test_an_unknown_command_exits_with_2_and_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["trian"])
    assert caught.value.code == 2
    assert "train" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: mpo-robot {name}" in capsys.readouterr().out


@pytest.mark.parametrize(("returned", "code"), [(0, 0), (None, 0), (1, 1)])
def test_the_command_decides_the_exit_code(install, returned, code):
    install(lambda args: returned)
    assert cli.main(["serve"]) == code


def test_bad_input_is_one_line_and_exit_code_2(install, capsys):
    def run(args):
        raise ConfigError("unknown key a: did you mean b?")

    install(run)
    assert cli.main(["serve"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "mpo-robot serve: unknown key a: did you mean b?\n"
    assert captured.out == ""


def test_ctrl_c_is_exit_code_130(install, capsys):
    def run(args):
        raise KeyboardInterrupt

    install(run)
    assert cli.main(["serve"]) == 130
    assert capsys.readouterr().err == "mpo-robot serve: interrupted\n"


def test_a_bug_keeps_its_traceback(install):
    def run(args):
        raise ZeroDivisionError

    install(run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["serve"])


def missing(name):
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_command_whose_package_is_not_installed_says_how_to_install_it(install, capsys):
    install(import_error=missing("torch"))
    assert cli.main(["train"]) == 2
    assert "package 'torch' is not installed" in capsys.readouterr().err


def test_a_package_missed_on_the_way_is_told_in_the_same_words(install, monkeypatch, capsys):
    def run(args):
        raise missing("dm_control.suite")

    install(run)
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == (
        "mpo-robot train: package 'dm_control' is not installed: this needs more than the robot-level install, use "
        "pip install 'mpo-robot[train]' and, on Python 3.13, pip install --no-deps dm-control\n"
    )


def test_a_missing_module_of_our_own_is_a_bug_and_keeps_its_traceback(install):
    install(import_error=missing("mpo_robot.cli.train"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["train"])


def test_a_reader_that_goes_away_neither_stops_the_command_nor_changes_its_exit_code(tmp_path):
    program = (
        "import argparse, importlib, sys\n"
        "from mpo_robot.cli import main as cli\n"
        "def run(args):\n"
        "    for index in range(3):\n"
        "        print('x' * 100_000, flush=True)\n"
        "        print('y', file=sys.stderr)\n"
        "    open(sys.argv[1], 'w').write('done')\n"
        "    print('left in the buffer')\n"
        "    return 1\n"
        "module = argparse.Namespace(add_arguments=lambda parser: None, run=run)\n"
        "importlib.import_module = lambda name: module\n"
        "sys.exit(cli.main(['serve']))\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", program, str(tmp_path / "proof")]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "y\n" * 3)
    assert (tmp_path / "proof").read_text() == "done"
