"""Topics, version 1: the one place that builds and parses them, with the QoS and retain flag of each kind.

distree/1/{site}/device/{device}/{state,meta,telemetry,dead}
distree/1/{site}/orchestrator
distree/1/{site}/pipeline/{pipeline}/plan
distree/1/{site}/pipeline/{pipeline}/truth
distree/1/{site}/pipeline/{pipeline}/stage/{k}
distree/1/{site}/pipeline/{pipeline}/{input,outcome,result,audit,stats,thumbnail}/{origin}
distree/1/{site}/pipeline/{pipeline}/{exit,decision}/{device}
"""

from __future__ import annotations

import enum
import re

from distree.errors import ConfigError, RemoteProtocolError
from distree.record import record
from distree.types import Lane

ROOT = "distree/1"

_ID = re.compile(r"[a-z0-9-]{1,32}")


class Kind(str, enum.Enum):
    """What a topic carries; the value is the word that stands in the topic."""

    STATE = "state"
    """What a device does: init, ready, draining, disconnected, lost; with a boot id. Also its will."""
    META = "meta"
    """What a device is: versions, runtime, memory, stages."""
    TELEMETRY = "telemetry"
    """A device's counters since boot, latencies and times of stages."""
    DEAD = "dead"
    """A message that a device refused: its topic, why, its size and first bytes."""
    PLAN = "plan"
    """By which criterion and thresholds exits are taken, and the share of inputs audited; from the orchestrator."""
    STAGE = "stage"
    """An input (stage 0) or features (later stages), for one board of that stage, or one of each branch."""
    INPUT = "input"
    """An input for an origin whose source is mqtt: raw bytes, an encoded image, or msgpack with a name."""
    OUTCOME = "outcome"
    """The answer to an input, from the board where it left, to its origin."""
    RESULT = "result"
    """The answer to an input, from its origin, for dashboards and programs."""
    EXIT = "exit"
    """A branch's embedding, to the board that fuses."""
    DECISION = "decision"
    """Go on or stop, from the board that fuses, to a board of a branch."""
    AUDIT = "audit"
    """What all exits said of an input drawn by lot, for the orchestrator."""
    TRUTH = "truth"
    """What an input really was; from users, for the orchestrator."""
    STATS = "stats"
    """How an origin did between two reports: rate, early exits, latency; from an orchestrator with `home_assistant`."""
    THUMBNAIL = "thumbnail"
    """A small picture of an input, for dashboards; from an origin with `thumbnails`."""
    ORCHESTRATOR = "orchestrator"
    """Which orchestrator plans the site. Also its will."""


@record
class Delivery:
    """How messages of one kind are published, and in which lane they wait for the connection."""

    qos: int
    retain: bool
    content_type: str
    lane: Lane


JSON = "application/json"
MSGPACK = "application/msgpack"

DELIVERY: dict[Kind, Delivery] = {
    Kind.STATE: Delivery(qos=1, retain=True, content_type=JSON, lane=Lane.LATEST),
    Kind.META: Delivery(qos=1, retain=True, content_type=JSON, lane=Lane.LATEST),
    Kind.TELEMETRY: Delivery(qos=0, retain=False, content_type=MSGPACK, lane=Lane.LOSSY),
    Kind.DEAD: Delivery(qos=1, retain=False, content_type=JSON, lane=Lane.LOSSY),
    Kind.PLAN: Delivery(qos=1, retain=True, content_type=MSGPACK, lane=Lane.LATEST),
    Kind.STAGE: Delivery(qos=1, retain=False, content_type=MSGPACK, lane=Lane.WORK),
    Kind.INPUT: Delivery(qos=1, retain=False, content_type="application/octet-stream", lane=Lane.OWED),
    Kind.OUTCOME: Delivery(qos=1, retain=False, content_type=MSGPACK, lane=Lane.WORK),
    Kind.RESULT: Delivery(qos=1, retain=False, content_type=JSON, lane=Lane.OWED),
    Kind.EXIT: Delivery(qos=1, retain=False, content_type=MSGPACK, lane=Lane.WORK),
    Kind.DECISION: Delivery(qos=1, retain=False, content_type=MSGPACK, lane=Lane.WORK),
    Kind.AUDIT: Delivery(qos=1, retain=False, content_type=MSGPACK, lane=Lane.AUDIT),
    Kind.TRUTH: Delivery(qos=1, retain=False, content_type=JSON, lane=Lane.OWED),
    Kind.STATS: Delivery(qos=0, retain=False, content_type=JSON, lane=Lane.LOSSY),
    Kind.THUMBNAIL: Delivery(qos=0, retain=False, content_type=MSGPACK, lane=Lane.LOSSY),
    Kind.ORCHESTRATOR: Delivery(qos=1, retain=True, content_type=JSON, lane=Lane.LATEST),
}

_OF_DEVICE = frozenset({Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.DEAD})
_OF_ORIGIN = frozenset({Kind.INPUT, Kind.OUTCOME, Kind.RESULT, Kind.AUDIT, Kind.STATS, Kind.THUMBNAIL})
_OF_WIDE = frozenset({Kind.EXIT, Kind.DECISION})


