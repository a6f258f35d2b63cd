"""Topics, version 1: their one table, and the functions that build and parse them by it.

For each kind of message the table says what its topics look like, who publishes them, who subscribes to them, and how
they are delivered. Agents, the orchestrator, `distree doctor`, the access rules of brokers (`distree/roles.py`) and the
documentation read it. Topics between boards end in the sender's id, so that a broker's rules can hold everyone to their
own name.
"""

from __future__ import annotations

import enum
import functools
import itertools
import re
from typing import Any

from distree.errors import ConfigError, RemoteProtocolError
from distree.lanes import Lane
from distree.printable import quoted
from distree.record import record

ROOT = "distree/1"

ALL = "all"
"""Stands for an addressee: all boards of a wide stage, of which a route names some. No board may have this id."""

_ID = re.compile(r"[a-z0-9-]{1,32}")
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


class Kind(str, enum.Enum):
    """What a topic carries; the value is the word that stands in the topic."""

    STATE = "state"
    """State of a device: init, ready, draining, disconnected or lost, with a boot id. Also its will."""
    META = "meta"
    """Description of a device: versions, runtime, memory, stages."""
    TELEMETRY = "telemetry"
    """A device's counters since boot, its latencies and the times of its stages."""
    DEAD = "dead"
    """A message that a device refused: its topic, the reason, its size and its first bytes."""
    EVENT = "event"
    """Something that people should know of a device: an input refused, a source that died, a full disk."""
    SITE_EVENT = "site-event"
    """Something that people should know of a site, from its orchestrator: a board that was lost, or is back."""
    ECHO = "echo"
    """Tiny messages of a device to itself, two at a time, to see whether the broker holds the second one back."""
    PLAN = "plan"
    """Criterion and thresholds by which exits are taken, and the share of inputs to audit; from the orchestrator."""
    MEMBER = "member"
    """Which stages of the pipeline a board serves, with which revisions of the bundle; empty once it does not."""
    CALL = "call"
    """Asks the boards of a pipeline to announce again what they serve, if the broker has not retained it."""
    STAGE = "stage"
    """An input (stage 0) or features (later stages), for a board that the origin chose, or for one board per branch."""
    INPUT = "input"
    """An input for an origin whose source is mqtt: what a file would hold, by itself or in msgpack with a name."""
    OUTCOME = "outcome"
    """The answer to an input, from the board where it left, to its origin."""
    RESULT = "result"
    """The answer to an input, from its origin, for dashboards and programs."""
    EXIT = "exit"
    """A branch's embedding, to the board that fuses."""
    DECISION = "decision"
    """Go on or stop, from the board that fuses to a board that runs a branch."""
    AUDIT = "audit"
    """What all exits answered for an input drawn at random, for the orchestrator."""
    LABEL = "label"
    """What an input really was; from users who are trusted with that, for the orchestrator's tuning."""
    STATS = "stats"
    """How an origin did between two reports: rate, early exits, latency; from an orchestrator with `home_assistant`."""
    THUMBNAIL = "thumbnail"
    """A small picture of an input, for dashboards; from an origin with `thumbnails`."""
    ORCHESTRATOR = "orchestrator"
    """Which orchestrator plans the site. Also that orchestrator's will."""


class Role(str, enum.Enum):
    """Who publishes or subscribes. A board has several roles, and others in each pipeline."""

    BOARD = "board"
    """Every board, for itself and its pipelines."""
    STAGE = "stage"
    """A board that serves stages of the pipeline, or branches of them."""
    BRANCH = "branch"
    """A board that runs a branch of wide stages."""
    FUSER = "fuser"
    """A board that fuses embeddings: an origin of wide stages for itself, a hub for others."""
    HUB = "hub"
    """A board that fuses for others: `fuse: true`."""
    ORIGIN = "origin"
    """A board that has inputs of its own."""
    ORCHESTRATOR = "orchestrator"
    """The orchestrator that plans the site."""
    DASHBOARD = "dashboard"
    """A program that shows results, pictures, boards and plans: `distree dashboard`, `distree results`, Node-RED."""
    READER = "reader"
    """A program that watches boards and plans, but sees neither inputs nor answers: `distree top`, monitoring."""
    SUBMITTER = "submitter"
    """A program that hands inputs to origins and reads their answers: `distree submit`."""
    LABELLER = "labeller"
    """A program that tells what inputs really were, by which thresholds are tuned."""
    HOME_ASSISTANT = "home-assistant"
    """Home Assistant, which also has topics of its own below its discovery prefix."""
    PROGRAM = "program"
    """Another program on the same broker, such as Frigate, which has topics of its own and none of the site."""
    ADMINISTRATOR = "administrator"
    """A person who may publish and read everything on the site, to repair it and to change its users."""


