import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from orchestrator_samples import (
    SITE,
    WIDE,
    fusion,
    meta,
    origin,
    send,
    stage,
    state,
    telemetry,
    write_config,
)

from broker_config.managed import ManagedBroker, find_mosquitto
from distree import topics
from distree.apps.cli import main
from distree.broker_settings import BrokerSettings, Session
from distree.messages.codec import decode
from distree.messages.plan import Plan
from distree.messages.telemetry import PipelineTelemetry
from distree.topics import Kind
from distree.transport import make_transport
from orchestrator.complaints import NAMESAKE_S
from orchestrator.config import load_config
from orchestrator.fleet import Fleet
from orchestrator.leadership import Role
from orchestrator.set_thresholds import progress
from orchestrator.status import read_status, render
from orchestrator.store.database import Store
from orchestrator.store.records import Batch, Observation, PipelineRow, Refused, ServiceRow

LONG_S = 60.0


def command(*words):
    return main(["orchestrator", *map(str, words)])


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


@pytest.fixture
def store_path(config):
    return load_config(config).store.path


def device(name, sequence=1, epoch=1, status="ready", runtime="litert"):
    fleet = Fleet({"fashion": 3})
    fleet.saw_state(0.0, state(device=name, status=status))
    fleet.saw_meta(meta(device=name, runtime=runtime))
    return fleet.saw_telemetry(0.0, telemetry(device=name, sequence=sequence, epoch=epoch))


def fill(store_path, *devices, at):
    seen = tuple(Observation(device=one, heard_at=at, seen_at=at) for one in devices)
    service = ServiceRow(pid=1, started_at=at, online=True, refused=(Refused(reason="field", count=3),))
    with Store(store_path) as store:
        store.save(Batch(devices=seen, reported=seen, service=service))


# ---------------------------------------------------------------- without a broker


def test_set_thresholds_says_what_happens(config, store_path, capsys):
    assert command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4") == 0
    assert "max_softmax 0.5 0.4 is epoch 1; it is published when an orchestrator runs" in capsys.readouterr().out
    assert command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4") == 0
    assert "epoch 1 already; nothing changes" in capsys.readouterr().out
    words = ("set-thresholds", "-c", config, "--pipeline", "fashion", "--criterion", "energy")
    assert command(*words, "-3.5", "-2") == 0
    assert "energy -3.5 -2 is epoch 2" in capsys.readouterr().out
    with Store(store_path, read_only=True) as store:
        assert [row.author for row in store.plans("fashion")] == ["set-thresholds"] * 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--pipeline", "fashion", "0.5"), "1 thresholds given"),
        (("--pipeline", "fashion", "0.5", "nan"), "finite"),
        (("--pipeline", "fashion", "--criterion", "nothing", "0.5", "0.5"), "unknown criterion"),
        (("--pipeline", "other", "0.5", "0.5"), "name one of fashion"),
        (("--pipeline", "fashion", "0.5", "0.5", "--wait", "nan"), "0 seconds or more"),
    ],
)
def test_what_does_not_fit_is_refused_with_status_2(config, store_path, capsys, words, told):
    assert command("set-thresholds", "-c", config, *words) == 2
    assert told in capsys.readouterr().err
    with contextlib.suppress(Exception), Store(store_path, read_only=True) as store:
        assert store.latest_plan("fashion") is None


def test_waiting_names_who_is_missing(config, store_path, capsys):
    fill(store_path, device("a"), device("b"), device("c", status="lost"), at=time.time())
    words = ("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4", "--wait", "0.05")
    assert command(*words) == 0  # epoch 1 is what they report
    assert "in force on a, b" in capsys.readouterr().out
    assert command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.3", "0.4", "--wait", "0.05") == 1
    assert "not in force on a, b" in capsys.readouterr().err


def test_waiting_without_any_device_fails(config, capsys):
    words = ("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4", "--wait", "0.05")
    assert command(*words) == 1
    assert "no ready device serves it" in capsys.readouterr().err


