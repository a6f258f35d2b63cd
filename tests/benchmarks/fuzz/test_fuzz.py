"""A little of `make fuzz`, and that it sees what it is to see."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from benchmarks.fuzz import run
from benchmarks.fuzz.__main__ import as_markdown, counts, problems
from benchmarks.fuzz.mutations import Mutator
from benchmarks.fuzz.run import Tally, fuzz
from benchmarks.fuzz.target import Form, Target, constant
from benchmarks.fuzz.targets import TARGETS
from distree.errors import InputError

pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'distree[images]'")
pytest.importorskip("ai_edge_litert", reason="no LiteRT, which cuts networks")
pytest.importorskip("cryptography", reason="cryptography is not installed: pip install 'distree[signed]'")

CORPUS = Path(__file__).with_name("corpus")


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_of_each_target(name, tmp_path):
    target = TARGETS[name]
    count = 300 if target.unit == "messages" else 20 if target.in_child else 60
    tally = fuzz(target, count, 7, tmp_path)
    assert problems({name: tally}) == []
    assert tally.count == count == tally.accepted + tally.refused
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_damaged_was_good(name, tmp_path):
    for form in TARGETS[name].forms(tmp_path):
        form.read(form.fresh(random.Random(1)))


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_once_failed(path, tmp_path):
    """Files are named by target, form (a part of its name) and what was wrong."""
    target_name, form_name, _ = path.name.split("--")
    target = TARGETS[target_name]
    forms = [form for form in target.forms(tmp_path) if form_name in form.name]
    assert forms
    began = time.process_time()
    for form in forms:
        with contextlib.suppress(*target.refuses):
            form.read(path.read_bytes())
    assert time.process_time() - began < 5.0


# ---------------------------------------------------------------- that it would notice


def target_of(read, **more):
    return Target("bad", "messages", 1, lambda _folder: [Form("one", constant(b"x" * 50), read)], 8, **more)


def failing(read, tmp_path, count=400, **more):
    target = target_of(read, **more)
    tally = fuzz(target, count, 1, tmp_path)
    return tally.failures + tally.judge(target), sorted(tmp_path.iterdir())


def test_another_exception_is_a_failure_and_its_bytes_are_kept(tmp_path):
    def read(content):
        if len(content) < 40:
            raise KeyError("x")

    told, kept = failing(read, tmp_path)
    assert "KeyError" in told[0]
    assert str(kept[0]) in told[0] or any(str(path) in told[0] for path in kept)
    assert all(len(path.read_bytes()) < 40 for path in kept)


def test_a_long_refusal_is_a_failure(tmp_path):
    def read(content):
        if content != b"x" * 50:
            raise InputError("y" * 5000, "")

    assert "a refusal of 5000 characters" in failing(read, tmp_path)[0][0]


def test_good_ones_must_be_taken(tmp_path):
    def read(_content):
        raise InputError("no", "")

    assert "refused, although it is good" in failing(read, tmp_path)[0][0]


def test_a_crash_is_a_failure_and_its_bytes_are_kept(tmp_path):
    def read(content):
        if len(content) < 40:
            os.kill(os.getpid(), signal.SIGSEGV)

    told, kept = failing(read, tmp_path)
    assert "SIGSEGV" in told[0]
    assert len(kept) == 1
    assert len(kept[0].read_bytes()) < 40


def test_a_hang_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HANGS_S", 1.0)

    def read(content):
        if len(content) < 40:
            time.sleep(60.0)

    assert "not done after 1 s" in failing(read, tmp_path)[0][0]


def test_memory_beyond_what_is_allowed_is_a_failure(tmp_path):
    told, _ = failing(lambda _content: len(bytearray(9 << 20)), tmp_path)
    assert told == ["one took 9 MiB, of 8 allowed"]


@pytest.mark.parametrize(
    ("nbytes", "told"), [(30_000, ["in the second half"]), (300_000, ["of 56 allowed", "in the second half"])]
)
def test_a_leak_is_a_failure(tmp_path, nbytes, told):
    kept = []
    found, _ = failing(lambda _content: kept.append(os.urandom(nbytes)), tmp_path)
    assert [text in line for text, line in zip(told, found, strict=True)] == [True] * len(told)


# ---------------------------------------------------------------- its parts


def test_the_same_seed_damages_in_the_same_way():
    def made(seed):
        mutator = Mutator(random.Random(seed))
        return [mutator.damaged(b'{"a": [1, 2.5, "x"]}', damage) for damage in ("bytes", "json", "text") * 100]

    assert made(1) == made(1) != made(2)
    assert len(set(made(1))) > 200


def test_messages_and_files_are_shared_out():
    found = counts(1000, 500, list(TARGETS.values()))
    messages = [name for name, target in TARGETS.items() if target.unit == "messages"]
    assert abs(sum(found[name] for name in messages) - 1000) < 10
    assert abs(sum(found.values()) - 1500) < 20
    assert counts(1000, 500, [TARGETS["yaml"]]) == {"yaml": 500}


def test_the_table_has_a_row_for_each_target():
    told = as_markdown({"yaml": Tally(count=10, accepted=3, refused=7), "data": Tally()})
    assert len(told.splitlines()) == 4
    assert len({line.count("|") for line in told.splitlines()}) == 1