BOARD_ROLES = frozenset({Role.BOARD, Role.STAGE, Role.BRANCH, Role.FUSER, Role.HUB, Role.ORIGIN})
"""What boards are, as opposed to programs and people."""


@record
class Delivery:
    """How messages of one kind are published, and in which lane they wait for the connection."""

    qos: int
    retain: bool
    content_type: str
    lane: Lane


JSON = "application/json"
MSGPACK = "application/msgpack"

_LATEST = Delivery(qos=1, retain=True, content_type=JSON, lane=Lane.LATEST)
_WORK = Delivery(qos=1, retain=False, content_type=MSGPACK, lane=Lane.WORK)
_LOSSY = Delivery(qos=0, retain=False, content_type=MSGPACK, lane=Lane.LOSSY)
_EVENT = Delivery(qos=1, retain=False, content_type=JSON, lane=Lane.LOSSY)


@record
class Topic:
    """A row of the table. `form` is what stands below `distree/1/{site}/`, with what varies in braces."""

    form: str
    publishers: frozenset[Role]
    subscribers: frozenset[Role]
    delivery: Delivery
    reads_back: bool = False
    """Whether whoever publishes there also reads it, on its own topics."""

    @property
    def author(self) -> str | None:
        """The name in braces that must be that of the board that publishes; None where other programs publish."""
        if "{sender}" in self.form:
            return "sender"
        if not self.publishers <= BOARD_ROLES:
            return None
        return "device" if "{device}" in self.form else "origin"

    @property
    def addressee(self) -> str | None:
        """The name in braces that must be that of the board that reads; None where it is for whoever may read it."""
        others = [name for name in ("to", "device", "origin") if f"{{{name}}}" in self.form and name != self.author]
        return others[0] if others and self.subscribers <= BOARD_ROLES else None


def _row(
    form: str, publishers: set[Role], subscribers: set[Role], delivery: Delivery, *, reads_back: bool = False
) -> Topic:
    return Topic(
        form=form,
        publishers=frozenset(publishers),
        subscribers=frozenset(subscribers),
        delivery=delivery,
        reads_back=reads_back,
    )


_WATCHING = {Role.DASHBOARD, Role.READER}

