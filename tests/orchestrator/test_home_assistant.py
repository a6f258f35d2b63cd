"""Discovery as Home Assistant documents it, of boards and messages as they are, on a real mosquitto."""

from __future__ import annotations

import json
import re
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import forked
import jinja2
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orchestrator_samples import SITE, meta, send, state, telemetry, write_config

from broker_config.managed import ManagedBroker, find_mosquitto
from distree import topics
from distree.apps.cli import main
from distree.broker_settings import BrokerSettings, Session
from distree.errors import ConfigError
from distree.messages.codec import decode, encode
from distree.messages.device import DeviceMeta, DeviceState
from distree.messages.request import Hop
from distree.messages.result import Result, Stamp
from distree.messages.site import Claim, OriginStats
from distree.topics import Kind
from distree.transport import make_transport
from orchestrator import home_assistant as module
from orchestrator.config import HomeAssistantConfig, load_config
from orchestrator.fleet import Fleet
from orchestrator.home_assistant import SETTLE_S, HomeAssistant, device_message, is_of_site, site_message, updates
from orchestrator.store.database import Store

SCHEMA = jsonschema.Draft7Validator(json.loads((Path(__file__).parent / "home_assistant.schema.json").read_text()))
TOPIC = re.compile(r"homeassistant/device/[a-zA-Z0-9_-]+/config")
"""As the documentation has it: discovery prefix, component `device`, object id, `config`."""

PREFIX = "homeassistant"
ON = HomeAssistantConfig()
PATIENCE_S = 60.0
RESULT = Result(
    request="r-1", site=SITE, pipeline="fashion", origin="a", input="boot.png", label="Ankle boot", class_id=9,
    confidence=0.9981, exit=1, reason="confident", final=True, late=False, attempt=1, latency_s=0.0125, epoch=3,
    model="fashion", revision="r1", hops=(Hop(device="a", stage=0, queue_s=0.0, compute_s=0.001),),
)  # fmt: skip


def boards(*metas):
    fleet = Fleet({"fashion": 3, "other-one": 2})
    for one in metas:
        fleet.saw_state(0.0, state(device=one.device, boot=one.boot), retained=True)
        fleet.saw_meta(one)
        fleet.saw_telemetry(0.0, telemetry(device=one.device, boot=one.boot))
    return fleet


def said(message):
    """A discovery message, held to the documented form."""
    topic, payload = message
    assert TOPIC.fullmatch(topic)
    fields = json.loads(payload)
    faults = [f"{'/'.join(map(str, fault.path))}: {fault.message}" for fault in SCHEMA.iter_errors(fields)]
    assert not faults
    return fields


def of_board(**about):
    (device,) = boards(meta(**about))
    return said(device_message(PREFIX, SITE, device))


def rendered(template, payload, this="unknown", attributes=None):
    """What Home Assistant makes of a message by a value template."""
    made = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template)
    return made.render(value_json=json.loads(payload), this={"state": this, "attributes": attributes or {}})


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(
    "other", ["_kettle", "", "distree_lab_", "distree_lab_A", "distree_laboratory", "distree_lab2_cam"]
)
def test_what_others_announced_is_not_of_the_site(other):
    assert not is_of_site(SITE, f"{PREFIX}/device/{other}/config")


def test_the_schema_would_notice_what_is_not_documented():
    good = of_board()
    for broken in (
        {key: value for key, value in good.items() if key != "o"},
        {**good, "cmps": {}},
        {**good, "components_": {}},
        {**good, "dev": {"name": "x"}},
        {**good, "qos": 3},
        {**good, "cmps": {"x": {"p": "sensor", "unique_id": "x"}}},
        {**good, "cmps": {"x": {"p": "gauge", "unique_id": "x", "state_topic": "t"}}},
        {**good, "cmps": {"x": {"p": "sensor", "unique_id": "x", "state_topic": "a/b+/c"}}},
        {**good, "cmps": {"x": {"p": "sensor", "unique_id": "x", "state_topic": "t", "options": ["a"]}}},
    ):
        assert not SCHEMA.is_valid(broken)


