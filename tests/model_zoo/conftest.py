"""What several tests of the zoo share: the shipped bundle, its samples, and how to call `distree zoo`."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import model_zoo
from distree.bundle.loading import Bundle, load_bundle
from model_zoo import cli
from model_zoo.data import LabelledExamples, load_examples

ZOO = Path(model_zoo.__file__).parent
SHIPPED = ZOO / "bundles" / "fashion"


@pytest.fixture(scope="session")
def fashion() -> Bundle:
    return load_bundle("fashion")


@pytest.fixture(scope="session")
def samples() -> LabelledExamples:
    return load_examples(ZOO / "samples" / "fashion.npz").labelled()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the shipped bundle that a test may damage."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "fashion"))


@pytest.fixture
def zoo() -> Callable[..., int]:
    """Run `distree zoo ARGUMENTS` in this process; give the exit status."""

    def call(*arguments: object) -> int:
        parser = argparse.ArgumentParser(prog="distree zoo")
        cli.add_arguments(parser)
        return cli.run(parser.parse_args([str(argument) for argument in arguments]))

    return call
