"""CURVE keys in files: NAME.key (public) and NAME.key_secret (readable by its owner only)."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import zmq
import zmq.auth
from zmq.utils import z85

from deploy.durable import replace_file
from mpo_robot.errors import ConfigError

PUBLIC_SUFFIX, SECRET_SUFFIX = ".key", ".key_secret"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def create_keys(directory: str | Path, name: str) -> tuple[Path, Path]:
    """Make NAME.key and NAME.key_secret and return both paths.

    Raises:
        ConfigError: not a name, one of them exists already, or the directory cannot be written.
    """
    folder = Path(directory)
    require_name(name)
    public_path, secret_path = folder / f"{name}{PUBLIC_SUFFIX}", folder / f"{name}{SECRET_SUFFIX}"
    for path in (public_path, secret_path):
        if path.exists():
            raise ConfigError(f"{path} exists already: choose another name, or remove it if no machine uses it")
    public, secret = zmq.curve_keypair()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(secret_path, _content(public, secret), mode=0o600)
        write_public(public_path, public)
    except OSError as error:
        raise ConfigError(f"cannot write keys to {folder}: {error.strerror}") from error
    return public_path, secret_path


def write_public(path: Path, public: bytes) -> None:
    """A public key's file; raises OSError."""
    replace_file(path, _content(public, None))


def load_public(path: Path) -> bytes:
    """The public key in a file, in Z85.

    Raises:
        ConfigError: it cannot be read or holds no key.
    """
    return _load(path)[0]


def load_secret(path: Path) -> tuple[bytes, bytes]:
    """Public and secret key in a file that its owner alone can read, in Z85.

    Raises:
        ConfigError: it cannot be read, holds no secret key, or others can read it.
    """
    public, secret = _load(path)
    if secret is None:
        raise ConfigError(f"{path} holds no secret key: give the NAME{SECRET_SUFFIX} file")
    require_private(path)
    return public, secret


def require_private(path: Path) -> None:
    """Refuse a secret that anyone but its owner can read or write.

    Raises:
        ConfigError: the mode is looser than 0600, or the file is gone.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if mode & _OTHERS:
        raise ConfigError(
            f"secret {path} can be read by other users (mode {stat.S_IMODE(mode):04o}): run `chmod 600 {path}`, and "
            "replace it by a new one if others may have read it"
        )


def require_name(name: str) -> None:
    """Refuse what must not become a file name.

    Raises:
        ConfigError: other characters than letters, digits and `._-`, or too many.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name[:80]!r} is not a name for a key: use 1 to 64 letters, digits, '.', '_' and '-'")


def _content(public: bytes, secret: bytes | None) -> bytes:
    """The format of zmq.auth's certificates."""
    lines = ["#   CURVE certificate of mpo_robot", "metadata", "curve", f'    public-key = "{public.decode()}"']
    if secret is None:
        lines[0] += ": public, may be shown to anyone"
    else:
        lines[0] += ": SECRET, must not leave this machine"
        lines.append(f'    secret-key = "{secret.decode()}"')
    return ("\n".join(lines) + "\n").encode()


def _load(path: Path) -> tuple[bytes, bytes | None]:
    if not path.is_file():
        raise ConfigError(f"cannot read key file {path}: there is none (`mpo-robot keys new` makes a pair)")
    try:
        public, secret = zmq.auth.load_certificate(path)
        for key in (public, secret):
            if key is not None and len(z85.decode(key)) != 32:
                raise ValueError("a key has 40 characters")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"cannot read key file {path}: {error}") from error
    return public, secret
