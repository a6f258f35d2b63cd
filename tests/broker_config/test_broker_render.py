"""Rendered configuration is compared with files, so that a change is seen and meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_config.passwords import hash_password, password_line
from broker_config.render import MosquittoSettings, WebsocketsSettings, iotcore_toml, mosquitto_conf

GOLDEN = Path(__file__).parent / "golden"

GUARDED = MosquittoSettings(
    port=8883,
    persistence=Path("/var/lib/distree/broker"),
    password_file=Path("/etc/distree/users"),
    acl_file=Path("/etc/distree/acl"),
    user="distree",
)

BROWSERS = MosquittoSettings(
    websockets=WebsocketsSettings(
        port=9001, password_file=Path("/etc/distree/users"), acl_file=Path("/etc/distree/acl")
    )
)

HASHED = (
    "eva:$7$20000$MDEyMzQ1Njc4OWFi$"
    "YkluFmqReenRvliF3a4OX+GNv8vT1j+/xMdDr7OKUx8n"
    "IKkOEKr7J8csir434m64tJSpIKYZh5Pn2/yJEd0DdA==\n"
)


@pytest.mark.parametrize(
    ("name", "rendered"),
    [
        ("loopback.conf", mosquitto_conf(MosquittoSettings())),
        ("guarded.conf", mosquitto_conf(GUARDED)),
        ("browsers.conf", mosquitto_conf(BROWSERS)),
        ("iotcore.toml", iotcore_toml(1883)),
    ],
)
def test_rendered_as_the_golden_file_has_it(name: str, rendered: str) -> None:
    assert rendered == (GOLDEN / name).read_text(encoding="utf-8")


def test_anonymous_clients_only_without_users_and_only_on_loopback() -> None:
    plain, guarded = mosquitto_conf(MosquittoSettings()), mosquitto_conf(GUARDED)
    assert "listener 1883 127.0.0.1\nallow_anonymous true\n" in plain
    assert "allow_anonymous false\n" in guarded


def test_a_password_is_written_as_mosquitto_passwd_does() -> None:
    """The hash is PBKDF2 with SHA-512 as OpenSSL has it, reckoned once with `openssl kdf`."""
    assert password_line("eva", hash_password("open sesame", b"0123456789ab")) == HASHED
