"""What Home Assistant is told about a site by MQTT discovery, so that boards and their answers appear automatically.

Discovery in its device form (https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload): one retained
message per board and one for the site on `{prefix}/device/{id}/config`. It names topics that carry JSON: states,
results, the orchestrator's claim, and `stats`, which the orchestrator publishes for this purpose. Home Assistant takes
values out of them by templates.

No I/O and no clock here: the service asks what to publish, writes it to the store and publishes it, so that what was
announced can be taken back even if the option has been switched off since.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from distree import __version__, topics
from distree.errors import Problem
from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.layout import layout_of
from distree.messages.result import Result
from distree.messages.site import Claim, OriginStats
from distree.topics import Kind
from orchestrator.config import HomeAssistantConfig
from orchestrator.fleet import Device, has_reported

Message: TypeAlias = "tuple[str, bytes]"
"""A topic and what is to be retained there; empty to take it back."""

Fields: TypeAlias = "dict[str, Any]"

SETTLE_S = 10.0
"""How long after a connect a board may be missing before it counts as removed: retained messages take a moment."""

MAX_BOARDS = 1000
"""Boards that Home Assistant is told of, the ones that reported first: it keeps each of them as entities."""

TOO_MANY = Problem(
    f"Home Assistant is told of {MAX_BOARDS:,} boards and of no more",
    "restrict in the broker's ACL who may publish as a board, and clear the retained states of boards that are gone",
)

_QOS = 1


def _key(cls: type, name: str) -> str:
    """Return the key of a field in JSON, from its declaration."""
    return next(field.key for field in layout_of(cls).fields if field.name == name)


def _value(cls: type, name: str) -> str:
    """Return a field of a received message as templates write it."""
    return f"value_json.{_key(cls, name)}"


_STATE = _value(DeviceState, "status")
_FINAL = _value(Result, "final")
_IF_FINAL = f"if {_FINAL} else this.state"
_PRESENT = (
    f"{{{{ 'online' if {_STATE} in ('{DeviceStatus.READY.value}', '{DeviceStatus.DRAINING.value}') else 'offline' }}}}"
)


def site_id(site: str) -> str:
    """Identifier of a site's own device. No id contains an underscore, so different things never share one."""
    return f"distree_{site}"


def device_id(site: str, device: str) -> str:
    """Identifier of a board."""
    return f"{site_id(site)}_{device}"


def config_topic(prefix: str, identifier: str) -> str:
    """Topic of the discovery message of a device."""
    return f"{prefix}/device/{identifier}/config"


def is_of_site(site: str, topic: str) -> bool:
    """Whether a discovery topic is one that an orchestrator of this site made."""
    identifier = topic.removesuffix("/config").rpartition("/")[2]
    own = site_id(site)
    return identifier == own or (identifier.startswith(f"{own}_") and topics.is_id(identifier[len(own) + 1 :]))


def _described(device: Device) -> Device | None:
    """Return the latest run of a board that has published both its state and its description; None if none has.

    A run that has published only one of them yet does not remove the board.
    """
    runs = (device, *device.earlier)
    return next((run for run in runs if run.meta is not None and run.status is not None), None)


def site_message(prefix: str, site: str, pipelines: Iterable[str]) -> Message:
    """Return the site's message: whether an orchestrator is running, and the last answer of each pipeline."""
    identifier = site_id(site)
    components = {
        "orchestrator": {
            "p": "binary_sensor",
            "name": "orchestrator",
            "device_class": "running",
            "entity_category": "diagnostic",
            "state_topic": topics.orchestrator(site),
            "value_template": f"{{{{ 'ON' if {_value(Claim, 'running')} else 'OFF' }}}}",
        }
    }
    for pipeline in pipelines:
        components |= _answers(pipeline, topics.of_origin(site, pipeline, Kind.RESULT, "+"))
    about = {"identifiers": [identifier], "name": f"DistrEE {site}", "manufacturer": "DistrEE"}
    return config_topic(prefix, identifier), _payload(identifier, about, components)


