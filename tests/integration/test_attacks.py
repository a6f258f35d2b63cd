"""Attacks by MQTT on a whole site: what each comes to on an open broker, and on one of `distree broker init`.

On the open broker the attacker is anybody. On the secured one it is, in turn, the user of a dashboard, that of a program
that submits inputs, and somebody who took the key of a board. `EXPECTED` says what comes of each attack;
docs/explanation/security.md has the same table for people, and tests/docs/test_security.py compares the two.
"""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from attack_table import ATTACKERS, EXPECTED, HOLDS, INSIDER, INSIDER_ELSEWHERE
from besieged_site import INPUT, PATIENCE_S, PIPELINE, PLAN, SITE, BesiegedSite, soon, until_said
from thoroughness import is_thorough

from broker_config.managed import find_mosquitto
from distree import topics
from distree.messages.audit import AuditRow
from distree.messages.codec import decode, encode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus
from distree.messages.events import Event, EventKind, Severity
from distree.messages.limits import MAX_EPOCH
from distree.messages.member import Member
from distree.messages.plan import Plan
from distree.messages.request import Guess, Hop, InputMessage, Outcome, StageMessage
from distree.messages.result import Result, Stamp
from distree.messages.site import Claim
from distree.messages.telemetry import OriginTelemetry, PipelineTelemetry, Telemetry
from distree.thresholds import NEVER
from distree.topics import ROOT, Kind
from distree.transport.probe import REFUSED, HangUpError, ProbeClient

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

FLOOD = 10_000
ROWS = 3_000
STAGES = topics.every(Kind.STAGE, SITE)


