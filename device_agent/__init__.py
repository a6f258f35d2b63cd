"""A board: carries StageNode's effects between the broker, the interpreter and the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_agent.origin import Origin

__all__ = ["Origin"]


_LAZY = {"Origin": "device_agent.origin:Origin"}


def __getattr__(name: str) -> Any:
    # Loaded on demand: `import device_agent.config` should not pay for the interpreter.
    if name in _LAZY:
        from distree import lazy

        return lazy.load(_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