def device_message(prefix: str, site: str, device: Device) -> Message:
    """Return the message of a board with a description: its state, and its answers where it is an origin."""
    assert device.meta is not None  # noqa: S101 - the caller has checked
    identifier, state_topic = device_id(site, device.device), topics.device(site, device.device, Kind.STATE)
    components: Fields = {
        "state": {
            "p": "sensor",
            "name": "state",
            "device_class": "enum",
            "options": [status.value for status in DeviceStatus],
            "entity_category": "diagnostic",
            "state_topic": state_topic,
            "value_template": f"{{{{ {_STATE} }}}}",
            # A lost board is shown as lost, not as unavailable.
            "availability": [{"topic": state_topic, "value_template": "{{ 'online' }}"}],
        }
    }
    for pipeline in device.meta.origins:
        components |= _answers(pipeline, topics.of_origin(site, pipeline, Kind.RESULT, device.device))
        components |= _stats(pipeline, topics.of_origin(site, pipeline, Kind.STATS, device.device))
    about = {
        "identifiers": [identifier],
        "name": f"{site} {device.device}",
        "manufacturer": "DistrEE",
        "model": device.meta.machine,
        "sw_version": device.meta.version,
        "via_device": site_id(site),
    }
    shared = {"availability": [{"topic": state_topic, "value_template": _PRESENT}]}
    return config_topic(prefix, identifier), _payload(identifier, about, components, shared)


def _answers(pipeline: str, topic: str) -> Fields:
    """Describe the last final answer on a topic of results. A late one changes nothing."""
    shown = [_key(Result, name) for name in ("input", "confidence", "reason")]
    attributes = ", ".join(f"'{key}': of.get('{key}')" for key in shown)
    of = f"{{% set of = value_json if {_FINAL} else this.attributes %}}"
    return {
        f"{pipeline}_answer": {
            "p": "sensor",
            "name": f"{pipeline} answer",
            "state_topic": topic,
            "value_template": f"{{{{ {_value(Result, 'label')} {_IF_FINAL} }}}}",
            "json_attributes_topic": topic,
            "json_attributes_template": f"{of}{{{{ {{{attributes}}} | tojson }}}}",
        },
        f"{pipeline}_exit": {
            "p": "sensor",
            "name": f"{pipeline} exit",
            "state_topic": topic,
            "value_template": f"{{{{ {_value(Result, 'exit')} {_IF_FINAL} }}}}",
        },
        f"{pipeline}_latency": {
            "p": "sensor",
            "name": f"{pipeline} latency",
            "device_class": "duration",
            "unit_of_measurement": "ms",
            "state_class": "measurement",
            "suggested_display_precision": 1,
            "state_topic": topic,
            # For a number, an empty value changes nothing.
            "value_template": f"{{{{ {_value(Result, 'latency_s')} if {_FINAL} else '' }}}}",
        },
    }


def _stats(pipeline: str, topic: str) -> Fields:
    """Describe an origin's recent figures."""
    early = _value(OriginStats, "early_share")
    return {
        f"{pipeline}_early": {
            "p": "sensor",
            "name": f"{pipeline} early exits",
            "unit_of_measurement": "%",
            "state_class": "measurement",
            "suggested_display_precision": 1,
            "state_topic": topic,
            "value_template": f"{{{{ none if {early} is none else {early} * 100 }}}}",
        },
        f"{pipeline}_rate": {
            "p": "sensor",
            "name": f"{pipeline} answers",
            "unit_of_measurement": "/s",
            "state_class": "measurement",
            "suggested_display_precision": 1,
            "state_topic": topic,
            "value_template": f"{{{{ {_value(OriginStats, 'rate_hz')} }}}}",
        },
    }


def _payload(identifier: str, about: Fields, components: Fields, shared: Fields | None = None) -> bytes:
    named = {name: {**fields, "unique_id": f"{identifier}_{name}"} for name, fields in components.items()}
    said = {"dev": about, "o": {"name": "DistrEE", "sw": __version__}, "cmps": named, "qos": _QOS, **(shared or {})}
    return json.dumps(said, separators=(",", ":")).encode()


def updates(before: bytes | None, after: bytes) -> Iterator[bytes]:
    """Give what to publish, in order, so that Home Assistant drops the components that no longer exist.

    One that is merely left out would stay: it is first named with only its platform, as Home Assistant expects.
    """
    said = json.loads(after)
    was = json.loads(before)["cmps"] if before else {}
    if gone := {name: {"p": fields["p"]} for name, fields in was.items() if name not in said["cmps"]}:
        yield json.dumps({**said, "cmps": said["cmps"] | gone}, separators=(",", ":")).encode()
    yield after