def test_a_plan_that_was_replaced_is_waited_for_no_longer(config, store_path):
    with Store(store_path) as store:
        command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4")
        plan = store.latest_plan("fashion").plan
        command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.1", "0.1")
        assert progress(store, plan).superseded_by == 2


def test_status_before_the_first_run_is_one_clear_line(config, capsys):
    assert command("status", "-c", config) == 1
    assert "no store yet" in capsys.readouterr().err


def test_status_shows_devices_and_pipelines(config, store_path, capsys):
    fill(store_path, device("a", runtime="litert"), device("b", epoch=0), at=1000.0)
    command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4")
    capsys.readouterr()
    text = render(read_status(load_config(config), now=1200.0))
    assert "orchestrator does NOT run on this machine; newest data 3 min old" in text
    assert "messages refused: field 3" in text
    assert "\x1b" not in text
    assert "litert" in text
    assert "epoch 1 wanted, waiting for b" in text
    assert "0: 70.0% (140)   1: 20.0% (40)   2: 10.0% (20)" in text
    assert "confident: 90.0% (180)" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["a", "101", "100", "1", "1", "2", "4.0", "9.0", "20.0"] in lines
    assert ["0", "a", "100", "70", "30", "1", "2", "3", "4", "5", "1.0", "2.0"] in lines
    assert command("status", "-c", config) == 0
    assert "ready (silent)" in capsys.readouterr().out


