"""Errors have two parts, what is wrong and how to fix it, and are told as one line."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from distree import errors
from distree.errors import (
    ConfigError,
    ConfigFileError,
    DistreeError,
    LocalProtocolError,
    Problem,
    ProtocolError,
    RemoteProtocolError,
)
from distree.transport.probe import HangUpError
from model_zoo.errors import DataError, ExportError
from orchestrator.restore import OtherTuningError
from orchestrator.store.database import StoreError

OURS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, DistreeError)]
PLAIN = [cls for cls in [*OURS, HangUpError, DataError, ExportError, StoreError] if not issubclass(cls, ProtocolError)]
PLAIN.remove(ConfigFileError)


@pytest.mark.parametrize("cls", PLAIN)
def test_an_error_is_what_is_wrong_and_how_to_fix_it(cls):
    error = cls("hub: no such host", "correct broker.host")
    assert (error.what, error.remedy) == error.problem == ("hub: no such host", "correct broker.host")
    assert str(error) == str(error.problem) == "hub: no such host; correct broker.host"
    assert str(cls("nothing can be done", "")) == "nothing can be done"
    with pytest.raises(TypeError):
        cls("without a remedy")


@pytest.mark.parametrize("cls", [RemoteProtocolError, LocalProtocolError])
def test_a_protocol_error_has_a_reason_too(cls):
    error = cls("size", "9 bytes", "send less")
    assert (error.reason, error.detail, error.what, error.remedy) == ("size", "9 bytes", "size: 9 bytes", "send less")
    assert str(error) == "size: 9 bytes; send less"
    assert str(cls("size", "9 bytes")) == "size: 9 bytes"


def test_several_problems_of_a_file_are_a_line_each():
    problems = [Problem("a.yaml:1: x", "remove it"), Problem("a.yaml: y", "")]
    error = ConfigFileError(problems)
    assert isinstance(error, ConfigError)
    assert error.problems == tuple(problems)
    assert str(error) == "a.yaml:1: x; remove it\na.yaml: y"


def test_a_problem_can_be_told_with_its_place():
    assert Problem("unknown key", "remove it").at("a.yaml:3") == ("a.yaml:3: unknown key", "remove it")


@pytest.mark.parametrize(
    "error",
    [
        *(cls("what", "remedy") for cls in PLAIN),
        RemoteProtocolError("size", "9 bytes", "send less"),
        ConfigFileError([Problem("a", "b"), Problem("c", "")]),
        OtherTuningError("other exits"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_copying_and_pickling(error):
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert (str(twin), twin.problem) == (str(error), error.problem)
        assert vars(twin) == vars(error)
