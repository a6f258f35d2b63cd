"""Boards that know their orchestrator's key, on a real broker: they obey it and nobody else, over restarts and resets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from distree import topics
from distree.apps.cli import main
from distree.messages.codec import encode
from distree.messages.plan import plan_hash
from distree.signing import new_signing_key
from orchestrator.config import load_config
from orchestrator.pipeline_spec import load_spec

pytest.importorskip("cryptography")

pytestmark = pytest.mark.any_broker

SITE, PIPELINE = "test", "fashion"
PLAN = topics.plan(SITE, PIPELINE)


class Scene:
    """A board with a pinned key and one without, and an orchestrator that signs."""

    def __init__(self, site):
        self.site = site
        self.key = new_signing_key(site.folder / "plan.key")
        self.config = site.folder / "orchestrator.yaml"
        pipeline = {"name": PIPELINE, "bundle": "fashion", "thresholds": [0.9, 0.8]}
        whole = {
            "site": SITE,
            "broker": {"port": site.broker.port, "keepalive_s": 5},
            "store": {"path": str(site.folder / "orchestrator.db")},
            "signing_key": "plan.key",
            "pipelines": [pipeline],
        }
        self.config.write_text(yaml.safe_dump(whole))
        self.wanted = load_spec(load_config(self.config).pipelines[0]).plan

    def pinned(self):
        self.site.agent("cam", [0], origin={"source": {"kind": "mqtt"}}, plan_keys=[self.key.public])

    def hashes(self):
        heard = self.site.watch.telemetry
        return {name: heard[name].pipelines[0].plan_hash for name in ("cam", "b1") if name in heard}

    def until(self, cam, b1=None):
        expected = {"cam": plan_hash(cam), "b1": plan_hash(b1 or cam)}
        self.site.watch.until(lambda: self.hashes() == expected, f"{cam}: {self.site.log('cam')}")

    def command(self, *words):
        return main(["orchestrator", words[0], "-c", str(self.config), "--pipeline", PIPELINE, *words[1:]])


def test_a_board_with_a_key_obeys_its_orchestrator_and_nobody_else(site):
    scene = Scene(site)
    scene.pinned()
    site.agent("b1", [1, 2])
    site.start("orchestrator", "orchestrator", "run", "-c", str(scene.config))
    scene.until(scene.wanted)
    # While the orchestrator is away nobody contradicts a forger.
    site.kill("orchestrator")
    forged = replace(scene.wanted, epoch=2, thresholds=(0.0, 0.0))
    site.watch.publish(PLAN, encode(forged), retain=True)
    scene.until(scene.wanted, forged)
    site.watch.until(lambda: any(one.reason == "signature" for one in site.watch.dead), "a dead letter")
    assert "refused a plan: signature: not signed; plan 1 still in force" in site.log("cam")
    # A board that starts now finds no plan that it believes.
    site.kill("cam")
    site.watch.telemetry.pop("cam")
    scene.pinned()
    site.watch.until_reported("cam")
    assert site.watch.telemetry["cam"].pipelines[0].epoch == 0
    # The orchestrator that comes back is obeyed by both, and so is what is set by command and what is reset.
    site.start("again", "orchestrator", "run", "-c", str(scene.config))
    scene.until(scene.wanted)
    assert scene.command("set-thresholds", "0.7", "0.6", "--wait", "30") == 0
    assert scene.command("reset-plan", "--configured", "--wait", "30") == 0
    scene.until(scene.wanted)
    # What it signed earlier is not obeyed again, not even after a restart.
    site.kill("again")
    site.watch.publish(PLAN, scene.key.sign(PLAN, forged, 1), retain=True)
    site.watch.until(lambda: any(one.reason == "replay" for one in site.watch.dead), "a dead letter")
    site.kill("cam")
    site.watch.dead.clear()
    scene.pinned()
    site.watch.until(lambda: any(one.reason == "replay" for one in site.watch.dead), "a dead letter")