TABLE: dict[Kind, Topic] = {
    Kind.STATE: _row(
        "device/{device}/state",
        {Role.BOARD},
        {Role.ORIGIN, Role.ORCHESTRATOR, Role.SUBMITTER, Role.HOME_ASSISTANT, *_WATCHING},
        _LATEST,
        reads_back=True,
    ),
    Kind.META: _row("device/{device}/meta", {Role.BOARD}, {Role.ORCHESTRATOR, Role.SUBMITTER, *_WATCHING}, _LATEST),
    Kind.TELEMETRY: _row("device/{device}/telemetry", {Role.BOARD}, {Role.ORCHESTRATOR, *_WATCHING}, _LOSSY),
    # Neither a dead letter nor a thumbnail is for readers: both show something of an input.
    Kind.DEAD: _row("device/{device}/dead", {Role.BOARD}, {Role.SUBMITTER}, _EVENT),
    Kind.EVENT: _row("device/{device}/event", {Role.BOARD}, {Role.ORCHESTRATOR, *_WATCHING}, _EVENT),
    Kind.ECHO: _row(
        "device/{device}/echo",
        {Role.BOARD},
        set(),
        Delivery(qos=0, retain=False, content_type=JSON, lane=Lane.LOSSY),
        reads_back=True,
    ),
    Kind.SITE_EVENT: _row("site-event", {Role.ORCHESTRATOR}, _WATCHING, _EVENT),
    Kind.ORCHESTRATOR: _row(
        "orchestrator", {Role.ORCHESTRATOR}, {Role.HOME_ASSISTANT, *_WATCHING}, _LATEST, reads_back=True
    ),
    Kind.PLAN: _row(
        "pipeline/{pipeline}/plan",
        {Role.ORCHESTRATOR},
        {Role.BOARD, *_WATCHING},
        Delivery(qos=1, retain=True, content_type=MSGPACK, lane=Lane.LATEST),
        reads_back=True,
    ),
    Kind.LABEL: _row(
        "pipeline/{pipeline}/label",
        {Role.LABELLER},
        {Role.ORCHESTRATOR},
        Delivery(qos=1, retain=False, content_type=JSON, lane=Lane.OWED),
    ),
    Kind.MEMBER: _row(
        # Every board clears what an earlier configuration of it announced.
        "pipeline/{pipeline}/member/{stage}/{device}",
        {Role.BOARD},
        {Role.ORIGIN, *_WATCHING},
        _LATEST,
        reads_back=True,
    ),
    Kind.CALL: _row(
        "pipeline/{pipeline}/call/{sender}",
        {Role.ORIGIN, Role.ORCHESTRATOR},
        {Role.BOARD},
        Delivery(qos=1, retain=False, content_type=JSON, lane=Lane.LOSSY),
    ),
    Kind.STAGE: _row(
        "pipeline/{pipeline}/stage/{stage}/{to}/{sender}",
        {Role.ORIGIN, Role.STAGE, Role.FUSER},
        {Role.STAGE},
        _WORK,
    ),
    Kind.EXIT: _row(
        # From an origin it holds nothing, and asks whether the board that fuses for it is back.
        "pipeline/{pipeline}/exit/{device}/{sender}",
        {Role.BRANCH, Role.ORIGIN},
        {Role.FUSER},
        _WORK,
    ),
    Kind.DECISION: _row("pipeline/{pipeline}/decision/{device}/{sender}", {Role.FUSER}, {Role.BRANCH}, _WORK),
    Kind.OUTCOME: _row("pipeline/{pipeline}/outcome/{origin}/{sender}", {Role.STAGE, Role.HUB}, {Role.ORIGIN}, _WORK),
    Kind.INPUT: _row(
        "pipeline/{pipeline}/input/{origin}",
        {Role.SUBMITTER},
        {Role.ORIGIN},
        Delivery(qos=1, retain=False, content_type="application/octet-stream", lane=Lane.OWED),
    ),
    Kind.RESULT: _row(
        "pipeline/{pipeline}/result/{origin}",
        {Role.ORIGIN},
        {Role.DASHBOARD, Role.SUBMITTER, Role.HOME_ASSISTANT},
        Delivery(qos=1, retain=False, content_type=JSON, lane=Lane.OWED),
    ),
    Kind.AUDIT: _row(
        "pipeline/{pipeline}/audit/{origin}",
        {Role.ORIGIN},
        {Role.ORCHESTRATOR},
        Delivery(qos=1, retain=False, content_type=MSGPACK, lane=Lane.AUDIT),
    ),
    Kind.STATS: _row(
        "pipeline/{pipeline}/stats/{origin}",
        {Role.ORCHESTRATOR},
        {Role.HOME_ASSISTANT, *_WATCHING},
        Delivery(qos=0, retain=False, content_type=JSON, lane=Lane.LOSSY),
    ),
    Kind.THUMBNAIL: _row("pipeline/{pipeline}/thumbnail/{origin}", {Role.ORIGIN}, {Role.DASHBOARD}, _LOSSY),
}


def readers(kind: Kind) -> frozenset[Role]:
    """Return the roles that read messages of a kind, be it only their own."""
    topic = TABLE[kind]
    return topic.subscribers | topic.publishers if topic.reads_back else topic.subscribers


DELIVERY: dict[Kind, Delivery] = {kind: topic.delivery for kind, topic in TABLE.items()}