def test_an_origin_has_its_answers_and_a_board_without_inputs_its_state_alone():
    of_origin = of_board()
    assert set(of_origin["cmps"]) == {
        "state", "fashion_answer", "fashion_exit", "fashion_latency", "fashion_early", "fashion_rate",
    }  # fmt: skip
    assert of_origin["dev"]["via_device"] == "distree_lab"
    assert (of_origin["dev"]["sw_version"], of_origin["dev"]["model"]) == ("0.1.0", "aarch64")
    assert set(of_board(origin=False)["cmps"]) == {"state"}


def test_the_site_has_the_orchestrator_and_the_last_answer_of_all_origins():
    fields = said(site_message(PREFIX, SITE, ["fashion", "other-one"]))
    assert fields["cmps"]["fashion_answer"]["state_topic"] == "distree/1/lab/pipeline/fashion/result/+"
    assert set(fields["cmps"]) == {
        "orchestrator",
        *(f"{name}_{what}" for name in ("fashion", "other-one") for what in ("answer", "exit", "latency")),
    }


ids = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=32)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=64)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=6), st.lists(ids, min_size=1, max_size=4, unique=True))
@settings(deadline=None)
def test_nothing_shares_an_id_or_a_topic_whatever_things_are_called(places, pipelines):
    messages = {}
    for site, name in places:
        fleet = Fleet(dict.fromkeys(pipelines, 3))
        device = fleet.saw_meta(replace(meta(device=name), origins=tuple(pipelines)))
        messages[site, None] = site_message(PREFIX, site, pipelines)
        messages[site, name] = device_message(PREFIX, site, device)
        assert is_of_site(site, messages[site, name][0])
        assert is_of_site(site, messages[site, None][0])
        assert not any(is_of_site(other, messages[site, name][0]) for other, _ in places if other != site)
    assert len({topic for topic, _ in messages.values()}) == len(messages)
    unique = [part["unique_id"] for message in messages.values() for part in said(message)["cmps"].values()]
    assert len(set(unique)) == len(unique)


@given(texts, texts)
@settings(deadline=None)
def test_what_a_board_says_of_itself_stays_a_text(version, machine):
    fields = of_board_of(version, machine)
    assert (fields["dev"]["sw_version"], fields["dev"]["model"]) == (version, machine)


def of_board_of(version, machine):
    told = decode(DeviceMeta, encode(replace(meta(), version=version, machine=machine)))
    (device,) = boards(told)
    return said(device_message(PREFIX, SITE, device))


@pytest.mark.parametrize("prefix", ["", "a b", "a/+", "#", "/a", "a/", "distree/1", "distree", "x" * 65, "ä"])
def test_a_prefix_that_cannot_be_one_is_refused(prefix):
    with pytest.raises(ConfigError, match="discovery prefix"):
        HomeAssistantConfig(prefix=prefix)


# ---------------------------------------------------------------- templates, on what topics really carry


def result_of(**changes):
    return encode(replace(RESULT, **changes), Stamp(time="2026-01-01T00:00:00+00:00", clock_synced=True))


def test_templates_read_results():
    parts = of_board()["cmps"]
    final, late = result_of(), result_of(final=False, late=True, label="Bag", exit=2)
    shed = result_of(label=None, class_id=None, exit=None, reason="shed")
    answer, leave = parts["fashion_answer"], parts["fashion_exit"]["value_template"]
    assert rendered(answer["value_template"], final) == "Ankle boot"
    assert rendered(answer["value_template"], late, this="Sneaker") == "Sneaker"
    # Home Assistant takes the word None for an unknown state.
    assert rendered(answer["value_template"], shed) == "None"
    assert [rendered(leave, one, this="0") for one in (final, late, shed)] == ["1", "0", "None"]
    latency = parts["fashion_latency"]["value_template"]
    assert [rendered(latency, one) for one in (final, late)] == ["12.5", ""]
    attributes = json.loads(
        rendered(answer["json_attributes_template"], late, attributes={"input": "x", "reason": "last"})
    )
    assert attributes == {"input": "x", "confidence": None, "reason": "last"}
    attributes = json.loads(rendered(answer["json_attributes_template"], final))
    assert attributes == {"input": "boot.png", "confidence": 0.9981, "reason": "confident"}
    hostile = "a\"b'{{ 1 }}\\</script>"
    attributes = json.loads(rendered(answer["json_attributes_template"], result_of(input=hostile, label=hostile)))
    assert attributes["input"] == hostile
    assert rendered(answer["value_template"], result_of(label=hostile)) == hostile


