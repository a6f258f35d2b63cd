"""Two orchestrators on one site, each with a store of its own: one plans, the other stands by and takes over."""

from __future__ import annotations

import re

import pytest
import yaml

from distree import topics
from distree.broker_settings import BrokerSettings
from distree.errors import Problem
from distree.messages.codec import decode
from distree.messages.plan import Plan
from distree.transport import make_transport
from distree.transport.base import Received

pytestmark = pytest.mark.any_broker


class Plans:
    """All plans of the site as they are published."""

    def __init__(self, port: int) -> None:
        self.epochs: list[int] = []
        self.transport = make_transport(BrokerSettings(port=port), client_id="plans")
        self.transport.open(self, [(topics.plan("test", "fashion"), 1)])
        self.transport.connect_now(10.0)

    def connected(self) -> None:
        pass

    def disconnected(self, why: Problem) -> None:
        pass

    def published(self, token: str) -> None:
        pass

    def given_up(self, token: str) -> None:
        pass

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        pass

    def received(self, message: Received) -> None:
        self.transport.acknowledge(message.token)
        self.epochs.append(decode(Plan, message.payload).epoch)


def start(site, name: str, threshold: float) -> None:
    path = site.folder / f"{name}.yaml"
    pipeline = {"name": "fashion", "bundle": "fashion", "criterion": "max_softmax", "thresholds": [threshold] * 2}
    config = {
        "site": "test",
        "broker": {"port": site.broker.port, "keepalive_s": 5},
        "store": {"path": str(site.folder / f"{name}.db")},
        "pipelines": [pipeline],
    }
    path.write_text(yaml.safe_dump(config))
    site.start(name, "orchestrator", "run", "-c", str(path))


def test_the_second_says_in_one_line_that_it_publishes_nothing_and_takes_over_when_the_first_is_killed(site):
    plans = Plans(site.broker.port)

    def until(condition, what: str) -> None:
        def turned() -> bool:
            plans.transport.poll(0.0)
            return condition()

        site.watch.until(turned, what)

    try:
        start(site, "first", 0.9)
        until(lambda: plans.epochs, "the first plan")
        start(site, "second", 0.5)
        until(lambda: "stands by" in site.log("second"), "the second to stand by")
        told = [line for line in site.log("second").splitlines() if "stands by" in line]
        assert len(told) == 1
        assert re.search(r"another orchestrator \([0-9a-f]{6}\) runs this site: this one .* publishes nothing", told[0])
        # What it wants differs, and nobody hears of it.
        site.agent("b1", [1])
        site.watch.until_reported("b1")
        plans.transport.poll(0.0)
        assert set(plans.epochs) == {plans.epochs[0]}
        assert site.watch.telemetry["b1"].pipelines[0].epoch == plans.epochs[0]
        site.processes["first"].kill()
        until(lambda: plans.epochs[-1] > plans.epochs[0], "the plan of the second")
        until(lambda: site.watch.telemetry["b1"].pipelines[0].epoch == plans.epochs[-1], "the agent to follow")
        assert site.processes["second"].poll() is None
    finally:
        with plans.transport.lock:
            plans.transport.close()
