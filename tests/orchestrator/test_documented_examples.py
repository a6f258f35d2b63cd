"""The examples in the docstrings of the orchestrator."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import orchestrator

MODULES = [module.name for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_some():
    finder = doctest.DocTestFinder()
    found = [example for name in MODULES for example in finder.find(importlib.import_module(name)) if example.examples]
    assert len(found) >= 8
