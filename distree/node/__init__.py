"""The node: what one board does for one pipeline, without clock, socket or thread. `python -m distree.node` prints how.

`node.py` joins the parts: `origin.py` (with `custody.py`, `audits.py`, `probes.py`, `circuits.py`), `inbox.py`,
`worker.py` and `branch.py` (with `deliveries.py` and `counters.py`), `fuser.py` (with `gathering.py`), `exits.py`.
"""

from __future__ import annotations

from distree.node.effects import Acknowledge, Drop, Effect, Fuse, Publish, Run
from distree.node.node import StageNode
from distree.node.origin import Accepted
from distree.node.settings import NodeSettings, OriginSettings

__all__ = [
    "Accepted",
    "Acknowledge",
    "Drop",
    "Effect",
    "Fuse",
    "NodeSettings",
    "OriginSettings",
    "Publish",
    "Run",
    "StageNode",
]
