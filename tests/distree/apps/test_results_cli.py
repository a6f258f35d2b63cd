"""`distree results` prints what arrived, and nothing that a terminal would obey."""

from __future__ import annotations

import json

import pytest
from message_samples import RESULT, encoded

from distree.apps.results_cli import read
from distree.errors import RemoteProtocolError
from distree.transport.base import Received


def received(payload):
    return Received(topic="distree/v1/lab/p/result/cam", payload=payload, retain=False, token=None)


def test_a_result_is_printed_as_it_arrived():
    payload = encoded(RESULT)
    assert read(received(payload))[1] == payload.decode()


@pytest.mark.parametrize("later", ["\x9b2J", "\u202e"])
def test_what_a_terminal_would_obey_is_escaped(later):
    payload = json.dumps({**json.loads(encoded(RESULT)), "later": later}, ensure_ascii=False, indent=1).encode()
    text = read(received(payload))[1]
    assert text.isprintable()
    assert json.loads(text) == json.loads(payload)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_json_in_another_encoding_is_refused(encoding):
    with pytest.raises(RemoteProtocolError):
        read(received(encoded(RESULT).decode().encode(encoding)))


def test_half_a_character_is_refused():
    payload = encoded(RESULT)[:-1] + b',"later":"\xed\xa0\x80"}'
    with pytest.raises(RemoteProtocolError):
        read(received(payload))
