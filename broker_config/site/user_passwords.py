"""Passwords in users' folders. A new one is written down before the broker learns it, and is in force once it has.

So whatever a command that was cut short has told the broker, the folder knows it: repeated, the command goes on with
the same password, and an administrator who changed its own can still log in.
"""

from __future__ import annotations

from pathlib import Path

from broker_config.passwords import new_password
from broker_config.site.private_files import write
from distree.regular_files import read_regular

_MAX_BYTES = 1024


def in_force(folder: Path, name: str) -> Path:
    """Return the file with a user's password."""
    return folder / f"{name}.secret"


def next_one(folder: Path, name: str) -> Path:
    """Return the file with the password that a user gets by a command that has not ended."""
    return folder / f"{name}.secret.next"


def prepare(folder: Path, name: str) -> str:
    """Write down a new password for a user, and return it; the one that a command that was cut short has left."""
    path = next_one(folder, name)
    if not path.exists():
        write(path, f"{new_password()}\n")
    return read_regular(path, _MAX_BYTES).decode().strip()


def put_in_force(folder: Path, name: str) -> None:
    """Replace a user's password by the one that was prepared, if there is one."""
    path = next_one(folder, name)
    if path.exists():
        path.replace(in_force(folder, name))
