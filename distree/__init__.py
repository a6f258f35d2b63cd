"""DistrEE: distributed early exit of neural-network inference over MQTT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distree.client.results import Results
    from distree.messages.result import Result

__version__ = "0.1.0"

__all__ = ["Result", "Results", "__version__"]


_LAZY = {"Result": "distree.messages.result:Result", "Results": "distree.client.results:Results"}


def __getattr__(name: str) -> Any:
    # Loaded on demand: most modules of this package need no broker client.
    if name in _LAZY:
        from distree import lazy

        return lazy.load(_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
