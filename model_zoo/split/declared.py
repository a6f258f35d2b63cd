"""What a user declares of a network's inputs: the keys `input` and `preprocess` of bundle.yaml, in a file of their own.

Images and arrays need none of it, since the network's input tells their size. Recordings do: no file of a network says
at which rate its sound was sampled, or which features of it the network takes.
"""

from __future__ import annotations

from pathlib import Path

from distree import strict_yaml
from distree.bundle.manifest import InputSpec, Preprocess
from distree.record import record


@record
class DeclaredInput:
    """The file that `distree zoo split --input` takes."""

    input: InputSpec
    preprocess: Preprocess


def load_declared(path: Path) -> DeclaredInput:
    """Read the file; ConfigError, with the line, where it is not one."""
    return strict_yaml.load(path, DeclaredInput)