def test_status_as_json_is_for_programs(config, store_path, capsys):
    fill(store_path, device("a"), at=time.time())
    assert command("status", "-c", config, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "distree.orchestrator-status/1"
    assert shown["running"] is False
    assert shown["devices"][0]["serves"] == ["fashion/0", "fashion/origin"]
    assert shown["pipelines"][0]["exits"][0] == {"name": "0", "count": 70, "share": 0.7}
    assert shown["pipelines"][0]["stages"][0]["report"]["received"] == 100
    assert shown["pipelines"][0]["plan"] is None


# ---------------------------------------------------------------- wide stages


def board(name, *, stages=(0, 1, 2), branch=None, status="ready", fusions=(), wasted=0, **roles):
    """A board of a wide pipeline as the fleet knows it."""
    fleet = Fleet({"fashion": 3})
    fleet.saw_state(0.0, state(device=name, status=status))
    fleet.saw_meta(meta(device=name, stages=stages, branch=branch, **{"origin": False, **roles}))
    part = PipelineTelemetry(
        pipeline="fashion",
        epoch=1,
        revision="r1",
        stages=tuple(stage(k, wasted=wasted * k) for k in stages),
        origin=origin() if roles.get("origin") else None,
        fusions=tuple(fusions),
    )
    return fleet.saw_telemetry(0.0, telemetry(device=name, pipelines=(part,)))


@pytest.fixture
def wide(config, store_path):
    """A store of a wide pipeline of which branch 1 has no ready board at any stage."""
    fusions = [fusion(0), fusion(1, missing=(0, 2)), fusion(2, missing=(0, 0))]
    boards = (
        board("b0", branch=0, wasted=11),
        board("b0-too", branch=0, status="lost"),
        board("b1", branch=1, status="draining"),
        board("cam", stages=(), origin=True, fuser=True, fusions=fusions),
    )
    fill(store_path, *boards, at=1000.0)
    with Store(store_path) as store:
        store.save(Batch(pipelines=(PipelineRow(name="fashion", branches=(2, 2, 2)),)))
    return config


def test_status_shows_which_branch_is_where_and_which_has_no_board(wide):
    lines = render(read_status(load_config(wide), now=1001.0)).splitlines()
    for k in range(3):
        assert f"  stage {k} branch 0: b0, b0-too (not ready)" in lines
        assert f"  stage {k} branch 1: NO READY BOARD, b1 (not ready)" in lines
    words = [line.split() for line in lines]
    assert any(row[:3] == ["b0", "ready", "fashion/0.0,fashion/1.0,fashion/2.0"] for row in words)
    assert any(row[:3] == ["cam", "ready", "fashion/fuser,fashion/origin"] for row in words)


def test_status_shows_what_was_fused_and_what_was_run_in_vain(wide):
    words = [line.split() for line in render(read_status(load_config(wide), now=1001.0)).splitlines()]
    head = ["FUSION", "DEVICE", "FUSED", "EXITED", "FORWARDED", "FAILED", "EXPIRED", "LATE", "MISSING"]
    assert head in words
    assert ["0", "cam", "100", "60", "37", "1", "2", "4", "branch", "0:", "3"] in words
    assert ["1", "cam", "100", "60", "37", "1", "2", "4", "branch", "1:", "2"] in words
    assert ["2", "cam", "100", "60", "37", "1", "2", "4", "-"] in words
    (stages,) = [row for row in words if row[:2] == ["STAGE", "BRANCH"]]
    assert stages[-1] == "WASTED"
    rows = [row for row in words if len(row) == len(stages) and row[2] == "b0"]
    assert [(row[0], row[1], row[-1]) for row in rows] == [("0", "0", "0"), ("1", "0", "11"), ("2", "0", "22")]


def test_status_as_json_has_the_branches_too(wide, capsys):
    assert command("status", "-c", wide, "--json") == 0
    (shown,) = json.loads(capsys.readouterr().out)["pipelines"]
    assert shown["branches"][1] == {"stage": 0, "branch": 1, "boards": ["b1"], "ready": []}
    assert shown["fusions"][0]["report"]["missing"] == [3, 0]
    assert [(line["branch"], line["report"]["wasted"]) for line in shown["stages"][:2]] == [(0, 0), (0, 0)]


def test_a_branch_that_no_board_ever_held_is_shown(config, store_path):
    fill(store_path, board("cam", stages=(), origin=True, fuser=True), at=1000.0)
    with Store(store_path) as store:
        store.save(Batch(pipelines=(PipelineRow(name="fashion", branches=(0, 2, 0)),)))
    lines = render(read_status(load_config(config), now=1001.0)).splitlines()
    assert [line for line in lines if " branch " in line] == [
        "  stage 1 branch 0: NO READY BOARD",
        "  stage 1 branch 1: NO READY BOARD",
    ]


def test_a_chain_shows_nothing_of_branches(config, store_path):
    fill(store_path, device("a"), at=1000.0)
    text = render(read_status(load_config(config), now=1200.0))
    assert not any(word in text for word in (" branch ", "BRANCH", "WASTED", "FUSION"))


def test_status_says_where_inputs_cannot_go_on(config, store_path, capsys):
    fleet = Fleet({"fashion": 3})
    fleet.saw_state(0.0, state(device="b1"))
    other = fleet.saw_meta(meta(device="b1", stages=(1,), origin=False, revision="r2"))
    fill(store_path, device("cam"), other, at=1000.0)
    assert "  members " not in render(read_status(load_config(config), now=1001.0))  # No service told of stages yet.
    with Store(store_path) as store:
        store.save(Batch(pipelines=(PipelineRow(name="fashion", branches=(0, 0, 0)),)))
    assert [
        line for line in render(read_status(load_config(config), now=1001.0)).splitlines() if "members" in line
    ] == [
        "  members  no member of revision r1 for stage 1; b1 has r2: put the same bundle on all boards",
        "  members  nobody serves stage 2: start a board that does",
    ]
    assert command("status", "-c", config, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pipelines"][0]["gaps"] == [
        {
            "stage": 1,
            "branch": None,
            "revision": "r1",
            "origins": ["cam"],
            "others": [{"device": "b1", "revision": "r2"}],
        },
        {"stage": 2, "branch": None, "revision": None, "origins": ["cam"], "others": []},
    ]


def test_set_thresholds_takes_those_for_missing_branches_along(tmp_path):
    path = tmp_path / "wide.yaml"
    path.write_text(f"site: lab\nstore: {{path: o.db}}\npipelines: [{{name: fashion, bundle: {WIDE}}}]\n")
    with Store(load_config(path).store.path) as store:
        for words, masked in [
            (("0.5", "0.4"), 2),
            (("--criterion", "margin", "0.3", "0.2"), 0),
            (("--criterion", "max_softmax", "0.6", "0.4"), 2),
        ]:
            assert command("set-thresholds", "-c", path, "--pipeline", "fashion", *words) == 0
            assert len(store.latest_plan("fashion").plan.masked) == masked


def test_thresholds_by_which_nobody_leaves_are_shown_as_never(config, capsys):
    command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "1e300")
    assert "max_softmax 0.5 never is epoch 1" in capsys.readouterr().out
    assert command("status", "-c", config) == 0
    assert "  plan     max_softmax 0.5 never (model" in capsys.readouterr().out
    assert command("status", "-c", config, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pipelines"][0]["plan"]["thresholds"] == [0.5, 1e300]


def test_status_shows_what_audits_cost_where_there_are_any(config, store_path, capsys):
    plain = device("a")
    fill(store_path, plain, at=1000.0)
    text = render(read_status(load_config(config), now=1001.0))
    assert not any(word in text for word in ("AUDITED", "DRAWN", "  audits"))
    part = PipelineTelemetry(
        pipeline="fashion",
        epoch=1,
        revision="r1",
        stages=(replace(stage(), audited=25),),
        origin=replace(origin(), audits_drawn=1234, audits_lost=6),
        fusions=(replace(fusion(), audited=7),),
    )
    fill(store_path, replace(plain, telemetry=telemetry(sequence=2, pipelines=(part,))), at=1000.0)
    words = [line.split() for line in render(read_status(load_config(config), now=1001.0)).splitlines()]
    assert ["0", "a", "100", "70", "30", "1", "2", "3", "4", "5", "1.0", "2.0", "25"] in words
    assert ["a", "101", "100", "1", "1", "2", "4.0", "9.0", "20.0", "1234", "6"] in words
    assert [row[-1] for row in words if row[:1] == ["FUSION"]] == ["AUDITED"]
    assert [row[-1] for row in words if row[:3] == ["0", "a", "100"]] == ["25", "7"]
    (told,) = [" ".join(row) for row in words if row[:1] == ["audits"]]
    assert "1,234 drawn, 6 lost" in told
    assert "25 of 125 segment runs (20%)" in told
    assert command("status", "-c", config, "--json") == 0
    (shown,) = json.loads(capsys.readouterr().out)["pipelines"]
    assert (shown["runs"], shown["audit_runs"], shown["tuning"]) == (125, 25, None)


def test_status_shows_what_a_spool_cannot_write(config, store_path):
    fill(store_path, device("a"), at=1000.0)
    assert "NOT ON DISK" not in render(read_status(load_config(config), now=1001.0))
    part = PipelineTelemetry(
        pipeline="fashion", epoch=1, revision="r1", stages=(), origin=replace(origin(), unspooled=1234)
    )
    fill(store_path, replace(device("a"), telemetry=telemetry(sequence=2, pipelines=(part,))), at=1000.0)
    assert "NOT ON DISK: inputs of a 1,234" in render(read_status(load_config(config), now=1001.0))


def test_status_says_of_late_that_two_boards_have_one_name(config, store_path, capsys):
    line = "two boards call themselves a (boots b1, b2): give one another id"
    seen = Observation(device=device("a"), heard_at=1000.0, seen_at=1000.0, shared=line, shared_at=1000.0)
    with Store(store_path) as store:
        store.save(Batch(devices=(seen,)))
        store.save(Batch(devices=(replace(seen, shared=None, shared_at=None),)))
    assert line in render(read_status(load_config(config), now=1000.0 + NAMESAKE_S)).splitlines()
    assert line not in render(read_status(load_config(config), now=1001.0 + 2 * NAMESAKE_S))
    assert command("status", "-c", config, "--json") == 0
    assert json.loads(capsys.readouterr().out)["devices"][0]["shared"] == ""


def test_status_says_where_another_orchestrator_plans(config, store_path):
    command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4")
    with Store(store_path) as store:
        store.save(Batch(pipelines=(PipelineRow(name="fashion", standing=Role.STANDBY.value),)))
    assert "STANDBY: another orchestrator plans this site" in render(read_status(load_config(config)))


def test_each_subcommand_shows_an_example(capsys):
    for name in ("run", "status", "explain", "audits", "set-thresholds"):
        with pytest.raises(SystemExit) as ended:
            command(name, "--help")
        assert ended.value.code == 0
        assert f"example:\n  distree orchestrator {name} -c orchestrator.yaml" in capsys.readouterr().out


# ---------------------------------------------------------------- with a real broker


class Agent:
    """What the orchestrator sees of a board: it obeys plans and reports their epoch."""

    def __init__(self, port, name):
        self.name, self.epoch, self.sequence = name, 0, 0
        self.plans = queue.Queue()
        self.transport = make_transport(BrokerSettings(port=port), client_id=name, session=Session.NONE)
        self.transport.open(self, [(topics.plan(SITE, "fashion"), 1)])
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, name=f"agent-{name}")

    def connected(self):
        send(self.transport, state(device=self.name))
        send(self.transport, meta(device=self.name))

    def disconnected(self, why): ...
    def published(self, token): ...

    def given_up(self, token):
        pass

    def unread(self, topic, payload):
        pass

    def received(self, message):
        plan = decode(Plan, message.payload)
        if plan.epoch > self.epoch:
            self.epoch = plan.epoch
            self.plans.put(plan)
        self.transport.acknowledge(message.token)

    def run(self):
        while not self.stopping.is_set():
            self.transport.poll(0.1)
            self.sequence += 1
            part = PipelineTelemetry(
                pipeline="fashion", epoch=self.epoch, revision="r", stages=(stage(),), origin=origin()
            )
            if self.transport.online:
                send(self.transport, telemetry(device=self.name, sequence=self.sequence, pipelines=(part,)))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()
        self.transport.close()


