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
import yaml
from orchestrator_samples import (
    SITE,
    WIDE,
    fill_store,
    known_device,
    meta,
    origin,
    plan,
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
from distree.messages.plan import Plan, plan_hash
from distree.messages.telemetry import PipelineTelemetry
from distree.signing import load_signing_key
from distree.topics import Kind
from distree.transport import make_transport
from orchestrator.config import load_config
from orchestrator.pipeline_spec import load_spec
from orchestrator.planner import Standing
from orchestrator.set_thresholds import progress
from orchestrator.store.database import Store
from orchestrator.store.lock import ServiceLock
from orchestrator.store.records import Batch, PipelineRow, ServiceRow

LONG_S = 60.0


def command(*words):
    return main(["orchestrator", *map(str, words)])


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


@pytest.fixture
def store_path(config):
    return load_config(config).store.path


# ---------------------------------------------------------------- without a broker


def test_a_key_is_made_and_shown_as_boards_need_it(tmp_path, config, capsys):
    path = tmp_path / "plan.key"
    assert command("keys", "--new", path) == 0
    made = capsys.readouterr()
    assert f"wrote a private key to {path}; name it as signing_key" in made.err
    (key,) = yaml.safe_load(made.out)["plan_keys"]
    assert key == load_signing_key(path).public
    assert command("keys", "--new", path) == 2
    assert "exists already" in capsys.readouterr().err
    assert command("keys", "-c", config) == 2
    assert "has no signing_key; make one: distree orchestrator keys --new FILE" in capsys.readouterr().err
    config.write_text(config.read_text() + "signing_key: plan.key\n")
    assert command("keys", "-c", config) == 0
    assert capsys.readouterr().out == made.out


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_no_orchestrator_runs_with_a_key_that_others_can_read(tmp_path, config, capsys, mode):
    assert command("keys", "--new", tmp_path / "plan.key") == 0
    (tmp_path / "plan.key").chmod(mode)
    config.write_text(config.read_text() + "signing_key: plan.key\n")
    assert command("run", "-c", config) == 2
    assert "run: chmod 600" in capsys.readouterr().err


def test_set_thresholds_says_what_happens(config, store_path, capsys):
    assert command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4") == 0
    assert "max_softmax 0.5 0.4 is epoch 1; it is published once an orchestrator is running" in capsys.readouterr().out
    assert command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4") == 0
    assert "epoch 1 already; nothing to change" in capsys.readouterr().out
    words = ("set-thresholds", "-c", config, "--pipeline", "fashion", "--criterion", "energy")
    assert command(*words, "-3.5", "-2") == 0
    assert "energy -3.5 -2 is epoch 2" in capsys.readouterr().out
    with Store(store_path, read_only=True) as store:
        assert [row.plan.reason for row in store.plans("fashion")] == ["set by hand"] * 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--pipeline", "fashion", "0.5"), "thresholds: 1 given for 3 exits; give 2, one per exit but the last"),
        (
            ("--pipeline", "fashion", "90", "80"),
            "exit 0 is 90, but scores of max_softmax are between 0 and 1; give 0.9 for 90%",
        ),
        (
            ("--pipeline", "fashion", "--criterion", "patience", "2", "0"),
            "exit 1 is 0, but scores of patience are between 1 and",
        ),
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


@pytest.mark.parametrize("word", ["nan", "inf", "1e301", "half"])
def test_what_is_no_threshold_is_refused_with_status_2(config, capsys, word):
    with pytest.raises(SystemExit) as ended:
        command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", word)
    assert ended.value.code == 2
    assert f"argument T: '{word}' is neither a finite number nor 'never'" in capsys.readouterr().err


def test_waiting_names_who_is_missing(config, store_path, capsys):
    wanted = plan_hash(replace(load_spec(load_config(config).pipelines[0]).plan, thresholds=(0.5, 0.4)))
    boards = known_device("a", follows=wanted), known_device("b", follows=wanted), known_device("c", status="lost")
    fill_store(store_path, *boards, at=time.time())
    words = ("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4", "--wait", "0.05")
    assert command(*words) == 0
    assert "in force on a, b" in capsys.readouterr().out
    assert command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.3", "0.4", "--wait", "0.05") == 1
    assert "not in force on a, b" in capsys.readouterr().err


def test_waiting_without_any_device_fails(config, capsys):
    words = ("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4", "--wait", "0.05")
    assert command(*words) == 1
    assert "no ready device serves it after 0.05 s: no orchestrator is running; start it" in capsys.readouterr().err


def test_waiting_says_that_the_orchestrator_is_offline(config, store_path, capsys, monkeypatch):
    monkeypatch.setattr("orchestrator.set_thresholds.is_served", lambda _: True)
    for online in (False, True):
        with Store(store_path) as store:
            store.save(Batch(service=ServiceRow(pid=1, started_at=1.0, online=online)))
        command("reset-plan", "-c", config, "--pipeline", "fashion", "--wait", "0.05")
        said = capsys.readouterr()
        assert ("once it is connected to the broker, which it is not now" in said.out) is not online
        assert ("serves it after 0.05 s: the orchestrator is not connected to the broker" in said.err) is not online
        assert "the running orchestrator publishes it" in said.out


def test_a_plan_that_was_replaced_is_waited_for_no_longer(config, store_path):
    with Store(store_path) as store:
        command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4")
        plan = store.latest_plan("fashion").plan
        command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.1", "0.1")
        assert progress(store, plan).superseded_by == 2


def test_status_before_the_first_run_is_one_clear_line(config, capsys):
    assert command("status", "-c", config) == 1
    assert "no store yet" in capsys.readouterr().err


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
    command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "never")
    assert "max_softmax 0.5 never is epoch 1" in capsys.readouterr().out
    assert command("status", "-c", config) == 0
    assert "  plan     max_softmax 0.5 never (model" in capsys.readouterr().out
    assert command("status", "-c", config, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pipelines"][0]["plan"]["thresholds"] == [0.5, "never"]


ALARM = "PREEMPTED: this plan was replaced on its topic 4 times"


@pytest.fixture
def preempted(config, store_path):
    """A store as a running orchestrator leaves it whose plan is replaced over and over."""
    command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4")
    with ServiceLock(store_path), Store(store_path) as store:
        wanted = plan_hash(store.latest_plan("fashion").plan)
        fill_store(store_path, known_device("a", follows=wanted), at=time.time())
        row = PipelineRow(name="fashion", standing=Standing.PREEMPTED.value, alarm=ALARM, highest_epoch=7)
        store.save(Batch(pipelines=(row,)))
        yield store


def test_status_fails_while_other_plans_take_the_place_of_this_one(preempted, config, capsys):
    capsys.readouterr()
    assert command("status", "-c", config) == 1
    assert f"\n  {ALARM}\n" in capsys.readouterr().out
    assert command("status", "-c", config, "--json") == 1
    (pipeline,) = json.loads(capsys.readouterr().out)["pipelines"]
    assert (pipeline["standing"], pipeline["alarm"]) == ("preempted", ALARM)


@pytest.mark.parametrize("words", [(), ("--wait", "0.05")])
def test_set_thresholds_fails_while_other_plans_take_the_place_of_this_one(preempted, config, capsys, words):
    for thresholds in (("0.5", "0.4"), ("0.3", "0.3")):  # the former are wanted already, and followed
        assert command("set-thresholds", "-c", config, "--pipeline", "fashion", *thresholds, *words) == 1
        assert f"pipeline fashion: {ALARM}" in capsys.readouterr().err
    assert preempted.latest_plan("fashion").plan.thresholds == (0.3, 0.3)


def test_the_alarm_of_an_orchestrator_that_is_gone_is_none(config, store_path, capsys):
    command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4")
    with Store(store_path) as store:
        store.save(Batch(pipelines=(PipelineRow(name="fashion", standing="preempted", alarm=ALARM),)))
    assert command("status", "-c", config) == 0
    assert "PREEMPTED" not in capsys.readouterr().out


def test_reset_plan_wants_the_same_as_epoch_1_whatever_came(preempted, config, capsys):
    wanted = preempted.latest_plan("fashion").plan
    assert command("reset-plan", "-c", config, "--pipeline", "fashion") == 0
    assert "max_softmax 0.5 0.4 is epoch 1; the running orchestrator publishes it" in capsys.readouterr().out
    row = preempted.latest_plan("fashion")
    assert (row.plan, row.is_reset) == (wanted, True)
    assert command("reset-plan", "-c", config, "--pipeline", "fashion", "--configured") == 0
    row = preempted.latest_plan("fashion")
    assert (row.plan.epoch, row.plan.thresholds, row.plan.reason) == (1, (0.9, 0.8), "as configured")
    assert command("reset-plan", "-c", config, "--pipeline", "fashion", "--wait", "0.05") == 1
    assert command("reset-plan", "-c", config, "--pipeline", "other") == 2


def test_after_a_reset_only_what_boards_say_from_then_on_counts(preempted, config, store_path, capsys):
    """The board of the store follows the plan as far as its last report says, and another since, for all one knows."""
    words = ("reset-plan", "-c", config, "--pipeline", "fashion", "--wait")
    assert command(*words, "0.05") == 1
    assert "not in force on a" in capsys.readouterr().err
    wanted = plan_hash(preempted.latest_plan("fashion").plan)
    later = threading.Timer(0.3, lambda: fill_store(store_path, known_device("a", 2, wanted), at=time.time()))
    later.start()
    assert command(*words, LONG_S) == 0
    assert "in force on a" in capsys.readouterr().out
    later.join()


def test_reset_plan_needs_neither_a_store_nor_an_orchestrator(config, store_path, capsys):
    assert command("reset-plan", "-c", config, "--pipeline", "fashion") == 0
    assert "epoch 1; it is published once an orchestrator is running" in capsys.readouterr().out
    with Store(store_path) as store:
        assert store.latest_plan("fashion").plan.thresholds == (0.9, 0.8)


def test_each_subcommand_shows_an_example(capsys):
    for name in ("run", "status", "explain", "audits", "set-thresholds", "reset-plan"):
        with pytest.raises(SystemExit) as ended:
            command(name, "--help")
        assert ended.value.code == 0
        assert f"example:\n  distree orchestrator {name} -c orchestrator.yaml" in capsys.readouterr().out


# ---------------------------------------------------------------- with a real broker


class Agent:
    """What the orchestrator sees of a board: it obeys plans and reports which one it follows."""

    def __init__(self, port, name):
        self.name, self.plan, self.sequence = name, plan(epoch=0), 0
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

    def no_subscribers(self, topic, payload):
        pass

    def received(self, message):
        received = decode(Plan, message.payload)
        if received != self.plan:
            self.plan = received
            self.plans.put(received)
        self.transport.acknowledge(message.token)

    def run(self):
        while not self.stopping.is_set():
            self.transport.poll(0.1)
            self.sequence += 1
            part = PipelineTelemetry(
                pipeline="fashion",
                epoch=self.plan.epoch,
                plan_hash=plan_hash(self.plan),
                revision="r",
                stages=(stage(),),
                origin=origin(),
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
            assert f"orchestrator running (pid {process.pid}), connected to the broker" in shown
            assert "epoch 2 wanted, in force on all ready devices" in shown

            assert command("run", "-c", config) == 1
            assert "another orchestrator is already using this store" in capsys.readouterr().err

            process.send_signal(signal.SIGTERM)
            assert process.wait(LONG_S) == 0
            with orchestrator(config) as again:
                assert "fashion (epoch 2)" in again.stdout.readline()
                again.send_signal(signal.SIGINT)
                assert again.wait(LONG_S) == 0
    with Store(load_config(config).store.path, read_only=True) as store:
        assert {row.device for row in store.devices()} == {"a", "b"}
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