_OF_DEVICE = frozenset(kind for kind, topic in TABLE.items() if topic.form.startswith("device/"))
_OF_STAGE = frozenset(kind for kind, topic in TABLE.items() if "{stage}" in topic.form)
_OF_ORIGIN = frozenset(kind for kind, topic in TABLE.items() if topic.form.endswith("/{origin}"))
ADDRESSED = frozenset({Kind.EXIT, Kind.DECISION, Kind.OUTCOME})
"""What goes to one board, which is named before the sender."""


def is_id(value: str) -> bool:
    """Whether `value` may stand in a topic."""
    return _ID.fullmatch(value) is not None


def is_device(value: str) -> bool:
    """Whether `value` may be a board's id."""
    return value != ALL and is_id(value)


def check_id(value: str, what: str) -> str:
    """Return `value` if it is an id of `[a-z0-9-]{1,32}`; raise ConfigError naming `what` otherwise."""
    if not is_id(value):
        raise ConfigError(f"{what}: {quoted(value)} is not an id", "use 1 to 32 of a-z, 0-9 and '-'")
    return value


def check_device(value: str, what: str) -> str:
    """Return `value` if it may be a board's id; raise ConfigError naming `what` otherwise."""
    if check_id(value, what) == ALL:
        raise ConfigError(
            f"{what}: {ALL!r} is reserved for topics that address all boards of a stage", "use another id"
        )
    return value


def template(kind: Kind) -> str:
    """Topic of a kind with what varies in braces.

    >>> template(Kind.RESULT)
    'distree/1/{site}/pipeline/{pipeline}/result/{origin}'
    """
    return f"{ROOT}/{{site}}/{TABLE[kind].form}"


def build(kind: Kind, **names: object) -> str:
    """Topic of a kind, or a filter where a name is "+". `names` may have more than the kind's template asks for.

    >>> build(Kind.EXIT, site="lab", pipeline="p", device="hub", sender="+")
    'distree/1/lab/pipeline/p/exit/hub/+'
    """
    return template(kind).format(**names)


def every(kind: Kind, site: str, pipeline: str = "+") -> str:
    """Return the filter of all topics of a kind in a pipeline, or in all of a site.

    >>> every(Kind.STAGE, "lab", "p")
    'distree/1/lab/pipeline/p/stage/+/+/+'
    """
    names = dict.fromkeys(("device", "origin", "stage", "to", "sender"), "+")
    return build(kind, site=site, pipeline=pipeline, **names)


def device(site: str, device_id: str, kind: Kind) -> str:
    """Topic of a device's state, meta, telemetry, events or dead letters."""
    assert kind in _OF_DEVICE  # noqa: S101 - a programming error, not a message's
    return build(kind, site=site, device=device_id)


def plan(site: str, pipeline: str) -> str:
    """Topic of a pipeline's retained plan."""
    return build(Kind.PLAN, site=site, pipeline=pipeline)


def label(site: str, pipeline: str) -> str:
    """Topic on which users tell what inputs of a pipeline really were."""
    return build(Kind.LABEL, site=site, pipeline=pipeline)


def orchestrator(site: str) -> str:
    """Topic of the retained claim of the orchestrator that plans a site."""
    return build(Kind.ORCHESTRATOR, site=site)


def site_event(site: str) -> str:
    """Topic on which the orchestrator of a site tells what people should know of it."""
    return build(Kind.SITE_EVENT, site=site)


def stage(site: str, pipeline: str, k: int, to: str, sender: str) -> str:
    """Topic on which `sender` hands inputs (k = 0) or features to stage `k`, on the board `to` or on all of them."""
    return build(Kind.STAGE, site=site, pipeline=pipeline, stage=k, to=to, sender=sender)


def member(site: str, pipeline: str, k: int | str, device_id: str) -> str:
    """Topic on which a board says that it serves stage `k`; either may be "+"."""
    return build(Kind.MEMBER, site=site, pipeline=pipeline, stage=k, device=device_id)


def call(site: str, pipeline: str, sender: str) -> str:
    """Topic on which `sender` asks boards to say what they serve."""
    return build(Kind.CALL, site=site, pipeline=pipeline, sender=sender)


def of_origin(site: str, pipeline: str, kind: Kind, origin: str) -> str:
    """Topic of an origin's raw inputs, results, audits, figures or thumbnails."""
    assert kind in _OF_ORIGIN  # noqa: S101
    return build(kind, site=site, pipeline=pipeline, origin=origin)


