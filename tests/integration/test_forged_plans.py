"""Forged plans, reports and claims against a real orchestrator and real boards: what holds, and the way out."""

from __future__ import annotations

import time
from dataclasses import replace

import msgpack
import pytest
import yaml

from distree import topics
from distree.apps.cli import main
from distree.messages.codec import encode
from distree.messages.limits import EPOCH_STEP, MAX_EPOCH
from distree.messages.plan import Plan, plan_hash
from distree.messages.site import Claim
from orchestrator.config import load_config
from orchestrator.leadership import CONTEST_S
from orchestrator.pipeline_spec import load_spec
from orchestrator.planner import MAX_REASSERTIONS
from orchestrator.store.database import Store

SITE, PIPELINE = "test", "fashion"
PLAN = topics.plan(SITE, PIPELINE)
OPEN = (0.0, 0.0)
"""Thresholds at which all inputs leave at the first exit: what a forger may want."""


pytestmark = pytest.mark.any_broker


class Scene:
    """A board that is origin and has all stages, and an orchestrator that can be started."""

    def __init__(self, site, capsys):
        self.site, self.capsys = site, capsys
        self.config = site.folder / "orchestrator.yaml"
        pipeline = {"name": PIPELINE, "bundle": "fashion", "thresholds": [0.9, 0.8]}
        store = {"path": str(site.folder / "orchestrator.db")}
        broker = {"port": site.broker.port, "keepalive_s": 5}
        self.config.write_text(
            yaml.safe_dump({"site": SITE, "broker": broker, "store": store, "pipelines": [pipeline]})
        )
        self.wanted = load_spec(load_config(self.config).pipelines[0]).plan

    def board(self):
        self.site.agent("cam", [0, 1, 2], origin={"source": {"kind": "mqtt"}})
        return self

    def orchestrator(self):
        self.site.start("orchestrator", "orchestrator", "run", "-c", str(self.config))
        self.until_followed(self.wanted)
        return self

    def forge(self, epoch, thresholds=OPEN):
        forged = replace(self.wanted, epoch=epoch, thresholds=thresholds)
        self.site.watch.publish(PLAN, encode(forged), retain=True)
        return forged

    def followed(self):
        """The hash of the plan that the board follows, as it reports."""
        report = self.site.watch.telemetry.get("cam")
        return None if report is None else report.pipelines[0].plan_hash

    def until_followed(self, plan: Plan):
        self.site.watch.until(lambda: self.followed() == plan_hash(plan), f"{plan}: {self.site.log('cam')}")

    def until_logged(self, name, line, count=1):
        """Wait for what may last but a moment: an orchestrator replaces a forged plan within milliseconds."""
        self.site.watch.until(lambda: self.site.log(name).count(line) >= count, f"{line!r} of {name}")

    def command(self, *words):
        """Run a command of the orchestrator; return its exit status, and what it printed."""
        status = main(["orchestrator", words[0], "-c", str(self.config), *words[1:]])
        printed = self.capsys.readouterr()
        return status, printed.out + printed.err


@pytest.fixture
def scene(site, capsys):
    return Scene(site, capsys)


@pytest.mark.parametrize("epoch", [1, 2, EPOCH_STEP, MAX_EPOCH, 1 << 53])
def test_a_forged_plan_is_replaced_whatever_its_number(scene, epoch):
    scene.board().orchestrator()
    scene.forge(epoch)
    # One too far beyond the plan that it holds is obeyed by no board, not even for a moment.
    is_obeyed = epoch <= EPOCH_STEP + 1
    scene.until_logged("cam", f"plan {epoch} in force: max_softmax 0 0" if is_obeyed else "refused a plan")
    scene.until_logged("cam", "plan 1 in force: max_softmax 0.9 0.8", 2 if is_obeyed else 1)
    scene.until_followed(scene.wanted)
    # A board that starts now finds the right one, too.
    scene.site.kill("cam")
    scene.site.watch.telemetry.pop("cam")
    scene.board()
    scene.until_followed(scene.wanted)


def test_a_forged_plan_read_at_the_start_deafens_nobody(scene):
    forged = scene.forge(MAX_EPOCH)
    scene.board()
    scene.until_followed(forged)
    scene.orchestrator()
    assert scene.site.watch.telemetry["cam"].pipelines[0].epoch == 1


def test_a_plan_that_is_taken_off_its_topic_holds_no_longer(scene, bundle):
    scene.board()
    scene.until_followed(scene.forge(7))
    scene.site.watch.publish(PLAN, b"", retain=True)
    scene.until_followed(replace(scene.wanted, thresholds=bundle.thresholds))
    assert scene.site.watch.telemetry["cam"].pipelines[0].epoch == 0