def test_templates_read_states_and_the_orchestrator_s_claim():
    fields = of_board()
    (present,) = fields["availability"]
    (always,) = fields["cmps"]["state"]["availability"]
    for status, is_present in (("ready", True), ("draining", True), ("lost", False), ("init", False)):
        payload = encode(state(status=status))
        assert rendered(present["value_template"], payload) == ("online" if is_present else "offline")
        assert rendered(always["value_template"], payload) == "online"
        assert rendered(fields["cmps"]["state"]["value_template"], payload) == status
        assert status in fields["cmps"]["state"]["options"]
    claim = said(site_message(PREFIX, SITE, []))["cmps"]["orchestrator"]["value_template"]
    claims = [encode(Claim(orchestrator="x", running=running)) for running in (True, False)]
    assert [rendered(claim, payload) for payload in claims] == ["ON", "OFF"]


def test_templates_read_figures_of_origins():
    figures = OriginStats(
        pipeline="fashion", origin="a", epoch=3, answered=105, pending=1, rate_hz=0.5, early_share=0.2,
        latency_p50_s=0.004, latency_p95_s=0.009,
    )  # fmt: skip
    idle = replace(figures, early_share=None, latency_p50_s=None, latency_p95_s=None)
    parts = of_board()["cmps"]
    early, rate = parts["fashion_early"]["value_template"], parts["fashion_rate"]["value_template"]
    assert float(rendered(early, encode(figures))) == 20.0
    assert rendered(early, encode(idle)) == "None"
    assert float(rendered(rate, encode(figures))) == 0.5


def test_figures_are_published_only_where_home_assistant_is_told():
    figures = OriginStats(
        pipeline="fashion", origin="a", epoch=3, answered=105, pending=1, rate_hz=0.5, early_share=0.2,
        latency_p50_s=0.004, latency_p95_s=0.009,
    )  # fmt: skip
    for config, due in ((ON, [figures]), (None, [])):
        home = HomeAssistant(config, SITE, ["fashion"])
        home.take_stats([figures])
        assert (home.stats_due(), home.stats_due()) == (due, [])


# ---------------------------------------------------------------- what is due when


def told(home, now_s, fleet):
    messages = home.due(now_s, fleet)
    home.done(messages)
    return messages


def test_a_board_of_which_only_the_description_is_left_is_not_announced():
    fleet, home = boards(), HomeAssistant(ON, SITE, ["fashion"])
    fleet.saw_meta(meta())
    fleet.saw_telemetry(0.0, telemetry())
    home.connected(0.0)
    assert [said(message)["dev"]["identifiers"] for message in told(home, 1.0, fleet)] == [["distree_lab"]]
    fleet.saw_state(2.0, state())
    home.changed()
    assert [said(message)["dev"]["identifiers"] for message in told(home, 2.0, fleet)] == [["distree_lab_a"]]


@pytest.mark.parametrize("first", [state(boot="b2", status="lost"), meta(boot="b2")])
def test_a_run_that_has_not_said_all_yet_takes_no_board_away(first):
    """A will that comes after a birth, a restart, or a forged message."""
    fleet, home = boards(meta()), HomeAssistant(ON, SITE, ["fashion"])
    told(home, 0.0, fleet)
    if isinstance(first, DeviceState):
        fleet.saw_state(1.0, first)
    else:
        fleet.saw_meta(first)
    home.changed()
    assert told(home, 1.0, fleet) == []
    assert fleet.forget("a")
    home.changed()
    assert [payload for _, payload in told(home, 2.0, fleet)] == [b""]


