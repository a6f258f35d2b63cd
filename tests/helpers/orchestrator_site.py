"""An orchestrator's service on a broker in memory, with clocks that stand still until told."""

from __future__ import annotations

from memory_transport import MemoryBroker
from orchestrator_samples import SITE, pipeline, send

from distree import topics
from distree.messages.codec import decode
from distree.messages.plan import Plan
from orchestrator.addresses import will_of
from orchestrator.config import StoreConfig
from orchestrator.service import Service
from orchestrator.store.database import Store

PLAN = topics.plan(SITE, "fashion")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Peer:
    """A client that only talks."""

    def __init__(self, broker, client_id):
        self.transport = broker.transport(client_id)
        self.transport.open(self, [])
        self.transport.connect_now(1.0)

    def connected(self): ...
    def disconnected(self, why): ...
    def received(self, message): ...
    def published(self, token): ...

    def given_up(self, token):
        pass

    def no_subscribers(self, topic, payload):
        pass

    def say(self, *messages):
        for message in messages:
            send(self.transport, message)

    def raw(self, topic, payload, retain=False):
        with self.transport.lock:
            self.transport.publish(topic, payload, qos=1, retain=retain)


class OrchestratorSite:
    """A broker, a store and a service; `others` are pipelines besides the one that `make` makes."""

    def __init__(self, path, broker=None, client_id="orchestrator", make=pipeline, others=(), **content):
        self.path, self.clock, self.client_id, self.make, self.others = path, Clock(), client_id, make, others
        self.broker = broker or MemoryBroker()
        self.peer = Peer(self.broker, f"peer-of-{client_id}")
        self.start(**content)

    def start(self, **content):
        self.store = Store(self.path)
        self.store.open()
        self.service = Service(
            SITE,
            [self.make(**content), *self.others],
            store=self.store,
            transport=self.broker.transport(self.client_id, will=will_of(SITE, self.client_id)),
            identity=self.client_id,
            retention=StoreConfig(path=self.path),
            clock=self.clock,
            wall=self.clock,
            **self.service_options(),
        )
        self.service.open()

    def service_options(self):
        """What a kind of site gives its service besides."""
        return {}

    def stop(self):
        self.service.close()
        self.store.close()

    close = stop

    def pass_time(self, seconds=2.0):
        """Let time pass in small steps, the service turning at each."""
        for _ in range(int(seconds / 0.25)):
            self.clock.now += 0.25
            self.service.turn(0.0)

    @property
    def published(self):
        payload = self.broker.retained(PLAN)
        return decode(Plan, payload) if payload else None


class Heard:
    """A client that keeps what is published on a topic, and what was retained there."""

    def __init__(self, site, topic):
        self.messages = []
        self.transport = site.broker.transport(f"heard-{topic[-20:]}")
        self.transport.open(self, [(topic, 1)])
        self.transport.connect_now(1.0)

    def connected(self): ...
    def disconnected(self, why): ...
    def published(self, token): ...
    def given_up(self, token): ...
    def no_subscribers(self, topic, payload): ...

    def received(self, message):
        self.transport.acknowledge(message.token)
        self.messages.append(message)

    def since(self):
        """Return the topics and payloads that came since the last call."""
        self.transport.poll(0.0)
        came, self.messages = [(one.topic, one.payload) for one in self.messages], []
        return came
