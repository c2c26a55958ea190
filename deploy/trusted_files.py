"""Files that decide who may do what count only if nobody but root and the user of this process can change them."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from mpo_robot.errors import ConfigError


def require_trusted(path: Path) -> None:
    """Refuse a file that others can change or replace.

    Raises:
        ConfigError: `find_doubt` or `find_doubt_above` has found something.
    """
    doubt = find_doubt(path) or find_doubt_above(path)
    if doubt:
        raise ConfigError(doubt)


def find_doubt(path: Path, links: bool = True) -> str:
    """Why others can change a file, or what is in a folder, with the remedy; empty if they cannot.

    An access control list that lets others write shows as the group's permission, and counts as that.

    Args:
        path: Of the file or folder.
        links: Look at what a symbolic link leads to; else a link is a reason by itself.
    """
    try:
        status = path.stat() if links else path.lstat()
    except OSError as error:
        return f"cannot read {path}: {error.strerror}"
    if stat.S_ISLNK(status.st_mode):
        return f"{path} is a symbolic link: put a copy of the file in its place"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        who = "every user" if status.st_mode & stat.S_IWOTH else "its group"
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        return f"{who} can write to {path} (mode {mode}): look at what it holds, then run `chmod go-w {path}`"
    return _doubt_of_owner(path, status)


def find_doubt_above(path: Path) -> str:
    """Why others can put another file or folder in the place of this one; empty if they cannot.

    All folders above it count, those above its links too. A group that may write there is trusted: that is what umask
    002 makes. So is a folder like /tmp, where only owners can move things (sticky bit).
    """
    above = {*Path(os.path.abspath(path)).parents, *Path(os.path.realpath(path)).parents}
    for folder in sorted(above):
        try:
            status = folder.stat()
        except OSError as error:
            return f"cannot read {folder}: {error.strerror}"
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            return f"every user can replace what is in {folder}, {path} too: run `chmod o-w {folder}`"
        if doubt := _doubt_of_owner(folder, status):
            return doubt
    return ""


def _doubt_of_owner(path: Path, status: os.stat_result) -> str:
    if status.st_uid in (0, os.geteuid()):
        return ""
    owner, user = _name(status.st_uid), _name(os.geteuid())
    return (
        f"{path} belongs to {owner}, who can change it; this program trusts root and its own user, {user}: look at "
        f"what it holds, then run `chown {user} {path}`, or run the program as {owner}"
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
