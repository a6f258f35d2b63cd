"""The node: what one board does for one pipeline, without clock, socket or thread. `python -m distree.node` prints how.

`node.py` joins the parts: `origin.py` (with `custody.py`, `dispatch.py`, `background.py`), `members.py` and
`routing.py`, `inbox.py`, `worker.py` and `branch.py` (with `deliveries.py` and `counters.py`), `fuser.py` (with
`gathering.py`), `announcer.py`, `exits.py`.
"""

from __future__ import annotations

from distree.node.effects import Acknowledge, Announce, Drop, Effect, Fuse, Listen, Publish, Run, Tell
from distree.node.node import StageNode
from distree.node.origin import AcceptedInput
from distree.node.settings import NodeSettings, OriginSettings

__all__ = [
    "AcceptedInput",
    "Acknowledge",
    "Announce",
    "Drop",
    "Effect",
    "Fuse",
    "Listen",
    "NodeSettings",
    "OriginSettings",
    "Publish",
    "Run",
    "StageNode",
    "Tell",
]
