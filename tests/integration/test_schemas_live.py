"""Every message that real boards and a real orchestrator put on a broker fits the schema of its topic."""

from __future__ import annotations

import json
from collections import Counter

import jsonschema
import msgpack
import pytest
import yaml

from distree import topics
from distree.broker_settings import BrokerSettings, Session
from distree.messages.codec import PROBE, encode
from distree.messages.request import is_input
from distree.messages.site import Label
from distree.topics import DELIVERY, JSON, ROOT, Kind
from distree.transport import make_transport
from tools.json_schema import schema_of

pytestmark = pytest.mark.any_broker

VALIDATORS = {kind: jsonschema.Draft7Validator(schema_of(kind)) for kind in Kind}


class Tap:
    """Hears all of a broker and holds each message to the schema of its topic."""

    def __init__(self, port):
        self.transport = make_transport(
            BrokerSettings(port=port), client_id="tap", session=Session.NONE, receive_maximum=512
        )
        self.seen = Counter()
        self.faults = []
        self.transport.open(self, [(f"{ROOT}/#", 1)])
        self.transport.connect_now(10.0)

    def connected(self): ...
    def disconnected(self, why): ...
    def published(self, token): ...

    def given_up(self, token):
        pass

    def no_subscribers(self, topic, payload):
        pass

    def received(self, message):
        self.transport.acknowledge(message.token)
        kind = topics.parse(message.topic).kind
        if message.payload in (b"", PROBE) or (kind is Kind.INPUT and not is_input(message.payload)):
            return
        self.seen[kind] += 1
        if DELIVERY[kind].content_type == JSON:
            fields = json.loads(message.payload)
        else:
            fields = as_json(msgpack.unpackb(message.payload))
        self.faults += [f"{message.topic}: {fault.message}" for fault in VALIDATORS[kind].iter_errors(fields)]


def as_json(value):
    if isinstance(value, dict):
        return {name: as_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [as_json(part) for part in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


@pytest.fixture
def tap(site):
    tap = Tap(site.broker.port)
    yield tap
    tap.transport.close()


def hear(site, tap, kinds):
    def heard():
        tap.transport.poll(0.02)
        assert not tap.faults
        return tap.seen.keys() >= kinds

    site.watch.until(heard, f"{kinds - tap.seen.keys()}")


def test_of_a_chain_that_is_tuned(site, tap, images):
    config = {
        "site": "test",
        "broker": {"port": site.broker.port},
        "store": {"path": str(site.folder / "orchestrator.db")},
        "pipelines": [{"name": "fashion", "bundle": "fashion", "goal": {"accuracy_drop": 0.02}}],
        "home_assistant": {},
    }
    (site.folder / "orchestrator.yaml").write_text(yaml.safe_dump(config))
    site.start("orchestrator", "orchestrator", "run", "-c", str(site.folder / "orchestrator.yaml"))
    site.agent("cam", [0], origin={"source": {"kind": "mqtt"}, "deadline_ms": 20000, "thumbnails": {}})
    # An origin that finds nobody asks who is there.
    hear(site, tap, {Kind.CALL})
    site.agent("b1", [1, 2])
    # Without a plan the bundle's own thresholds hold, and nothing is audited.
    hear(site, tap, {Kind.PLAN})
    for k, image in enumerate(images[:60]):
        site.submit(f"r-{k}", f"{k}.png", image)
    site.watch.publish(topics.of_origin("test", "fashion", Kind.INPUT, "cam"), b"\x00short")
    site.watch.publish(topics.label("test", "fashion"), encode(Label(request="r-1", label="Bag")))
    hear(site, tap, set(Kind) - {Kind.EXIT, Kind.DECISION})
    site.watch.until(lambda: len(site.watch.final()) >= 60, "60 results")


def test_of_wide_stages(site, tap, tiny_mixed, tiny_path):
    site.bundle = str(tiny_mixed.path)
    for branch in range(3):
        site.agent(f"b{branch}", [1, 2], branch=branch)
    site.agent("last", [3])
    source = {"kind": "replay", "path": str(tiny_path), "max_inputs": 60}
    site.agent("cam", [0], origin={"source": source, "deadline_ms": 20000, "mode": "eager"})
    site.watch.until(lambda: len(site.watch.final()) == 60, "60 results")
    hear(site, tap, {Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.STAGE, Kind.EXIT, Kind.DECISION, Kind.RESULT})