def to_board(site: str, pipeline: str, kind: Kind, to: str, sender: str) -> str:
    """Topic of an embedding, a decision or an outcome from `sender` to the board `to`."""
    assert kind in ADDRESSED  # noqa: S101
    return build(kind, site=site, pipeline=pipeline, device=to, origin=to, sender=sender)


def check_filter(value: str, what: str) -> str:
    """Return a filter for topics of other programs; raise ConfigError naming `what` for any other.

    Malformed ones, those of the broker itself and our own are refused. Our own carry what boards say, results among
    them: an origin that took these for inputs would never stop.
    """
    levels = value.split("/")
    if not value or len(value.encode("utf-8", "replace")) > 65535 or not value.isprintable():
        raise ConfigError(f"{what}: {quoted(value)} is not a topic", "write a topic, such as frigate/+/+/snapshot")
    if any(("+" in level or "#" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]:
        raise ConfigError(
            f"{what}: {quoted(value)} is not a topic filter",
            "let + stand for a whole level, and # for all that follow, at the end only",
        )
    if levels[0] == "$share":
        raise ConfigError(f"{what}: {quoted(value)} is a shared subscription", "leave out $share and the group")
    if levels[0].startswith("$"):
        # Who may use $CONTROL may change who may do what.
        raise ConfigError(
            f"{what}: {quoted(value)} is a topic of the broker itself",
            "name the topics of the program that publishes inputs",
        )
    kind = next((kind for kind in Kind if overlap(value, every(kind, "+"))), None)
    if kind is not None:
        raise ConfigError(
            f"{what}: {quoted(value)} covers topics of DistrEE, such as {template(kind)}",
            "name the topics of the program that publishes inputs",
        )
    return value


def check_prefix(prefix: str, what: str) -> str:
    """Return a prefix of topics that are not DistrEE's own; raise ConfigError naming `what` otherwise."""
    if len(prefix) > 64 or not _PREFIX.fullmatch(prefix) or prefix.split("/")[0] == ROOT.split("/")[0]:
        raise ConfigError(
            f"{what}: {quoted(prefix)} is not a discovery prefix",
            "use letters, digits, '_', '-' and '/', as in homeassistant",
        )
    return prefix


def overlap(one: str, other: str) -> bool:
    """Whether there is a topic that two filters have in common.

    >>> overlap("frigate/+/snapshot", "frigate/door/#"), overlap("a/+", "b/+"), overlap("a/#", "a")
    (True, False, True)
    """
    for first, second in itertools.zip_longest(one.split("/"), other.split("/")):
        if "#" in (first, second):
            return True
        if first is None or second is None or (first != second and "+" not in (first, second)):
            return False
    return True


@record
class Address:
    """A parsed topic. Fields that a kind does not have are None."""

    site: str
    kind: Kind
    device: str | None = None
    pipeline: str | None = None
    stage: int | None = None
    origin: str | None = None
    to: str | None = None
    sender: str | None = None


_KINDS = {kind.value: kind for kind in Kind}


@functools.cache
def _pattern(kind: Kind) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{([a-z]+)\}", lambda name: f"(?P<{name[1]}>{_syntax(name[1])})", template(kind)))


def _syntax(name: str) -> str:
    if name == "stage":
        return "[0-9]{1,3}"
    is_board = name in ("device", "origin", "sender")
    return (f"(?!{ALL}(?:/|$))" if is_board else "") + _ID.pattern


def parse(topic: str) -> Address:
    """Parse a topic of version 1; raise RemoteProtocolError("topic") for anything else."""
    parts = topic.split("/", 6)
    kind = _KINDS.get(parts[5] if len(parts) > 5 else parts[-1])
    found = None if kind is None else _pattern(kind).fullmatch(topic)
    if kind is None or found is None:
        raise RemoteProtocolError("topic", f"{quoted(topic)} is not a topic of {ROOT}", "see docs/reference/topics.md")
    fields: dict[str, Any] = found.groupdict()
    if kind in _OF_STAGE:
        fields["stage"] = int(fields["stage"])
    return Address(kind=kind, **fields)