def test_all_is_told_once_and_again_after_a_connect_and_a_birth():
    fleet, home = boards(meta(), meta(device="b")), HomeAssistant(ON, SITE, ["fashion"])
    home.connected(0.0)
    first = told(home, 1.0, fleet)
    assert [said(message)["dev"]["identifiers"] for message in first] == [
        ["distree_lab"], ["distree_lab_a"], ["distree_lab_b"],
    ]  # fmt: skip
    assert told(home, 2.0, fleet) == []
    home.changed()
    assert told(home, 3.0, fleet) == []
    home.heard_birth(b"offline")
    assert told(home, 4.0, fleet) == []
    home.heard_birth(b"online")
    assert told(home, 5.0, fleet) == first
    home.connected(6.0)
    assert told(home, 7.0, fleet) == first


def test_a_board_that_never_reported_is_made_up_and_not_announced():
    fleet, home = boards(), HomeAssistant(ON, SITE, [])
    for name in ("a", "b"):
        fleet.saw_state(0.0, state(device=name), retained=True)
        fleet.saw_meta(meta(device=name))
    assert [topic for topic, _ in told(home, 1.0, fleet)] == ["homeassistant/device/distree_lab/config"]
    fleet.saw_telemetry(2.0, telemetry(device="b"))
    home.heard("b", reported=True)
    assert [topic for topic, _ in told(home, 2.0, fleet)] == ["homeassistant/device/distree_lab_b/config"]
    # What was announced stays, though no report has come since the orchestrator started.
    again, known = HomeAssistant(ON, SITE, []), boards()
    known.saw_state(0.0, state(device="b"), retained=True)
    known.saw_meta(meta(device="b"))
    again.recall(home._announced)
    again.connected(0.0)
    assert [topic for topic, payload in told(again, SETTLE_S, known) if not payload] == []


def test_the_number_of_boards_announced_is_bounded_and_told(monkeypatch):
    monkeypatch.setattr(module, "MAX_BOARDS", 3)
    home, fleet = HomeAssistant(ON, SITE, []), boards(*(meta(device=f"board-{k}") for k in range(10)))
    assert len(told(home, 0.0, fleet)) == 1 + 3
    assert home.problem == module.TOO_MANY
    # Those that are there stay, and whoever goes makes room.
    fleet.forget("board-1")
    home.changed()
    assert [(topic.split("_")[-1], bool(payload)) for topic, payload in told(home, 1.0, fleet)] == [
        ("board-3/config", True), ("board-1/config", False),
    ]  # fmt: skip


def test_a_store_that_fails_delays_and_loses_nothing():
    fleet, home = boards(meta()), HomeAssistant(ON, SITE, [])
    home.connected(0.0)
    due = home.due(1.0, fleet)
    assert due == home.due(2.0, fleet) == told(home, 3.0, fleet)
    assert told(home, 4.0, fleet) == []


def test_a_board_that_is_gone_is_taken_back_once_all_had_time_to_show_up():
    fleet, home = boards(meta(), meta(device="b")), HomeAssistant(ON, SITE, [])
    home.connected(0.0)
    told(home, 1.0, fleet)
    topic = "homeassistant/device/distree_lab_b/config"
    fleet.forget("b")
    home.changed()
    assert told(home, 2.0, fleet) == []
    assert told(home, SETTLE_S, fleet) == [(topic, b"")]
    again = HomeAssistant(ON, SITE, [])
    again.recall({topic: b"{}"})
    again.connected(0.0)
    assert topic not in dict(told(again, 1.0, fleet))
    assert told(again, SETTLE_S + 1.0, fleet) == [(topic, b"")]


def test_switched_off_or_elsewhere_all_is_taken_back():
    before = {"homeassistant/device/distree_lab_b/config": b"{}", "homeassistant/device/distree_lab/config": b"{}"}
    off = HomeAssistant(None, SITE, ["fashion"])
    off.recall(before)
    assert (off.is_on, off.birth_topic) == (False, None)
    assert told(off, 0.0, boards(meta())) == [(topic, b"") for topic in before]
    assert told(off, 100.0, boards(meta())) == []
    elsewhere = HomeAssistant(HomeAssistantConfig(prefix="ha"), SITE, [])
    elsewhere.recall(before)
    elsewhere.connected(0.0)
    assert [topic for topic, _ in told(elsewhere, 1.0, boards())] == ["ha/device/distree_lab/config"]
    assert dict(told(elsewhere, SETTLE_S, boards())) == dict.fromkeys(before, b"")


