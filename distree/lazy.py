"""What is imported by those alone who use it, so that a board starts fast."""

from __future__ import annotations

import importlib
from typing import Any


def load(path: str) -> Any:
    """Import a module and return what `path`, as `module:name`, names in it.

    >>> load("math:gcd")(6, 4)
    2
    """
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