class HomeAssistant:
    """What Home Assistant has been told about a site, and what is due. Every `now_s` is of one monotonic clock.

    With `config` None, everything that it was told before is taken back.
    """

    def __init__(self, config: HomeAssistantConfig | None, site: str, pipelines: Iterable[str]) -> None:
        self._prefix = None if config is None else config.prefix
        self._site = site
        self._pipelines = tuple(pipelines)
        self._announced: dict[str, bytes] = {}
        self._is_due = self._resend = True
        self._settled_at_s: float | None = None
        self._is_full = False
        self._stats_due: list[OriginStats] = []

    def recall(self, announced: Mapping[str, bytes]) -> None:
        """Take up what Home Assistant was told before, by topic."""
        self._announced = dict(announced)

    @property
    def is_on(self) -> bool:
        """Whether Home Assistant should know of the site."""
        return self._prefix is not None

    @property
    def birth_topic(self) -> str | None:
        """Topic on which Home Assistant says that it has started; None while this is off."""
        return None if self._prefix is None else f"{self._prefix}/status"

    def connected(self, now_s: float) -> None:
        """Announce everything again: the broker may have lost it."""
        self._is_due = self._resend = True
        self._settled_at_s = now_s + SETTLE_S

    def heard_birth(self, payload: bytes) -> None:
        """Announce everything again if Home Assistant has started."""
        if payload == b"online":
            self._is_due = self._resend = True

    @property
    def problem(self) -> Problem | None:
        """What keeps boards from being announced; None if nothing does."""
        return TOO_MANY if self._is_full else None

    def heard(self, device: str, *, reported: bool) -> None:
        """Check the boards again: one has said what it is, or, where it has not been announced, `reported`."""
        if not reported:
            self._is_due = True
        elif self._prefix is not None and not self._is_full:
            topic = config_topic(self._prefix, device_id(self._site, device))
            self._is_due |= topic not in self._announced

    def changed(self) -> None:
        """Check the boards again: one is gone."""
        self._is_due = True

    def take_stats(self, stats: Iterable[OriginStats]) -> None:
        """Have figures of origins published."""
        if self.is_on:
            self._stats_due += stats

    def stats_due(self) -> list[OriginStats]:
        """Return the figures that have not been published yet; they count as published."""
        due, self._stats_due = self._stats_due, []
        return due

    def due(self, now_s: float, devices: Iterable[Device]) -> list[Message]:
        """Return what to publish now, in this order; call `done` once it has been published."""
        is_settled = self._prefix is None or self._settled_at_s is None or now_s >= self._settled_at_s
        if is_settled and self._settled_at_s is not None:
            self._is_due, self._settled_at_s = True, None
        if not self._is_due:
            return []
        wanted, messages = self._wanted(devices), []
        for topic, payload in wanted.items():
            before = self._announced.get(topic)
            if self._resend or before != payload:
                messages += [(topic, each) for each in updates(before, payload)]
        if is_settled:
            messages += [(topic, b"") for topic in self._announced if topic not in wanted]
        return messages

    def done(self, messages: Iterable[Message]) -> None:
        """Note that what was due has been published."""
        self._announced.update(messages)
        self._announced = {topic: payload for topic, payload in self._announced.items() if payload}
        self._is_due = self._resend = False

    def _wanted(self, devices: Iterable[Device]) -> dict[str, bytes]:
        if self._prefix is None:
            return {}
        wanted = dict([site_message(self._prefix, self._site, self._pipelines)])
        new: list[Device] = []
        for device in devices:
            run = _described(device)
            if run is None:
                continue
            if config_topic(self._prefix, device_id(self._site, run.device)) in self._announced:
                wanted |= [device_message(self._prefix, self._site, run)]
            elif has_reported(device):
                new.append(run)
        # Whoever may publish descriptions can make up any number of boards.
        room = max(0, 1 + MAX_BOARDS - len(wanted))
        self._is_full = len(new) > room
        return wanted | dict(device_message(self._prefix, self._site, run) for run in new[:room])
