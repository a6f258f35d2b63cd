"""What `make fuzz` throws, a few of it: a decoder returns a message or raises RemoteProtocolError, and nothing else."""

from __future__ import annotations

import random

from benchmarks import fuzz
from distree.messages.codec import decode, encode
from distree.messages.layout import layout_of
from distree.messages.result import Result
from distree.topics import Kind
from tools.json_schema import MESSAGES


def test_spoiled_messages_of_every_kind(capsys):
    assert fuzz.run(5_000, seed=7) == 0
    told = capsys.readouterr().out
    assert all(kind.value in told for kind in Kind)


def test_any_message_that_may_be_declared_is_read_as_it_was_written():
    maker = fuzz.Maker(random.Random(11))
    for cls in MESSAGES.values():
        for _ in range(40):
            message = maker.record(cls)
            read = decode(cls, encode(message, fuzz.STAMP if cls is Result else None))
            # JSON is rounded for people.
            assert type(read) is cls
            assert layout_of(cls).is_json or read == message