@contextlib.contextmanager
def orchestrator(config):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, "-m", "distree", "orchestrator", "run", "-c", str(config)]
    with (config.parent / "log").open("ab") as log:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_thresholds_set_by_command_reach_the_agents_through_a_running_orchestrator(tmp_path, capsys):
    with ManagedBroker(engine="mosquitto") as broker:
        config = write_config(tmp_path, port=broker.port)
        with Agent(broker.port, "a") as agent, Agent(broker.port, "b"), orchestrator(config) as process:
            started = process.stdout.readline()
            assert f"orchestrator of lab: broker 127.0.0.1:{broker.port}" in started
            assert "fashion (epoch new)" in started
            first = agent.plans.get(timeout=LONG_S)
            assert (first.epoch, first.thresholds) == (1, (0.9, 0.8))

            words = ("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4", "--wait", LONG_S)
            assert command(*words) == 0
            out = capsys.readouterr().out
            assert "the running orchestrator publishes it" in out
            assert "in force on a, b" in out
            assert agent.plans.get(timeout=LONG_S).thresholds == (0.5, 0.4)

            assert command("status", "-c", config) == 0
            shown = capsys.readouterr().out
            assert f"orchestrator runs (pid {process.pid}), connected to the broker" in shown
            assert "epoch 2 wanted, in force on all ready devices" in shown

            assert command("run", "-c", config) == 1
            assert "another orchestrator serves this store" in capsys.readouterr().err

            process.send_signal(signal.SIGTERM)
            assert process.wait(LONG_S) == 0
            with orchestrator(config) as again:
                assert "fashion (epoch 2)" in again.stdout.readline()
                again.send_signal(signal.SIGINT)
                assert again.wait(LONG_S) == 0
    with Store(load_config(config).store.path, read_only=True) as store:
        assert {seen.device.device for seen in store.devices()} == {"a", "b"}
        assert store.service().online is False
        assert store.history_length() > 0


def test_without_a_broker_it_waits_and_says_why(config):
    path = config.read_text().replace("port: 1883", "port: 1")
    config.write_text(path)
    with orchestrator(config) as process:
        assert "orchestrator of lab" in process.stdout.readline()
        log, until = config.parent / "log", time.monotonic() + LONG_S
        while "nothing listens" not in log.read_text() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG_S) == 0
    assert log.read_text().count("nothing listens") == 1
    assert topics.device(SITE, "a", Kind.STATE) not in log.read_text()