def test_a_component_that_is_gone_is_named_once_more_with_its_platform_alone():
    _, before = device_message(PREFIX, SITE, next(iter(boards(meta()))))
    topic, after = device_message(PREFIX, SITE, next(iter(boards(meta(origin=False)))))
    removing, last = updates(before, after)
    fields = said((topic, removing))
    assert fields["cmps"]["fashion_answer"] == {"p": "sensor"}
    assert set(fields["cmps"]) == set(json.loads(before)["cmps"])
    assert last == after
    assert list(updates(after, before)) == [before]


def test_the_store_keeps_what_was_announced(tmp_path):
    with Store(tmp_path / "x.db") as store:
        store.announce([("a", b"1"), ("b", b"2"), ("a", b"3")])
        store.announce([("b", b"")])
        assert store.announced() == {"a": b"3"}
    with Store(tmp_path / "x.db") as store:
        assert store.announced() == {"a": b"3"}


# ---------------------------------------------------------------- a real broker, orchestrator and client


class Client:
    """Stands in for Home Assistant, and for boards; keeps the last message of each topic, and counts them."""

    def __init__(self, port):
        self.transport = make_transport(
            BrokerSettings(port=port), client_id="home", session=Session.NONE, receive_maximum=256
        )
        self.last, self.count = {}, {}
        self.transport.open(self, [(f"{PREFIX}/#", 1), ("distree/1/lab/pipeline/+/stats/+", 0)])
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
        self.last[message.topic] = message.payload
        self.count[message.topic] = self.count.get(message.topic, 0) + 1

    def until(self, condition, what):
        ends_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < ends_at, (what, self.last)
            self.transport.poll(0.02)

    def say(self, *messages):
        for message in messages:
            send(self.transport, message)

    def raw(self, topic, payload, retain=False):
        with self.transport.lock:
            self.transport.publish(topic, payload, qos=1, retain=retain)

    def config(self, identifier):
        return self.last.get(f"{PREFIX}/device/{identifier}/config", b"")