@pytest.fixture(scope="module")
def site_of(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Iterator[Callable[[str], BesiegedSite]]:
    """Makes a site, one for all tests of a setting."""
    made: dict[bool, BesiegedSite] = {}

    def make(attacker: str) -> BesiegedSite:
        secured = attacker != "anybody"
        if secured not in made:
            made[secured] = BesiegedSite(tmp_path_factory.mktemp("site"), images[:10], secured=secured)
            made[secured].start()
        return made[secured]

    yield make
    for site in made.values():
        site.close()


class Attack:
    """What all attacks need: a site, and a connection of somebody called `name`."""

    def __init__(self, site: BesiegedSite, name: str, client: ProbeClient) -> None:
        self.site, self.name, self.client = site, name, client
        self.plan = Plan(
            pipeline=PIPELINE, epoch=1, model="fashion", revision=site.bundle.revision, criterion="max_softmax",
            thresholds=(0.0, 0.0),
        )  # fmt: skip

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish, whatever the broker says to it."""
        self.client.publish(topic, payload, qos=1, retain=retain, until=soon())


# ------------------------------------------------------------------ plans, reports, claims


def plan_beyond_all_epochs(attack: Attack) -> None:
    """A retained plan with epoch 2^53 and thresholds 0, by which all inputs would leave at the first exit."""
    fields = msgpack.unpackb(encode(attack.plan))
    for epoch in (1 << 53, MAX_EPOCH):
        attack.say(PLAN, msgpack.packb({**fields, "epoch": epoch}), retain=True)


def four_plans_in_a_row(attack: Attack) -> None:
    """Four plans, each with the next epoch and thresholds 0: an orchestrator contradicts three."""
    with attack.site.connected("administrator", PLAN) as admin:
        latest = lambda: decode(Plan, admin.heard[-1].payload) if admin.heard else None  # noqa: E731
        assert admin.listen(soon(), lambda: latest() is not None)
        # More than four where the orchestrator contradicts two of them as one.
        for epoch in range(2, 9):
            forged = replace(attack.plan, epoch=epoch)
            attack.say(PLAN, encode(forged), retain=True)
            came = admin.listen(time.monotonic() + 0.3, lambda plan=forged: latest() == plan)
            if came and not admin.listen(time.monotonic() + 3.0, lambda plan=forged: latest() != plan):
                break  # it stays


def report_that_uses_up_epochs(attack: Attack) -> None:
    """Reports of a board that follows a plan with epoch 2^52, or with the highest that there is."""
    for name in ("cam1", attack.name):
        topic = topics.device(SITE, name, Kind.TELEMETRY)
        packed = encode(report(attack, name, epoch=MAX_EPOCH))
        attack.say(topic, packed)
        fields = msgpack.unpackb(packed)
        fields["pipelines"][0]["epoch"] = 1 << 52
        attack.say(topic, msgpack.packb(fields))


def forged_claim(attack: Attack) -> None:
    """Claims of orchestrators whose ids are lower than any other, so that the site's own one would give way."""
    for number in range(20):
        claim = Claim(orchestrator="-" if number % 2 else f"-{number}", running=True)
        attack.say(topics.orchestrator(SITE), encode(claim), retain=True)


# ------------------------------------------------------------------ boards that are none


def about(name: str, boot: str, *, origin: bool) -> tuple[DeviceState, DeviceMeta]:
    """State and description of a board that somebody makes up."""
    meta = DeviceMeta(
        device=name, boot=boot, version="", python="", runtime="", machine="", memory_mb=0, stages=(),
        origins=(PIPELINE,) if origin else (),
    )  # fmt: skip
    return DeviceState(device=name, boot=boot, status=DeviceStatus.READY), meta


def report(attack: Attack, name: str, *, epoch: int = 1, sequence: int = 1, boot: str = "forged") -> Telemetry:
    """A report of an origin with much traffic, of which it has drawn much for audits."""
    origin = OriginTelemetry(
        accepted=1000 * ROWS * sequence, answered=1000 * ROWS * sequence, resent=0, late=0, pending=0, exits=(0, 0, 0),
        reasons={}, latency_p50_s=0.0, latency_p95_s=0.0, latency_max_s=0.0, audits_drawn=2 * ROWS * sequence,
    )  # fmt: skip
    part = PipelineTelemetry(
        pipeline=PIPELINE, epoch=epoch, plan_hash="f" * 16, revision=attack.plan.revision, stages=(), origin=origin
    )
    return Telemetry(
        device=name, boot=boot, sequence=sequence, uptime_s=10.0 * sequence, rss_bytes=0, dead_letters=0,
        offline_dropped=0, pipelines=(part,),
    )  # fmt: skip


def audits_of_a_made_up_origin(attack: Attack) -> None:
    """Somebody without inputs announces itself as an origin and sends 3,000 rows by which early exits cost nothing."""
    for said, kind in zip(about(attack.name, "forged", origin=True), (Kind.STATE, Kind.META), strict=True):
        attack.say(topics.device(SITE, attack.name, kind), encode(said), retain=True)
    for sequence in (1, 2):
        attack.say(
            topics.device(SITE, attack.name, Kind.TELEMETRY), encode(report(attack, attack.name, sequence=sequence))
        )
    topic = topics.of_origin(SITE, PIPELINE, Kind.AUDIT, attack.name)
    for number in range(1, ROWS + 1):
        row = AuditRow(
            request=f"x-{number}", origin=attack.name, boot="forged", sequence=number, revision=attack.plan.revision,
            epoch=1, criterion="max_softmax", scores=(0.001, 0.07), predictions=(1, 1, 1),
        )  # fmt: skip
        attack.say(topic, encode(row))
    # Where these count, a plan with early exits follows within a second, and the alarm of the honest origin after it.
    with attack.site.connected("administrator", PLAN) as admin:
        admin.listen(time.monotonic() + 3.0)
        plans = [decode(Plan, said.payload) for said in admin.heard]
    assert plans
    assert all(value == NEVER for plan in plans for value in plan.thresholds), plans
    for kind in (Kind.STATE, Kind.META):
        attack.say(topics.device(SITE, attack.name, kind), b"", retain=True)


def forged_boot(attack: Attack) -> None:
    """States, announcements and reports of boards that work, as of another run of them, which is over."""
    for name in ("cam1", "b1"):
        state, meta = about(name, "forged", origin=False)
        for status in (DeviceStatus.READY, DeviceStatus.LOST):
            attack.say(topics.device(SITE, name, Kind.STATE), encode(replace(state, status=status)), retain=True)
        attack.say(topics.device(SITE, name, Kind.META), encode(meta), retain=True)
        attack.say(topics.device(SITE, name, Kind.TELEMETRY), encode(report(attack, name)))
    attack.say(topics.member(SITE, PIPELINE, 1, "b1"), encode(member(attack, "b1", "forged")), retain=True)


def flood_of_states(attack: Attack) -> None:
    """10,000 boards that are none say that they are ready."""
    for number in range(FLOOD):
        state = DeviceState(device=f"forged-{number}", boot="forged", status=DeviceStatus.READY)
        topic = topics.device(SITE, state.device, Kind.STATE)
        attack.client.publish(topic, encode(state), qos=number % 50 == 0, until=soon())


def member(attack: Attack, name: str, boot: str) -> Member:
    """An announcement of stages 1 and 2."""
    return Member(
        device=name, boot=boot, pipeline=PIPELINE, model="fashion", revisions=(attack.plan.revision,), stages=(1, 2)
    )


def flood_of_members(attack: Attack) -> None:
    """1,000 boards that are none say that they serve the stages beyond the first, and somebody reads what they get."""
    attack.client.subscribe(STAGES, soon())  # else the broker says that nobody does
    names = [f"forged-{number}" for number in range(1000)]
    for name in names:
        attack.say(topics.member(SITE, PIPELINE, 1, name), encode(member(attack, name, "forged")), retain=True)
    try:
        for _ in range(3):  # the silence of those boards must not make the next inputs wait for longer and longer
            attack.site.check(attack.site.ask(8))
    finally:
        for name in names:
            attack.say(topics.member(SITE, PIPELINE, 1, name), b"", retain=True)
        attack.site.until_members(1)


# ------------------------------------------------------------------ what is under way


def forged_outcomes(attack: Attack) -> None:
    """Wrong answers to inputs that are under way, with what the attacker has seen of them."""
    site = attack.site
    attack.client.subscribe(STAGES, soon())
    site.processes["b1"].send_signal(signal.SIGSTOP)
    try:
        with site.submitted(8) as answers:
            attack.client.listen(time.monotonic() + 1.0)
            seen = [said for said in attack.client.heard if topics.parse(said.topic).kind is Kind.STAGE]
            tokens = {(m := decode(StageMessage, said.payload)).context.request: m.context.token for said in seen}
            for number in range(site.asked - 8, site.asked):
                request = f"r{number}"
                outcome = Outcome(
                    request=request, token=tokens.get(request, b"guessed!"), reason="last", spent_s=0.01, hops=(),
                    guess=Guess(exit=2, class_id=0, confidence=0.99),
                )  # fmt: skip
                for sender in ("b1", attack.name, "cam1"):
                    attack.say(topics.to_board(SITE, PIPELINE, Kind.OUTCOME, "cam1", sender), encode(outcome))
            site.processes["b1"].send_signal(signal.SIGCONT)
    finally:
        site.processes["b1"].send_signal(signal.SIGCONT)
    site.check(answers)


def forged_results(attack: Attack) -> None:
    """Results in the name of the origin, for whoever reads results."""
    result = Result(
        request="forged", site=SITE, pipeline=PIPELINE, origin="cam1", input="x", label="Bag", class_id=8,
        confidence=1.0, exit=0, reason="confident", final=True, late=False, attempt=1, latency_s=0.0, epoch=1,
        model="fashion", revision="r", hops=(),
    )  # fmt: skip
    topic = topics.of_origin(SITE, PIPELINE, Kind.RESULT, "cam1")
    with attack.site.connected("administrator", topic) as admin:
        attack.say(topic, encode(result, Stamp(time="", clock_synced=True)))
        admin.listen(time.monotonic() + 0.5)
        assert not admin.heard, f"{admin.heard[0].payload!r} on {topic}"


def shared_subscription(attack: Attack) -> None:
    """Shared subscriptions to what boards send each other: a broker hands each message to one of a group."""
    for name in (
        STAGES,
        topics.every(Kind.OUTCOME, SITE),
        INPUT,
        f"{ROOT}/{SITE}/#",
        f"{STAGES.removesuffix('+')}cam1",
    ):
        attack.client.subscribe(f"$share/thief/{name}", soon())
    attack.site.check(attack.site.ask(20))
    attack.client.listen(time.monotonic() + 0.3)
    stolen = {said.topic for said in attack.client.heard if topics.parse(said.topic).kind in (Kind.STAGE, Kind.OUTCOME)}
    assert not stolen, f"read {stolen}"


def stolen_client_id(attack: Attack) -> None:
    """Connects with the client ids of the origin, of which one has a session in which inputs wait."""
    site, ids = attack.site, (f"distree_{SITE}_cam1", f"distree_{SITE}_cam1_{PIPELINE}")
    with site.connected("administrator", topics.device(SITE, "cam1", Kind.STATE)) as admin:
        for count in (0, 20):  # first while nothing is under way
            with site.submitted(count) as answers:
                for client_id in ids:
                    with site.connected(attack.name, client_id=client_id):
                        admin.listen(time.monotonic() + 0.3)
            said = [decode(DeviceState, said.payload).status for said in admin.heard]
            assert DeviceStatus.LOST not in said, "the origin lost its connection"
            site.check(answers)


def ids_of_inputs_to_come(attack: Attack) -> None:
    """Inputs under the ids that the origin will give to later ones, so that those would be dropped as duplicates."""
    site = attack.site
    results = topics.of_origin(SITE, PIPELINE, Kind.RESULT, "cam1")
    with site.connected("submitter", topics.device(SITE, "cam1", Kind.STATE), results) as client:
        raw = site._images[0].tobytes()
        client.publish(INPUT, raw, qos=1, until=soon())
        of_own = lambda: [  # noqa: E731
            result.request
            for said in client.heard
            if topics.parse(said.topic).kind is Kind.RESULT and "-" in (result := decode(Result, said.payload)).request
        ]
        assert client.listen(soon(), lambda: len(of_own()) == 1)
        boot, _, number = of_own()[0].rpartition("-")
        for ahead in range(1, 6):
            forged = InputMessage(request=f"{boot}-{int(number, 16) + ahead:x}", name="forged", payload=raw)
            attack.say(INPUT, encode(forged))
        for _ in range(5):
            client.publish(INPUT, raw, qos=1, until=soon())
        assert client.listen(soon(), lambda: len(of_own()) >= 6), f"answers to inputs without an id: {of_own()}"
        assert len(set(of_own())) == 6


# ------------------------------------------------------------------ what is read


def topic_of_60_kb(attack: Attack) -> None:
    """Messages on topics with a level of 60 KB, which agents and the orchestrator read."""
    before = {name: len(attack.site.log(name)) for name in attack.site.processes}
    long = "x" * 60_000
    for topic in (
        f"{ROOT}/{SITE}/pipeline/{PIPELINE}/stage/1/b1/{long}",
        f"{ROOT}/{SITE}/pipeline/{PIPELINE}/outcome/cam1/{long}",
        f"{ROOT}/{SITE}/pipeline/{PIPELINE}/member/1/{long}",
        f"{ROOT}/{SITE}/device/{long}/state",
        f"{ROOT}/{SITE}/device/{long}/telemetry",
        f"{ROOT}/{SITE}/pipeline/{PIPELINE}/audit/{long}",
    ):
        for _ in range(5):
            attack.say(topic, b"x")
    attack.site.ask(1)
    for name, length in before.items():
        assert len(attack.site.log(name)) - length < 10_000, name


def npy(shape: str) -> bytes:
    """A .npy file whose header promises an array of a shape, and that holds little."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(100)


def png(width: int, height: int) -> bytes:
    """The beginning of a picture of some size."""
    return (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height) + b"\x08\x00\x00\x00\x00" + bytes(50)
    )


def hostile_inputs(attack: Attack) -> None:
    """Inputs that promise much more than they hold: huge and negative shapes, huge pictures, deep JSON."""
    bombs = io.BytesIO()
    np.savez_compressed(bombs, input=np.zeros((64, 1 << 20), np.uint8))
    for payload in (
        npy("(1000000, 1000000, 1000000)"), npy("(-1, 28, 28)"), npy("(28, 28, 0)"), npy("()"), png(100_000, 100_000),
        png(0, 0), png(0x7FFFFFFF, 1), bombs.getvalue(), b"[" * 100_000, b'{"image": "' + b"A" * 500_000 + b'"}',
        b"RIFF\xff\xff\xff\xffWAVEfmt \xff\xff\xff\xff", b"GIF89a" + b"\xff" * 1000,
    ):  # fmt: skip
        attack.say(INPUT, payload)


ATTACKS: dict[str, Callable[[Attack], None]] = {
    function.__name__: function
    for function in (
        plan_beyond_all_epochs, four_plans_in_a_row, report_that_uses_up_epochs, forged_claim,
        audits_of_a_made_up_origin, forged_boot, flood_of_states, flood_of_members, forged_outcomes, forged_results,
        shared_subscription, stolen_client_id, ids_of_inputs_to_come, topic_of_60_kb, hostile_inputs,
    )
}  # fmt: skip


PLANS = ("plan_beyond_all_epochs", "four_plans_in_a_row", "report_that_uses_up_epochs", "forged_claim")
"""Attacks after which boards must still obey what the orchestrator publishes next."""


def test_every_attack_has_an_expected_outcome_for_every_attacker() -> None:
    assert set(EXPECTED) == set(ATTACKS)
    assert all(set(outcomes) == set(ATTACKERS) for outcomes in EXPECTED.values())


def check(site: BesiegedSite, name: str, user: str, client: ProbeClient) -> None:
    """Attack, and see that it has done no harm."""
    ATTACKS[name](Attack(site, user, client))
    site.check_unharmed()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("attacker", ATTACKERS if is_thorough() else ("anybody", "insider"))
def test_attack(name: str, attacker: str, site_of: Callable[[str], BesiegedSite]) -> None:
    site = site_of(attacker)
    user = ATTACKERS[attacker]
    with site.connected(user) as client:
        if EXPECTED[name][attacker] == HOLDS:
            check(site, name, user, client)
        else:
            with pytest.raises(AssertionError) as harm:
                check(site, name, user, client)
            print(f"{name} by {attacker}: {str(harm.value)[:300]}")
    if name in PLANS:
        if EXPECTED[name][attacker] != HOLDS:
            # As the documentation says: the alarm, and the way out.
            until_said(lambda: "PREEMPTED" in site.orchestrator("status")[1], "the alarm")
        site.check_obeyed()
    if EXPECTED[name][attacker] != HOLDS:
        site.check_unharmed()  # whatever it did is over


# ------------------------------------------------------------------ what an insider can do


class Insider:
    """Somebody with the key of the board b9, who announces it as one that serves stages 1 and 2."""

    def __init__(self, site: BesiegedSite, client: ProbeClient) -> None:
        self.attack, self.client, self.site = Attack(site, "b9", client), client, site
        self.topics = [topics.member(SITE, PIPELINE, stage, "b9") for stage in (1, 2)]

    def announce(self) -> None:
        """Be chosen from now on, as b1 is."""
        for stage in (1, 2):
            self.client.subscribe(topics.stage(SITE, PIPELINE, stage, "b9", "+"), soon())
        state = DeviceState(device="b9", boot="insider", status=DeviceStatus.READY)
        self.attack.say(topics.device(SITE, "b9", Kind.STATE), encode(state), retain=True)
        for topic in self.topics:
            self.attack.say(topic, encode(member(self.attack, "b9", "insider")), retain=True)
        self.site.until_members(2)

    def withdraw(self) -> None:
        """Be chosen no longer."""
        for topic in self.topics:
            self.attack.say(topic, b"", retain=True)
        self.site.until_members(1)

    def received(self) -> list[StageMessage]:
        """What came to stages."""
        return [
            decode(StageMessage, said.payload)
            for said in self.client.heard
            if topics.parse(said.topic).kind is Kind.STAGE
        ]

    def answer(self, message: StageMessage) -> None:
        """Give a wrong answer to a request."""
        hop = Hop(device="b9", stage=1, queue_s=0.0, compute_s=0.0)
        outcome = Outcome(
            request=message.context.request, token=message.context.token, reason="last", spent_s=0.0, hops=(hop,),
            guess=Guess(exit=2, class_id=(message.progress.guess.class_id + 1) % 10, confidence=0.99),
        )  # fmt: skip
        self.attack.say(topics.to_board(SITE, PIPELINE, Kind.OUTCOME, "cam1", "b9"), encode(outcome))


def answers_wrongly(insider: Insider) -> None:
    """Of what comes to it, each answer is its own."""
    insider.announce()
    with insider.site.submitted(20) as answers:
        insider.client.listen(soon(), lambda: bool(insider.received()))
        insider.client.listen(time.monotonic() + 0.3)
        for message in insider.received():
            insider.answer(message)
    wrong = insider.site.wrong(answers)
    # It speaks for nothing but what came to it; audits, which have ids of their own, are no answers.
    asked = {message.context.request for message in insider.received() if not message.context.audit}
    assert {result.request for result in wrong} == asked
    assert 0 < len(wrong) < len(answers)


def reads_features(insider: Insider) -> None:
    """It sees the features of inputs that come to it, and of no others."""
    insider.announce()
    insider.client.subscribe(STAGES, soon())
    with insider.site.submitted(20):
        insider.client.listen(soon(), lambda: bool(insider.received()))
    assert all(message.tensor.payload for message in insider.received())
    assert {said.topic.split("/")[-2] for said in insider.client.heard} == {"b9"}


def delays_inputs(insider: Insider) -> None:
    """It takes inputs and says nothing: they are answered rightly by another board, later."""
    insider.announce()
    answers = insider.site.ask(20)
    insider.site.check(answers)
    assert {result.attempt for result in answers.values()} == {1, 2}


def gives_boards_work(insider: Insider) -> None:
    """It has other boards compute for it, as an origin that it is not."""
    site = insider.site
    with site.connected("administrator", STAGES, topics.device(SITE, "b1", Kind.TELEMETRY)) as admin:
        site.ask(1)
        heard = lambda kind: [said for said in admin.heard if topics.parse(said.topic).kind is kind]  # noqa: E731
        assert admin.listen(soon(), lambda: bool(heard(Kind.STAGE) and heard(Kind.TELEMETRY)))
        good = decode(StageMessage, heard(Kind.STAGE)[0].payload)
        computed = lambda: decode(Telemetry, heard(Kind.TELEMETRY)[-1].payload).pipelines[0].stages[0].received  # noqa: E731
        before = computed()
        with site.submitted(20) as answers:
            for number in range(300):
                context = replace(good.context, origin="b9", request=f"x{number}", token=struct.pack(">Q", number))
                message = replace(good, context=context)
                insider.attack.say(topics.stage(SITE, PIPELINE, 1, "b1", "b9"), encode(message))
        assert admin.listen(soon(), lambda: computed() >= before + 200)
    # Where a queue is full, inputs are answered by an earlier exit, and say so.
    assert {result.reason for result in site.wrong(answers)} <= {"shed", "fallback"}


def tells_people_things(insider: Insider) -> None:
    """It publishes events, states and reports about itself, whatever they say."""
    event = Event(
        device="b9", kind=EventKind.BOARD, severity=Severity.ERROR, pipeline=None, what="all is lost", remedy="",
        unsaid=0, time="", clock_synced=True,
    )  # fmt: skip
    with insider.site.connected("dashboard", topics.device(SITE, "b9", Kind.EVENT)) as dashboard:
        insider.attack.say(topics.device(SITE, "b9", Kind.EVENT), encode(event))
        assert dashboard.listen(soon(), lambda: bool(dashboard.heard))


def results_of_its_own(insider: Insider) -> None:
    """As an origin, it publishes results and pictures under its own name, of inputs that there are not."""
    result = Result(
        request="forged", site=SITE, pipeline=PIPELINE, origin="cam9", input="x", label="Bag", class_id=8,
        confidence=1.0, exit=0, reason="confident", final=True, late=False, attempt=1, latency_s=0.0, epoch=1,
        model="fashion", revision="r", hops=(),
    )  # fmt: skip
    topic = topics.of_origin(SITE, PIPELINE, Kind.RESULT, "cam9")
    with insider.site.connected("dashboard", topic) as dashboard, insider.site.connected("cam9") as client:
        client.publish(topic, encode(result, Stamp(time="", clock_synced=True)), qos=1, until=soon())
        assert dashboard.listen(soon(), lambda: bool(dashboard.heard))


ALLOWED: dict[str, Callable[[Insider], None]] = {
    function.__name__: function
    for function in (
        answers_wrongly, reads_features, delays_inputs, gives_boards_work, tells_people_things, results_of_its_own,
    )
}  # fmt: skip
"""What the key of a board still allows."""


def test_what_an_insider_can_do_is_all_tried() -> None:
    assert set(ALLOWED) == set(INSIDER) - INSIDER_ELSEWHERE


@pytest.mark.parametrize("name", ALLOWED)
def test_an_insider(name: str, site_of: Callable[[str], BesiegedSite]) -> None:
    site = site_of("insider")
    with site.connected("b9") as client:
        insider = Insider(site, client)
        try:
            ALLOWED[name](insider)
        finally:
            insider.withdraw()
    site.check_unharmed()


def test_whoever_has_no_user_is_not_let_in(site_of: Callable[[str], BesiegedSite]) -> None:
    site = site_of("insider")
    for user, password in ((None, None), ("cam1", None), ("cam1", "guessed"), ("b8", "guessed")):
        sock = socket.create_connection(("127.0.0.1", site.port), PATIENCE_S)
        try:
            with contextlib.suppress(HangUpError):
                client = ProbeClient(sock)
                assert client.connect("x9", user, password, soon()).code >= REFUSED
        finally:
            sock.close()
    site.check_unharmed()
