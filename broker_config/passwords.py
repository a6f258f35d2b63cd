"""Passwords, and what brokers keep of them."""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass

PASSWORD_ROUNDS = 20_000
"""Rounds of PBKDF2; mosquitto uses the number that it finds with the hash."""

SALT_BYTES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedPassword:
    """PBKDF2 with SHA-512 in PASSWORD_ROUNDS rounds, by which a password can be checked but not found."""

    salt: bytes
    digest: bytes


def new_password() -> str:
    """Return a random password of 144 bits."""
    return secrets.token_urlsafe(18)


def hash_password(password: str, salt: bytes | None = None) -> HashedPassword:
    """Hash a password, with a random salt unless one is given."""
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    return HashedPassword(salt=salt, digest=hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PASSWORD_ROUNDS))


def password_line(user: str, hashed: HashedPassword) -> str:
    """Render one line of a mosquitto password file, as mosquitto_passwd writes it."""
    salt, digest = base64.b64encode(hashed.salt).decode(), base64.b64encode(hashed.digest).decode()
    return f"{user}:$7${PASSWORD_ROUNDS}${salt}${digest}\n"