def is_id(value: str) -> bool:
    """Whether `value` may stand in a topic."""
    return _ID.fullmatch(value) is not None


def check_id(value: str, what: str) -> str:
    """Return `value` if it is an id of `[a-z0-9-]{1,32}`; raise ConfigError naming `what` otherwise."""
    if not _ID.fullmatch(value):
        raise ConfigError(f"{what}: {value!r} is not an id; use 1 to 32 of a-z, 0-9 and '-'")
    return value


def device(site: str, device_id: str, kind: Kind) -> str:
    """Topic of a device's state, meta, telemetry or dead letters."""
    assert kind in _OF_DEVICE  # noqa: S101 - a programming error, not a message's
    return f"{ROOT}/{site}/device/{device_id}/{kind.value}"


def plan(site: str, pipeline: str) -> str:
    """Topic of a pipeline's retained plan."""
    return f"{ROOT}/{site}/pipeline/{pipeline}/plan"


def truth(site: str, pipeline: str) -> str:
    """Topic on which users tell what inputs of a pipeline really were."""
    return f"{ROOT}/{site}/pipeline/{pipeline}/truth"


def orchestrator(site: str) -> str:
    """Topic of the retained claim of the orchestrator that plans a site."""
    return f"{ROOT}/{site}/orchestrator"


def stage(site: str, pipeline: str, k: int) -> str:
    """Topic on which stage `k` of a pipeline takes inputs (k = 0) or features."""
    return f"{ROOT}/{site}/pipeline/{pipeline}/stage/{k}"


def shared_stage(site: str, pipeline: str, k: int, branch: int = 0) -> str:
    """Subscription by which the boards of one branch of a stage share its messages.

    The group names the site too: some brokers keep groups by name alone, whatever their topic.
    """
    return f"$share/{site}-{pipeline}-{k}-{branch}/{stage(site, pipeline, k)}"


def of_origin(site: str, pipeline: str, kind: Kind, origin: str) -> str:
    """Topic of an origin's raw inputs, outcomes, results, audits, figures or thumbnails."""
    assert kind in _OF_ORIGIN  # noqa: S101
    return f"{ROOT}/{site}/pipeline/{pipeline}/{kind.value}/{origin}"


def of_wide(site: str, pipeline: str, kind: Kind, device_id: str) -> str:
    """Topic of the embeddings that a board fuses, or of the decisions that a board of a branch waits for."""
    assert kind in _OF_WIDE  # noqa: S101
    return f"{ROOT}/{site}/pipeline/{pipeline}/{kind.value}/{device_id}"


def template(kind: Kind) -> str:
    """Topic of a kind with what varies in braces.

    >>> template(Kind.RESULT)
    'distree/1/{site}/pipeline/{pipeline}/result/{origin}'
    """
    site, pipeline = "{site}", "{pipeline}"
    if kind in _OF_DEVICE:
        return device(site, "{device}", kind)
    if kind in _OF_ORIGIN:
        return of_origin(site, pipeline, kind, "{origin}")
    if kind in _OF_WIDE:
        return of_wide(site, pipeline, kind, "{device}")
    if kind is Kind.ORCHESTRATOR:
        return orchestrator(site)
    return f"{ROOT}/{site}/pipeline/{pipeline}/{kind.value}" + ("/{stage}" if kind is Kind.STAGE else "")


@record
class Address:
    """A parsed topic. Fields that a kind does not have are None."""

    site: str
    kind: Kind
    device: str | None = None
    pipeline: str | None = None
    stage: int | None = None
    origin: str | None = None


def parse(topic: str) -> Address:
    """Parse a topic of version 1; raise RemoteProtocolError("topic") for anything else."""
    parts = topic.split("/")
    if parts[:2] == ["distree", "1"] and all(_ID.fullmatch(part) for part in parts[2:]):
        match parts[2:]:
            case [site, "device", device_id, ("state" | "meta" | "telemetry" | "dead") as word]:
                return Address(site=site, kind=Kind(word), device=device_id)
            case [site, "orchestrator"]:
                return Address(site=site, kind=Kind.ORCHESTRATOR)
            case [site, "pipeline", pipeline, ("plan" | "truth") as word]:
                return Address(site=site, kind=Kind(word), pipeline=pipeline)
            case [site, "pipeline", pipeline, "stage", k] if k.isdigit() and len(k) <= 3:
                return Address(site=site, kind=Kind.STAGE, pipeline=pipeline, stage=int(k))
            case [site, "pipeline", pipeline, word, origin] if word in _OF_ORIGIN:
                return Address(site=site, kind=Kind(word), pipeline=pipeline, origin=origin)
            case [site, "pipeline", pipeline, ("exit" | "decision") as word, device_id]:
                return Address(site=site, kind=Kind(word), pipeline=pipeline, device=device_id)
    raise RemoteProtocolError("topic", f"{topic[:120]!r} is not a topic of {ROOT}")
