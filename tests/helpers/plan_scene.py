"""A board's node and the handler of its plans, without an agent around them."""

from __future__ import annotations

from types import SimpleNamespace

from node_fleet import node_settings

from device_agent.plan_handler import PlanHandler
from distree import topics
from distree.messages.codec import encode
from distree.messages.events import EventKind
from distree.messages.plan import Plan
from distree.node import StageNode
from distree.thresholds import NEVER

TOPIC = topics.plan("lab", "p")
PLAN = Plan(
    pipeline="p", epoch=3, model="toy", revision="r1", criterion="max_softmax", thresholds=(0.9, NEVER),
    reason="set by hand", author="alice@lab",
)  # fmt: skip


class PlanScene:
    """A plan's way into a node, by the handler of its topic; `told` and `reports` have what follows."""

    def __init__(self, seals=None):
        self.reports = 0
        self.node = StageNode(node_settings("cam", 0))
        pipeline = SimpleNamespace(node=self.node, config=SimpleNamespace(name="p"))
        self.route = PlanHandler(pipeline, self, seals)
        self.told = []

    def tell(self, kind, what, remedy="", *, pipeline):
        assert (kind, pipeline) == (EventKind.PLAN, "p")
        self.told.append(f"{what}; {remedy}")

    def report_soon(self):
        self.reports += 1

    def take(self, payload):
        payload = payload if isinstance(payload, bytes) else encode(payload)
        return self.route.take(SimpleNamespace(topic=TOPIC, payload=payload, token="token"))
