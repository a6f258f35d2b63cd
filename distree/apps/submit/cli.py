"""The command `distree submit`: what it is asked, and the exchange with the origin."""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from uuid import uuid4

from distree import topics
from distree.apps.results_cli import as_text
from distree.apps.submit.files import (
    GivenFile,
    Prepared,
    given_files,
    is_there,
    missing,
    prepare,
    problem_of,
    read_file,
    reads_images,
)
from distree.apps.submit.origin import OriginFacts, described_on
from distree.bundle.inputs import InputReader
from distree.bundle.windows import count_of
from distree.client.broker_options import add_broker_arguments, broker_settings
from distree.client.results import result_topic
from distree.client.subscription import Subscription
from distree.errors import (
    BrokerError,
    ConfigError,
    DistreeError,
    InputError,
    LocalProtocolError,
    Problem,
    RemoteProtocolError,
    ResultTimeoutError,
)
from distree.formatting import counted
from distree.messages.codec import decode, encode
from distree.messages.device import DeviceMeta, DeviceState
from distree.messages.events import DeadLetter
from distree.messages.request import InputMessage
from distree.messages.result import Result
from distree.printable import printable
from distree.record import record
from distree.topics import Kind
from distree.transport.base import Received

WINDOW = 16
"""Inputs under way at a time: enough to keep an origin busy, fewer than it accepts."""

WINDOW_BYTES = 2 << 20
"""Bytes under way at a time, beyond which only one more input is."""

FACTS_S = 1.0
"""How long to wait for what the origin says of itself, which a broker that retains it delivers at once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree submit`."""
    add_broker_arguments(parser)
    parser.add_argument("--pipeline", required=True, help="pipeline id")
    parser.add_argument("--origin", required=True, help="device id of the origin")
    parser.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="longest wait for the next answer (default: %(default)g)",
    )
    parser.add_argument(
        "--bundle",
        metavar="NAME",
        help="the pipeline's bundle, a name or a folder, if this machine does not know it by the origin's description: "
        "pictures are then sent as small as it needs them",
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="images, WAV or CSV files, .npy arrays, JSON, raw values; or folders of them, patterns, - for stdin",
    )
    parser.epilog = "example: distree submit --site lab --pipeline fashion --origin cam1 boot.png bag.npy"


def run(args: argparse.Namespace) -> int:
    """Carry out `distree submit`; return 0 if every file was answered, 1 otherwise."""
    settings = broker_settings(args)
    facts = OriginFacts(
        site=args.site,
        pipeline=topics.check_id(args.pipeline, "--pipeline"),
        origin=topics.check_id(args.origin, "--origin"),
    )
    files = [*given_files(args.files)]
    if not any(is_there(file) for file in files):
        raise ConfigError(*missing(files[0]).problem)
    batch = uuid4().hex[:12]
    topic = topics.of_origin(facts.site, facts.pipeline, Kind.INPUT, facts.origin)

    def unread(where: str, _payload: bytes) -> _Heard | None:
        return _Unread(topic=where) if where == topic else None

    with Subscription[_Heard](
        settings,
        [result_topic(facts.site, facts.pipeline, facts.origin)],
        lambda message: _heard(message, batch),
        connect_timeout_s=settings.connect_timeout_s + 1.0,
        optional_topics=described_on(facts.site, facts.origin),
        unread=unread,
    ) as link:
        facts = _ask(link, facts)
        facts.check()
        bundle = facts.bundle(args.bundle)
        reader = None
        if bundle is not None and (reads_images() or not bundle.manifest.input.is_image):
            reader = InputReader(bundle.manifest.input, bundle.manifest.preprocess)
        return _Submission(link, topic, facts, reader, batch, args.timeout).run(iter(files))


# ---------------------------------------------------------------- what is heard


@record
class _Answer:
    """A final result, as it came."""

    request: str
    line: str


@record
class _Refusal:
    """The origin refused an input."""

    request: str
    problem: Problem


@record
class _Unread:
    """The broker says that nobody reads a topic."""

    topic: str


_Heard = _Answer | _Refusal | _Unread | DeviceState | DeviceMeta


def _heard(message: Received, batch: str) -> _Heard | None:
    """Decode what the origin says; None for what is not about this command's inputs."""
    match topics.parse(message.topic).kind:
        case Kind.STATE:
            return decode(DeviceState, message.payload) if message.payload else None
        case Kind.META:
            return decode(DeviceMeta, message.payload) if message.payload else None
        case Kind.DEAD:
            letter = decode(DeadLetter, message.payload)
            if not letter.request.startswith(batch):
                return None
            return _Refusal(request=letter.request, problem=Problem(letter.detail, letter.remedy))
    result = decode(Result, message.payload)
    if not result.final or not result.request.startswith(batch):
        return None
    return _Answer(request=result.request, line=as_text(message))


def _ask(link: Subscription[_Heard], facts: OriginFacts) -> OriginFacts:
    """Return what the origin says of itself, as far as it is heard in time."""
    ends_at = time.monotonic() + FACTS_S
    while not facts.is_complete:
        try:
            item = link.get(max(0.0, ends_at - time.monotonic()))
        except ResultTimeoutError:
            return facts
        facts = _noted(facts, item)
    return facts


