import pytest
import zmq
from zmq.utils import z85

from deploy.allow_list import AllowList, Role
from deploy.key_files import create_keys, load_public
from deploy.zap import KeyChecker


@pytest.fixture
def checker(tmp_path):
    context = zmq.Context()
    public, _ = create_keys(tmp_path, "robot")
    allowed = AllowList(tmp_path / "allowed")
    allowed.allow(public, Role.ROBOT)
    checker = KeyChecker(context, allowed)
    checker.good = [b"1.0", b"7", b"mpo_robot", b"127.0.0.1", b"", b"CURVE", z85.decode(load_public(public))]
    yield checker
    checker.stop()
    checker.stop()
    context.term()


def test_an_allowed_key_becomes_the_user_id(checker):
    reply = checker.answer(checker.good)
    assert reply == [b"1.0", b"7", b"200", b"OK", z85.encode(checker.good[6]), b""]


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (6, b"x" * 32),
        (6, b""),
        (6, b"x" * 31),
        (5, b"NULL"),
        (5, b"PLAIN"),
        (2, b""),
        (2, b"other"),
        (0, b"2.0"),
    ],
)
def test_everything_else_is_turned_away(checker, position, value):
    request = list(checker.good)
    request[position] = value
    assert checker.answer(request)[:3] == [b"1.0", b"7", b"300"]
    for count in range(7):
        assert checker.answer(checker.good[:count])[2] == b"300"


def test_an_allow_list_that_fails_turns_away_and_goes_on(checker, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(AllowList, "refresh", lambda self: 1 / 0)
        assert checker.answer(checker.good)[2] == b"300"
    assert checker.answer(checker.good)[2] == b"200"