class House:
    """A mosquitto, an orchestrator on it and a client."""

    def __init__(self, folder, broker):
        self.folder, self.client = folder, Client(broker.port)
        self.path = write_config(folder, port=broker.port)
        self.off = self.path.read_text()
        self.process = None

    def start(self, home="home_assistant: {}\n"):
        self.path.write_text(self.off + home)
        command = ["orchestrator", "run", "-c", str(self.path)]
        # A board that is gone is taken back after a second instead of ten.
        hasten = partial(exec, "import orchestrator.home_assistant as module; module.SETTLE_S = 1.0")
        self.process = forked.start(command, stderr=self.folder / "log", before=hasten)

    def stop(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(30) == 0
            self.process = None

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.client.transport.close()


@pytest.fixture
def house(tmp_path):
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")
    with ManagedBroker(engine="mosquitto") as broker:
        house = House(tmp_path, broker)
        yield house
        house.close()


def test_boards_appear_are_told_again_at_a_birth_and_go(house):
    client = house.client
    client.say(state(), meta(), state(device="b"), meta(device="b", origin=False))
    house.start()
    client.until(lambda: client.config("distree_lab"), "the site")
    client.say(telemetry(), telemetry(device="b"))
    client.until(lambda: client.config("distree_lab_b") and client.config("distree_lab_a"), "both boards")
    for identifier in ("distree_lab", "distree_lab_a", "distree_lab_b"):
        said((f"{PREFIX}/device/{identifier}/config", client.config(identifier)))
    # What its templates read is there.
    early = json.loads(client.config("distree_lab_a"))["cmps"]["fashion_early"]
    client.until(lambda: early["state_topic"] in client.last, "figures")
    assert float(rendered(early["value_template"], client.last[early["state_topic"]])) == 90.0

    before = dict(client.count)
    client.raw(f"{PREFIX}/status", b"online")
    client.until(
        lambda: all(client.count[topic] > count for topic, count in before.items() if topic.endswith("config")),
        "all of it again",
    )
    client.raw(topics.device(SITE, "b", Kind.STATE), b"", retain=True)
    client.until(lambda: not client.config("distree_lab_b"), "the board that was removed to go")
    assert client.config("distree_lab_a")

    # Off, it is all taken back.
    house.stop()
    assert client.config("distree_lab_a")
    house.start(home="")
    client.until(lambda: not client.config("distree_lab_a") and not client.config("distree_lab"), "all to go")


def test_the_command_shows_and_removes_what_is_there(house, capsys):
    client = house.client
    client.raw(f"{PREFIX}/device/kettle/config", b'{"dev": {}}', retain=True)
    client.say(state(), meta())
    house.start()
    client.until(lambda: client.config("distree_lab"), "the site")
    client.say(telemetry())
    client.until(lambda: client.config("distree_lab_a"), "the board")
    words = ["orchestrator", "home-assistant", "-c", str(house.path)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "homeassistant/device/distree_lab_a/config: lab a, 6 entities\n" in shown
    assert "kettle" not in shown
    assert main([*words, "--remove"]) == 0
    out = capsys.readouterr().out
    assert "removed homeassistant/device/distree_lab_a/config: lab a, 6 entities" in out
    assert "the running orchestrator announces the site again" in out
    client.until(lambda: not client.config("distree_lab_a") and not client.config("distree_lab"), "all to go")
    assert client.config("kettle")
    assert main([*words, "--remove"]) == 0
    assert capsys.readouterr().out == "nothing about site lab at homeassistant/device/+/config\n"
    assert main([*words, "--prefix", "distree/x"]) == 2


HOSTILE = ['a"b', "{{ 1 }}", "a b", "A", "ä", "..", "x" * 33, "%s", "a'--", "\\", "a_b"]


def test_hostile_boards_break_neither_topics_nor_json(house):
    client = house.client
    house.start()
    client.until(lambda: client.config("distree_lab"), "the site")
    for name in HOSTILE:
        for kind, payload in ((Kind.STATE, encode(state())), (Kind.META, encode(meta()))):
            forged = payload.replace(b'"device":"a"', b'"device":' + json.dumps(name).encode())
            client.raw(f"distree/1/lab/device/{name}/{kind.value}", forged, retain=True)
            # On a topic that is right, with another name inside.
            client.raw(topics.device(SITE, "forged", kind), forged, retain=True)
    client.raw(topics.device(SITE, "ok", Kind.STATE), encode(state(device="ok")), retain=True)
    hostile_text = "\"}}{{ states('x') }}{% raw %}</b>\\"
    client.raw(
        topics.device(SITE, "ok", Kind.META),
        encode(replace(meta(device="ok", runtime=hostile_text), version=hostile_text, machine=hostile_text)),
        retain=True,
    )
    client.say(telemetry(device="ok"))
    client.until(lambda: client.config("distree_lab_ok"), "the board with an odd description")
    configs = [topic for topic in client.last if topic.endswith("/config")]
    assert set(configs) == {f"{PREFIX}/device/{name}/config" for name in ("distree_lab", "distree_lab_ok")}
    fields = said((configs[-1], client.config("distree_lab_ok")))
    assert fields["dev"]["model"] == hostile_text


def test_off_by_default(tmp_path):
    path = write_config(tmp_path)
    assert load_config(path).home_assistant is None
    path.write_text(path.read_text() + "home_assistant: {prefix: ha/lab}\n")
    assert load_config(path).home_assistant == HomeAssistantConfig(prefix="ha/lab")
    path.write_text(path.read_text().replace("ha/lab", "'ha/#'"))
    with pytest.raises(ConfigError, match=r"orchestrator.yaml:6: home_assistant.prefix: 'ha/#' is not"):
        load_config(path)
