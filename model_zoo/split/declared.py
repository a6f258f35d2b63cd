"""What a user declares of a network's inputs: the keys `input` and `preprocess` of bundle.yaml, in a separate file.

Images and arrays do not need it, since the network's input tensor says how large they are. Recordings do: a network's
file does not say at which rate the sound was sampled, or which features the network expects.
"""

from __future__ import annotations

from pathlib import Path

from distree import strict_yaml
from distree.bundle.manifest import InputSpec, Preprocess
from distree.record import record


@record
class DeclaredInput:
    """The file given to `distree zoo split --input`."""

    input: InputSpec
    preprocess: Preprocess


def load_declared(path: Path) -> DeclaredInput:
    """Read the file; ConfigError, with the line, if it is not valid."""
    return strict_yaml.load(path, DeclaredInput)