def test_an_orchestrator_that_is_overridden_says_so_until_its_plan_is_reset(scene):
    scene.board().orchestrator()
    assert scene.command("status")[0] == 0
    for k in range(MAX_REASSERTIONS + 1):
        forged = scene.forge(2 + k)
        scene.until_logged("cam", f"plan {2 + k} in force: max_softmax 0 0")
        if k < MAX_REASSERTIONS:
            scene.until_logged("cam", "plan 1 in force: max_softmax 0.9 0.8", 2 + k)
    scene.until_followed(forged)
    scene.site.watch.until(lambda: "PREEMPTED" in scene.command("status")[1], "the alarm")
    status, shown = scene.command("status")
    assert status == 1
    assert "waiting for cam" in shown
    assert "(other plan)" in shown
    status, shown = scene.command("set-thresholds", "--pipeline", PIPELINE, "0.7", "0.6")
    assert status == 1
    assert "PREEMPTED" in shown
    assert "PREEMPTED" in scene.site.log("orchestrator")
    status, shown = scene.command("reset-plan", "--pipeline", PIPELINE, "--wait", "60")
    assert (status, "in force on cam" in shown) == (0, True), shown
    scene.until_followed(replace(scene.wanted, thresholds=(0.7, 0.6)))
    assert scene.command("status")[0] == 0


def test_garbage_on_the_topic_is_replaced_at_once_and_by_a_reset(scene):
    scene.board().orchestrator()
    for _ in range(MAX_REASSERTIONS + 1):
        scene.site.watch.publish(PLAN, b"garbage", retain=True)
        scene.site.watch.until_reported("cam")
    scene.site.watch.until(lambda: "PREEMPTED" in scene.command("status")[1], "the alarm")
    assert scene.command("reset-plan", "--pipeline", PIPELINE)[0] == 0
    scene.site.watch.until(lambda: scene.command("status")[0] == 0, "the end of the alarm")
    # A board that starts now finds a plan.
    scene.site.kill("cam")
    scene.site.watch.telemetry.pop("cam")
    scene.board()
    scene.until_followed(scene.wanted)


def test_no_report_uses_up_numbers(scene):
    scene.board().orchestrator()
    report = scene.site.watch.telemetry["cam"]
    topic = topics.device(SITE, "cam", topics.Kind.TELEMETRY)
    part = replace(report.pipelines[0], epoch=MAX_EPOCH, plan_hash="f" * 16)
    scene.site.watch.publish(topic, encode(replace(report, sequence=10_000, pipelines=(part,))))
    # Under the next number, and no forged one is any obstacle.
    status, shown = scene.command("set-thresholds", "--pipeline", PIPELINE, "0.7", "0.6")
    assert (status, "is epoch 2;" in shown) == (0, True), shown
    scene.until_followed(replace(scene.wanted, thresholds=(0.7, 0.6)))


def test_an_orchestrator_whose_store_is_lost_gets_its_plans_obeyed(scene):
    scene.board().orchestrator()
    with Store(load_config(scene.config).store.path) as store:
        assert store.latest_plan(PIPELINE).plan.epoch == 1
    scene.site.kill("orchestrator")
    scene.until_followed(scene.forge(EPOCH_STEP + 1, (0.5, 0.5)))
    for path in scene.site.folder.glob("orchestrator.db*"):
        path.unlink()
    scene.orchestrator()


def test_a_forged_claim_holds_up_no_plan(scene):
    scene.board().orchestrator()
    # In a moment at which two may have begun to lead, one gives way.
    led_since = time.monotonic()
    scene.site.watch.until(lambda: time.monotonic() > led_since + CONTEST_S, "the end of the contest")
    for k in range(20):
        claim = Claim(orchestrator="-" if k % 2 else f"-{k}", running=True)
        scene.site.watch.publish(topics.orchestrator(SITE), encode(claim), retain=True)
    scene.site.watch.settle()
    status, shown = scene.command("set-thresholds", "--pipeline", PIPELINE, "0.7", "0.6", "--wait", "10")
    assert status == 0, shown
    scene.site.watch.until(lambda: "ignored the claim of" in scene.site.log("orchestrator"), "a line on who claims")


def test_a_plan_with_impossible_thresholds_is_refused_and_said_why(scene):
    scene.board().orchestrator()
    fields = msgpack.unpackb(encode(replace(scene.wanted, epoch=2)))
    scene.site.watch.publish(PLAN, msgpack.packb({**fields, "thresholds": [90.0, 80.0]}), retain=True)
    scene.site.watch.until(lambda: bool(scene.site.watch.dead), "a dead letter")
    (letter,) = scene.site.watch.dead
    assert letter.reason == "thresholds"
    assert "is 90, but scores of max_softmax are between 0 and 1" in letter.detail
    assert f"refused a plan: thresholds: {letter.detail}" in scene.site.log("cam")
    scene.until_followed(scene.wanted)
