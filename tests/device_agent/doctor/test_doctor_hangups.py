"""What a broker, or a proxy before it, answers by ending the connection: the doctor names each, and the network too."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from setup_broker import PATIENCE_S, Certificates, Mosquitto
from test_doctor import MIXED, ORIGIN, WIDE, agent, board, doctor, fails, listener

from benchmarks.chaos.packets import SUBSCRIBE, Packet
from benchmarks.chaos.proxy import Proxy, hangs_up_if
from device_agent import resource_estimate
from device_agent.addresses import publications, subscriptions
from device_agent.config import AgentConfig, load_agent_config
from device_agent.doctor import delivery
from device_agent.doctor.checks import CheckContext, Finding, failure_from, note_from
from device_agent.doctor.delivery import check_retained, check_will, harmless_will
from device_agent.doctor.disconnects import NOBODY, bisected
from device_agent.doctor.network import check_tls
from device_agent.preflight import load_bundles
from distree import topics
from distree.broker_settings import BrokerSettings
from distree.bundle.loading import Bundle, find_bundle
from distree.messages.codec import PROBE, decode
from distree.messages.device import DeviceState
from distree.messages.telemetry import Telemetry
from distree.topics import Kind
from distree.transport import connect_errors
from distree.transport.probe import HangUpError, ProbeClient, Will

CHECKS = (
    "login",
    "retained",
    "qos",
    "will",
    "subscribe",
    "publish",
    "acl",
    "no-subscribers",
    "max-packet",
    "client-id",
)
STAGE_1 = "distree/1/lab/pipeline/p/stage/1/doctor-nobody/cam"
FOUR = [{"name": f"p{i}", "bundle": "fashion", "stages": [1], "origin": ORIGIN} for i in range(4)]


def own_topics(config: AgentConfig, bundles: list[Bundle], sender: str) -> list[str]:
    """Return what a board publishes on, and on what a sender would reach it."""
    return [
        *publications(config, bundles),
        *(sub.topic_of(sender) for sub in subscriptions(config, bundles) if not sub.is_own_announcements),
    ]


@contextlib.contextmanager
def behind(folder: Path, dislikes: Callable[[Packet], bool], *lines: str) -> Iterator[Proxy]:
    with Mosquitto(folder, *lines) as broker, contextlib.closing(Proxy(broker.port, hangs_up_if(dislikes))) as proxy:
        yield proxy


def only(found: dict[str, Finding], *names: str) -> None:
    """Nothing else failed than the checks of these names."""
    assert [name for name, finding in found.items() if finding.status == "failed"] == list(names), found


# Each with: what the proxy hangs up on, the check that says so, its words, its remedy.
HANG_UPS: dict[str, tuple[Callable[[Packet], bool], str, str, str]] = {
    "a will": (
        lambda p: p.has_will, "will",
        "hangs up on a login with a will message, so nobody notices when this client dies", "allow will messages",
    ),
    "a retained will": (lambda p: p.will_retain, "will", "hangs up on a login with a will", "allow will messages"),
    "two filters": (
        lambda p: len(p.filters) > 1, "subscribe",
        "hangs up on a SUBSCRIBE with 2 filters (from distree/1/lab/device/cam/state to ", "allow as many",
    ),
    "four filters": (lambda p: len(p.filters) > 3, "subscribe", "on a SUBSCRIBE with 4 filters", "allow as many"),
    "a filter": (
        lambda p: any(name.endswith("/plan") for name in p.filters), "subscribe",
        "hangs up on the subscription to distree/1/lab/pipeline/p/plan, so", "broker's ACL",
    ),
    "a filter of announcements": (
        lambda p: any("/member/" in name for name in p.filters), "subscribe",
        "on the subscription to distree/1/lab/pipeline/+/member/+/cam, so", "broker's ACL",
    ),
    "a topic": (
        lambda p: p.topic == STAGE_1, "publish",
        f"hangs up on publishes on {STAGE_1} (13 bytes), so inputs that need a later stage are answered at the local",
        "broker's ACL",
    ),
    "telemetry": (
        lambda p: p.topic.endswith("/telemetry"), "publish", "so nobody can see this board's counters", "broker's ACL",
    ),
    "retained": (
        lambda p: p.retain, "retained",
        "hangs up on retained messages, so anyone who connects later sees nothing", "retain_available true",
    ),
    "QoS 1": (
        lambda p: p.qos == 1, "qos", "hangs up on publishes at QoS 1, so a lost connection loses results", "max_qos 2",
    ),
    "QoS 1 and 2": (lambda p: p.qos > 0, "qos", "hangs up on publishes at QoS 1", "max_qos 2"),
    "MQTT 5 and large packets": (
        lambda p: p.level == 5 or p.size > 1500, "max-packet",
        f" get through), so inputs that need larger ones are answered at the local exit; the largest has 5,664, on "
        f"{STAGE_1}", "max_packet_size",
    ),
    "a large packet on one topic": (
        lambda p: p.size > 1500 and p.topic == STAGE_1, "max-packet", f"hangs up on publishes on {STAGE_1} (5,664 bytes)",
        "any proxy or firewall in between",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HANG_UPS)
def test_each_hang_up_has_a_line_of_its_own(tmp_path: Path, what: str) -> None:
    dislikes, check, words, remedy = HANG_UPS[what]
    with behind(tmp_path, dislikes) as proxy:
        found = doctor(board(tmp_path, proxy.port), *CHECKS)
    only(found, check)
    fails(found[check], words, remedy)
    assert f"127.0.0.1:{proxy.port}" in found[check].text


def test_the_size_that_passes_is_found_to_a_few_bytes(tmp_path: Path) -> None:
    with behind(tmp_path, lambda p: p.size > 1500) as proxy:
        found = doctor(board(tmp_path, proxy.port), "login", "max-packet")["max-packet"]
    words = found.text.replace(",", "").split()
    stopped, passed = int(words[words.index("of") + 1]), int(words[words.index("bytes") + 1].lstrip("("))
    assert 1500 - 100 < passed < 1500 < stopped + 100
    assert stopped - passed <= 16
    assert "to 5,920 bytes" in found.remedy


def test_of_many_filters_a_bound_and_two_bad_ones_are_told_apart(tmp_path: Path) -> None:
    def dislikes(packet: Packet) -> bool:
        return len(packet.filters) > 5

    with behind(tmp_path, dislikes) as proxy:
        found = doctor(board(tmp_path, proxy.port, pipelines=FOUR), "login", "subscribe")["subscribe"]
    fails(found, "a SUBSCRIBE with 6 filters", "allow as many")

    with behind(tmp_path, lambda p: bool({name[-7:] for name in p.filters} & {"p1/plan", "p3/plan"})) as proxy:
        found = doctor(board(tmp_path, proxy.port, pipelines=FOUR), "login", "subscribe", "acl")
    only(found, "subscribe")
    for name in ("p1", "p3"):
        assert f"subscription to distree/1/lab/pipeline/{name}/plan, so" in found["subscribe"].text


def test_a_proxy_that_takes_no_publish_at_all(tmp_path: Path) -> None:
    """Four topics are named, and nothing that follows from it is blamed on something else."""
    with behind(tmp_path, lambda p: p.topic != "") as proxy:
        found = doctor(board(tmp_path, proxy.port, pipelines=FOUR), *CHECKS)
    only(found, "publish", "max-packet")
    assert found["publish"].text.count("hangs up on publishes on") == 4
    assert found["publish"].text.endswith("and on more topics like these")
    assert {found[name].status for name in ("retained", "qos")} == {"unknown"}


def test_no_more_than_eight_filters_in_a_packet(tmp_path: Path) -> None:
    counts: list[int] = []

    def count(packet: Packet) -> bool:
        counts.append(len(packet.filters))
        return False

    with behind(tmp_path, count) as proxy:
        found = doctor(board(tmp_path, proxy.port, pipelines=FOUR), "login", "subscribe")["subscribe"]
    assert found.text == "subscriptions work, 8 filters at a time"
    assert max(counts) == 8


def test_an_end_that_nothing_explains_is_the_networks(tmp_path: Path) -> None:
    """Once is chance; and who breaks off whatever is asked keeps breaking for no visible reason."""
    first = itertools.count()
    with behind(tmp_path, lambda p: p.kind == SUBSCRIBE and next(first) == 1) as proxy:
        found = doctor(board(tmp_path, proxy.port), "login", "retained", "subscribe")
        only(found)
        assert proxy.hangups == 1
    pingreq = 12
    with behind(tmp_path, lambda p: p.kind == pingreq) as proxy:
        found = doctor(board(tmp_path, proxy.port), "login", "retained", "qos", "will", "subscribe", "publish")
    for name, finding in found.items():
        if finding.status == "failed":
            fails(
                finding,
                f"the connection to 127.0.0.1:{proxy.port} keeps breaking for no visible reason",
                "check the network",
            )
        else:
            assert name in ("login", "retained", "qos", "will"), found
    assert "subscribe" in [name for name, finding in found.items() if finding.status == "failed"]


# ---------------------------------------------------------------- what brokers say themselves


@pytest.mark.parametrize("five", [True, False])
@pytest.mark.parametrize(
    ("line", "check", "words", "said", "remedy"),
    [
        ("retain_available false", "retained", "retained messages, so anyone who connects later", "does not support", "retain_available"),
        ("max_qos 0", "qos", "so a lost connection loses results", "accepts publishes at QoS 0 only", "max_qos 2"),
        ("max_packet_size 700", "max-packet", "answered at the local exit", "5,664 bytes on", "max_packet_size"),
    ],
)  # fmt: skip
def test_brokers_that_take_less(
    tmp_path: Path, five: bool, line: str, check: str, words: str, said: str, remedy: str
) -> None:
    """With MQTT 5 they say so; with MQTT 3.1.1 they hang up."""
    with behind(tmp_path, lambda p: p.level == 5 and not five, line) as proxy:
        found = doctor(board(tmp_path, proxy.port), *CHECKS)
    only(found, check)
    fails(found[check], words, remedy)
    assert (said if five else "hangs up on") in found[check].text


def test_a_small_limit_lists_what_else_exceeds_it(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, "max_packet_size 700") as broker:
        found = doctor(board(tmp_path, broker.port, stages=[0, 1, 2]), "login", "max-packet")["max-packet"]
    fails(found, "exceeds the packet limit of", "or more (mosquitto's max_packet_size")
    for topic in ("device/cam/telemetry (", "pipeline/p/result/cam ("):
        assert f"distree/1/lab/{topic}" in found.text


def test_a_broker_that_has_no_qos_2_is_tried_where_agents_alone_read(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, "max_qos 1") as broker, listener(broker.port, "distree/#") as all_heard:
        found = doctor(board(tmp_path, broker.port), *CHECKS)
        only(found)
        assert found["publish"].text == "publishes work on 2 topics of 10"
        all_heard.listen(time.monotonic() + 0.5)
        assert {topics.parse(message.topic).kind for message in all_heard.heard} <= {
            Kind.STAGE,
            Kind.OUTCOME,
            Kind.CALL,
        }


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (lambda will: 0, "ok", "(QoS 1, retained)"),
        (lambda will: 0x87, "unknown", "checks at the login whether this user may publish on the will's topic"),
        (lambda will: 0x9A if will.retain else 0, "failed", "does not support retained messages"),
        (lambda will: 0x9B if will.qos else 0, "failed", "accepts publishes at QoS 0 only"),
        (lambda will: 0x9A if will.retain else 0x87, "unknown", "checks at the login"),
        (lambda will: 0x83, "failed", "refuses a login with a will"),
        (lambda will: None, "failed", "hangs up on a login with a will"),
        (lambda will: None if will.retain else 0, "failed", "hangs up on retained messages"),
        (lambda will: None if will.qos else 0, "failed", "hangs up on publishes at QoS 1"),
    ],
)
def test_answers_to_a_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[Will], int | None], status: str, words: str
) -> None:
    """Brokers that answer like this are not at hand, so the answer stands in for them; logins without one are real."""
    monkeypatch.setattr(delivery, "login_with_will", lambda _context, will: answer(will))
    with Mosquitto(tmp_path) as broker:
        finding = doctor(board(tmp_path, broker.port), "login", "will")["will"]
    assert finding.status == status, finding
    assert words in finding.text


# ---------------------------------------------------------------- nobody is disturbed


def test_a_will_that_fires_all_the_same_reaches_no_board_and_leaves_nothing(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, listener(broker.port, "distree/#") as all_heard:
        path = board(tmp_path, broker.port)
        with agent(path):
            will = harmless_will(CheckContext(config=load_agent_config(path), timeout_s=PATIENCE_S), 1, True)
            sock = socket.create_connection(("127.0.0.1", broker.port), PATIENCE_S)
            assert ProbeClient(sock).connect("dies", None, None, time.monotonic() + PATIENCE_S, will).code == 0
            sock.close()  # without a word

            def fired() -> bool:
                return any(message.topic == will.topic for message in all_heard.heard)

            assert all_heard.listen(time.monotonic() + PATIENCE_S, fired)
            assert topics.parse(will.topic).origin == NOBODY
            with listener(broker.port, "distree/#") as late:
                late.listen(time.monotonic() + PATIENCE_S, lambda: len(late.heard) >= 3)
                retained = {message.topic: message for message in late.heard if message.retain}
            assert will.topic not in retained
            state = retained[topics.device("lab", "cam", Kind.STATE)]
            assert decode(DeviceState, state.payload).status.value == "ready"
            report = topics.device("lab", "cam", Kind.TELEMETRY)
            count = len(all_heard.heard)
            all_heard.listen(
                time.monotonic() + PATIENCE_S, lambda: any(m.topic == report for m in all_heard.heard[count:])
            )
            last = [message for message in all_heard.heard if message.topic == report][-1]
            assert decode(Telemetry, last.payload).dead_letters == 0


def test_a_live_site_behind_a_proxy_that_hangs_up_is_not_disturbed(tmp_path: Path) -> None:
    """Broken connections leave nothing behind either: no state, nothing retained, no dead letter."""

    def dislikes(packet: Packet) -> bool:
        return packet.retain or packet.has_will or len(packet.filters) > 2 or packet.size > 1500

    with Mosquitto(tmp_path) as broker, listener(broker.port, "distree/#") as all_heard:
        with (
            agent(board(tmp_path, broker.port)),
            contextlib.closing(Proxy(broker.port, hangs_up_if(dislikes))) as proxy,
        ):
            found = doctor(board(tmp_path, proxy.port), *CHECKS[:-1])  # another port is another name
            only(found, "retained", "will", "subscribe", "max-packet")
            report = topics.device("lab", "cam", Kind.TELEMETRY)
            count = len(all_heard.heard)
            all_heard.listen(
                time.monotonic() + PATIENCE_S,
                lambda: sum(message.topic == report for message in all_heard.heard[count:]) >= 2,
            )
        heard = [(topics.parse(message.topic).kind, message) for message in all_heard.heard]
        trials = {kind for kind, message in heard if kind is not Kind.THUMBNAIL and message.payload == PROBE}
        assert trials <= {Kind.OUTCOME, Kind.INPUT, Kind.STAGE}
        assert not [message for kind, message in heard if kind is Kind.DEAD]
        states = {decode(DeviceState, message.payload).status.value for kind, message in heard if kind is Kind.STATE}
        assert states == {"ready"}


@pytest.mark.parametrize("boards", [
    {"cam": {}, "b1": {"stages": [1, 2], "origin": None}},
    {"cam": {"stages": [0, 1, 2]}},
    {"cam": {"bundle": str(WIDE), "stages": []},
     "b0": {"bundle": str(WIDE), "stages": [0, 1, 2], "branch": 0, "origin": None},
     "b1": {"bundle": str(WIDE), "stages": [0, 1, 2], "branch": 1, "origin": None}},
])  # fmt: skip
def test_sizes_are_reckoned_larger_than_they_are(tmp_path: Path, boards: dict[str, Any]) -> None:
    """What agents say while they work: every message is within what the doctor takes to be its largest."""
    with Mosquitto(tmp_path) as broker, listener(broker.port, "distree/#") as all_heard:
        configs = []
        with contextlib.ExitStack() as stack:
            for name, changes in boards.items():
                path = board(tmp_path, broker.port, name, **changes)
                configs.append((load_agent_config(path), load_bundles(load_agent_config(path))))
                stack.enter_context(agent(path))
            shape = configs[0][1][0].manifest.input.shape
            dtype = configs[0][1][0].manifest.input.dtype
            rng = np.random.default_rng(1)
            arrays = [rng.integers(0, 200, shape).astype(dtype) for _ in range(20)]
            if boards["cam"].get("bundle") is None:
                with np.load(find_bundle("fashion").parents[1] / "samples" / "fashion.npz") as samples:
                    arrays = list(samples["input"][:20])
            for payload in [b"junk", *(array.tobytes() for array in arrays)]:
                topic = topics.of_origin("lab", "p", Kind.INPUT, "cam")
                all_heard.publish(topic, payload, qos=1, until=time.monotonic() + PATIENCE_S)

            def done() -> bool:
                return sum(topics.parse(message.topic).kind is Kind.RESULT for message in all_heard.heard) >= 20

            assert all_heard.listen(time.monotonic() + PATIENCE_S, done)
            count = len(all_heard.heard)
            all_heard.listen(
                time.monotonic() + PATIENCE_S,
                lambda: sum(m.topic.endswith("/telemetry") for m in all_heard.heard[count:]) >= 2 * len(boards),
            )
        for message in all_heard.heard:
            sizes = [
                resource_estimate.message_bytes(config, bundles, message.topic)
                for config, bundles in configs
                if message.topic in own_topics(config, bundles, topics.parse(message.topic).sender or "")
            ]
            assert all(len(message.payload) <= size for size in sizes), (message.topic, len(message.payload), sizes)


def test_every_topic_of_a_board_has_a_size(tmp_path: Path) -> None:
    thumbnails = {"source": {"kind": "mqtt"}, "thumbnails": {"max_side_px": 48, "max_rate_hz": 1}}
    for changes in (
        {"stages": [0, 1], "origin": thumbnails},
        {"bundle": str(WIDE), "stages": [0, 1, 2], "branch": 1, "fuse": True},
        {"bundle": str(MIXED), "stages": [0, 3]},
    ):
        config = load_agent_config(board(tmp_path, 1, **changes))
        bundles = load_bundles(config)
        for topic in own_topics(config, bundles, "hub"):
            assert 100 <= resource_estimate.message_bytes(config, bundles, topic) < 1 << 20, topic


# ---------------------------------------------------------------- lines and the client


def test_each_problem_has_its_remedy_as_a_field() -> None:
    settings = BrokerSettings(host="hub", port=8883)
    problems = [
        connect_errors.breaks_by_itself(settings),
        connect_errors.hangs_up_on_will(settings),
        connect_errors.refuses_will(settings),
        connect_errors.hangs_up_on_subscribe(settings, ["a/+"]),
        connect_errors.hangs_up_on_subscribe(settings, ["a/+", "b", "c"]),
        connect_errors.hangs_up_on_size(settings, 1500, 1499),
        connect_errors.hangs_up_on_retained(settings),
        connect_errors.hangs_up_on_qos(settings),
        connect_errors.takes_no_retained(settings),
        connect_errors.takes_no_qos_1(settings),
    ]
    for topic in ("a/topic", topics.plan("lab", "p"), topics.orchestrator("lab"), topics.label("lab", "p")):
        problems += [
            connect_errors.hangs_up_on_publish(settings, topic, 9),
            connect_errors.too_large(settings, topic, 9, 8),
        ]
    for kind in Kind:
        assert kind in connect_errors.LOSSES
    for problem in problems:
        assert "hub:8883" in problem.what, problem
        assert problem.remedy.split()[0] in ("allow", "raise", "set", "check"), problem
        for finding, status in ((failure_from(problem), "failed"), (note_from(problem), "ok")):
            assert (finding.status, finding.text, finding.remedy) == (status, *problem)


def test_a_client_tells_a_hang_up_from_a_silent_peer(tmp_path: Path) -> None:
    def soon() -> float:
        return time.monotonic() + PATIENCE_S

    with Mosquitto(tmp_path) as broker:
        for five in (True, False):
            one = ProbeClient(socket.create_connection(("127.0.0.1", broker.port), PATIENCE_S), is_mqtt5=five)
            will = Will(topic="w", payload=b"gone", qos=1, retain=False)
            assert one.connect(f"one-{five}", None, None, soon(), will).code == 0
            assert one.subscribe_all(["a/+", "w", "b"], soon()) == [1, 1, 1]
            assert one.publish("a/1", b"x", qos=1, until=soon()) in (0, 0x10)
            assert one.publish("b", b"y", qos=0, until=soon()) == 0
            one.ping(soon())
            assert one.listen(soon(), lambda one=one: len(one.heard) == 2)
            one.sock.shutdown(socket.SHUT_RDWR)
            with pytest.raises(HangUpError):
                one.ping(soon())
            one.close()
    with Mosquitto(tmp_path, "retain_available false", "max_qos 0") as broker:
        one = ProbeClient(socket.create_connection(("127.0.0.1", broker.port), PATIENCE_S))
        greeting = one.connect("x", None, None, soon())
        assert (greeting.retains, greeting.max_qos) == (False, 0)
        one.close()


def test_a_hang_up_behind_tls(tmp_path: Path) -> None:
    """The proxy cannot read along here, so the broker itself hangs up: MQTT 3.1.1 has no other way to say no."""
    certificates = Certificates(tmp_path / "ca")
    tls = {"tls": {"ca_file": str(certificates.ca)}}
    with Mosquitto(tmp_path, *certificates.listener(), "retain_available false") as broker:
        config = load_agent_config(board(tmp_path, broker.port, broker=tls))
        context = CheckContext(config=config, timeout_s=PATIENCE_S, bundles=load_bundles(config), is_mqtt5=False)
        assert check_tls(context).status == "ok"
        fails(check_retained(context), "hangs up on retained messages", "retain_available true")
        assert check_will(context).text == "a login with a will works (QoS 1, not retained)"


@given(st.integers(0, 10_000), st.integers(1, 10_000), st.integers(1, 64), st.data())
def test_narrowing_down(low: int, more: int, within: int, data: st.DataObject) -> None:
    high = low + more
    first_bad = data.draw(st.integers(low + 1, high))
    passes, fails_at = bisected(low, high, lambda n: n >= first_bad, within)
    assert passes < first_bad <= fails_at
    assert fails_at - passes <= within
