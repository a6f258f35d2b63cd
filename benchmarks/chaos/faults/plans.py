"""Thresholds change ten times a second under load, by a publisher of plans and by the orchestrator's own command."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from benchmarks.chaos.play import Fault
from benchmarks.chaos.scene import CHAIN, CHAIN_THRESHOLDS, Scene
from benchmarks.chaos.site import PIPELINE, SITE, packed_plan
from orchestrator.config import load_config
from orchestrator.set_thresholds import find_pipeline, set_thresholds
from orchestrator.store.database import Store

EVERY_S = 0.1


def _thresholds(number: int) -> tuple[float, ...]:
    """Different each time, and such that exits 0, 1 and 2 take turns at being the usual one."""
    base = ((0.5, 0.5), (0.999, 0.5), (0.999, 0.999))[number % 3]
    return base[0] + number * 1e-6, base[1] + number * 1e-6


def _often(scene: Scene, change: Callable[[int], None]) -> None:
    """Call `change` at every beat of the fault."""
    number = 0
    with scene.fault():
        while time.monotonic() < scene.began_at + scene.hold_s:
            number += 1
            change(number)
            time.sleep(max(0.0, scene.began_at + number * EVERY_S - time.monotonic()))
    with scene.observer.lock:
        published = len(scene.observer.plans) - 1
    scene.said.append(f"{number} changes, {published} plans published meanwhile")


def _by_a_publisher(scene: Scene) -> None:
    def change(number: int) -> None:
        content = packed_plan(_thresholds(number), PIPELINE, epoch=1 + number)
        scene.publisher.publish(f"distree/1/{SITE}/pipeline/{PIPELINE}/plan", content, retain=True)

    _often(scene, change)
    with scene.observer.lock:
        latest = max(scene.observer.plans)
    scene.site.plan(scene.publisher, CHAIN_THRESHOLDS, epoch=latest + 1)


def _by_the_orchestrator(scene: Scene) -> None:
    config = load_config(scene.orchestrator_yaml)
    pipeline = find_pipeline(config, PIPELINE)
    with Store(config.store.path) as store:

        def change(number: int) -> None:
            set_thresholds(store, pipeline, None, _thresholds(number))

        _often(scene, change)
        set_thresholds(store, pipeline, None, CHAIN_THRESHOLDS)


FAULTS = (
    Fault(
        name="plans:published",
        what="a plan with new thresholds is published ten times a second",
        play=_by_a_publisher,
    ),
    Fault(
        name="plans:orchestrator",
        what="new thresholds are given to the orchestrator ten times a second, as `set-thresholds` does",
        play=_by_the_orchestrator,
        setting=replace(CHAIN, orchestrator=True),
    ),
)
