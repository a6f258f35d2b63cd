"""Keys as text and as files, and messages that are signed."""

from __future__ import annotations

import stat
import sys

import pytest

from distree import topics
from distree.errors import ConfigError, RemoteProtocolError
from distree.messages.codec import decode, encode
from distree.messages.plan import Plan
from distree.signing import (
    PREFIX,
    PublicKeys,
    SigningKey,
    load_signing_key,
    new_signing_key,
    public_bytes,
)

pytest.importorskip("cryptography")

KEY = SigningKey(bytes(range(32)))
TOPIC = topics.plan("lab", "p")
PLAN = Plan(pipeline="p", epoch=3, model="toy", revision="r1", criterion="margin", thresholds=(0.9,), reason="by hand")


def test_a_signature_is_beside_the_message_that_it_signs():
    signed, plain = KEY.sign(TOPIC, PLAN, 7), encode(PLAN)
    assert decode(Plan, signed).signed == signed[-80:]
    assert signed[1 : len(plain)] == plain[1:]
    seal = PublicKeys([KEY.public]).check(TOPIC, signed)
    assert (seal.key, seal.sequence) == (KEY.id.hex(), 7)


def test_signatures_are_those_of_rfc_8032():
    """Its first test, of an empty message, for the library; the same key and number always sign alike."""
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = SigningKey(secret)
    assert public_bytes(key.public).hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key._key.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")
    assert key.sign(TOPIC, PLAN, 7) == key.sign(TOPIC, PLAN, 7) != key.sign(TOPIC, PLAN, 8)


def test_a_key_is_written_for_its_owner_alone_and_read_again(tmp_path):
    made = new_signing_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert load_signing_key(tmp_path / "key").public == made.public
    with pytest.raises(ConfigError, match="exists already"):
        new_signing_key(tmp_path / "key")
    with pytest.raises(ConfigError, match="No such file"):
        new_signing_key(tmp_path / "nowhere" / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ConfigError, match="run: chmod 600"):
        load_signing_key(tmp_path / "key")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"distree-signing-key ed25519:AAAA", b"A" * 44])
def test_a_file_that_is_no_key_is_refused(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not a signing key; make one: distree orchestrator keys --new FILE"):
        load_signing_key(path)


@pytest.mark.parametrize(
    "text", ["", "AAAA", PREFIX, PREFIX + "AAAA", PREFIX + "ä" * 44, KEY.public[:-1], KEY.public + "A"]
)
def test_a_text_that_is_no_key_is_refused(text):
    with pytest.raises(ConfigError, match="is no public key; copy what"):
        PublicKeys([text])


def test_whoever_lacks_the_package_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(ConfigError, match=r"pip install 'distree\[signed\]', or apt install python3-cryptography"):
        PublicKeys([KEY.public])


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 79, 80, 88, 89])
def test_a_message_of_any_length_is_refused_and_not_read_past(cut):
    with pytest.raises(RemoteProtocolError, match="signature"):
        PublicKeys([KEY.public]).check(TOPIC, KEY.sign(TOPIC, PLAN, 7)[-cut:] if cut else b"")