def _noted(facts: OriginFacts, item: _Heard) -> OriginFacts:
    if isinstance(item, DeviceState):
        return replace(facts, status=item.status)
    return replace(facts, meta=item) if isinstance(item, DeviceMeta) else facts


# ---------------------------------------------------------------- sending


@dataclass(slots=True)
class _UnderWay:
    """A file that is not answered yet: its windows that are, and how many bytes are under way."""

    name: str
    nbytes: int
    answered: int = 0


class _Submission:
    """Sends files, as many at a time as the origin takes, and prints what becomes of them."""

    def __init__(
        self,
        link: Subscription[_Heard],
        topic: str,
        facts: OriginFacts,
        reader: InputReader | None,
        batch: str,
        timeout_s: float,
    ) -> None:
        self._link, self._topic, self._facts, self._reader = link, topic, facts, reader
        self._batch, self._timeout_s = batch, timeout_s
        self._to_send: deque[InputMessage] = deque()
        self._under_way: dict[str, _UnderWay] = {}
        self._sent = 0
        self._answered = 0
        self._refused = 0

    def run(self, files: Iterator[GivenFile | InputError]) -> int:
        """Send all; return 0 if every one was answered."""
        heard_at, is_more = time.monotonic(), True
        while True:
            while is_more and not self._is_full():
                is_more = self._send_next(files)
                heard_at = time.monotonic()
            if not self._under_way:
                break
            try:
                item = self._link.get(max(0.0, heard_at + self._timeout_s - time.monotonic()))
            except ResultTimeoutError:
                raise self._unanswered() from None
            if self._take(item):
                heard_at = time.monotonic()
        if self._refused:
            total = counted(self._answered + self._refused, "file")
            _say(f"{self._answered:,} of {total} answered, {self._refused:,} refused")
        return 1 if self._refused else 0

    def _is_full(self) -> bool:
        under_way = self._under_way.values()
        return len(under_way) >= WINDOW or sum(one.nbytes for one in under_way) >= WINDOW_BYTES

    def _send_next(self, files: Iterator[GivenFile | InputError]) -> bool:
        """Send the next window or file; False if there are no more."""
        if self._to_send:
            self._publish(self._to_send.popleft())
            return True
        file = next(files, None)
        if file is None:
            return False
        if isinstance(file, InputError):
            self._refuse(file)
            return True
        try:
            prepared = self._prepared(file)
        except (InputError, RemoteProtocolError) as error:
            self._refuse(problem_of(error, file.name))
            return True
        if prepared.note:
            _say(prepared.note)
        self._to_send.extend(prepared.messages)
        return True

    def _prepared(self, file: GivenFile) -> Prepared:
        content = read_file(file)
        self._sent += 1
        return prepare(file.name, content, f"{self._batch}-{self._sent:x}", self._reader)

    def _publish(self, message: InputMessage) -> None:
        request, _ = count_of(message.request)
        name, payload = message.name, encode(message)
        try:
            self._link.publish(self._topic, payload)
        except LocalProtocolError as error:
            self._forget(request)
            self._refuse(InputError(f"{name}: {error.detail}", error.remedy))
            return
        one = self._under_way.setdefault(request, _UnderWay(name, 0))
        one.nbytes += len(payload)

    def _take(self, item: _Heard) -> bool:
        """Take in what was heard; return whether it is about an input that is under way."""
        if isinstance(item, _Unread):
            raise BrokerError(
                f"nobody reads {item.topic}",
                "check --site, --pipeline and --origin, and that the origin's agent is running with source mqtt",
            )
        if not isinstance(item, _Answer | _Refusal):
            self._facts = _noted(self._facts, item)
            self._facts.check()
            return False
        request, windows = count_of(item.request)
        one = self._under_way.get(request)
        if one is None:
            return False
        if isinstance(item, _Refusal):
            self._forget(request)
            self._refuse(InputError(*item.problem))
            return True
        print(item.line, flush=True)
        # A recording of several windows has an answer for each of them.
        one.answered += 1
        one.nbytes -= one.nbytes // max(1, windows - one.answered + 1)
        if one.answered >= windows:
            del self._under_way[request]
            self._answered += 1
        return True

    def _forget(self, request: str) -> None:
        self._under_way.pop(request, None)
        self._to_send = deque(one for one in self._to_send if count_of(one.request)[0] != request)

    def _refuse(self, error: DistreeError) -> None:
        self._refused += 1
        _say(str(error))

    def _unanswered(self) -> BrokerError:
        names = ", ".join(one.name for one in [*self._under_way.values()][:3])
        done = f"; {self._answered:,} answered, {self._refused:,} refused"
        facts = self._facts
        is_there = facts.status is not None and facts.meta is not None
        return BrokerError(
            f"{counted(len(self._under_way), 'file')} got no answer within {self._timeout_s:g} s ({names}){done}",
            f"wait longer with --timeout, or see the log of the agent {facts.origin!r}, which is there"
            if is_there
            else f"check that the agent {facts.origin!r} of site {facts.site!r} is running, and that it has an origin "
            f"of pipeline {facts.pipeline!r} with source mqtt",
        )


def _say(text: str) -> None:
    print(f"distree: {printable(text, 1024)}", file=sys.stderr, flush=True)
