"""Somebody without any inputs announces itself as an origin and sends audits: no threshold moves."""

from __future__ import annotations

import pytest
import yaml

from distree import topics
from distree.messages.audit import AuditRow
from distree.messages.codec import encode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus
from distree.topics import Kind
from orchestrator.config import load_config
from orchestrator.pipeline_spec import load_spec
from orchestrator.store.database import Store

pytestmark = pytest.mark.any_broker

SITE, PIPELINE, FORGER = "test", "fashion", "dashboard"
ROWS = 1500


def announce(site) -> None:
    about = {"version": "", "python": "", "runtime": "", "machine": "", "memory_mb": 0, "stages": (), "fusers": ()}
    meta = DeviceMeta(device=FORGER, boot="b", origins=(PIPELINE,), **about)
    for kind, said in (
        (Kind.STATE, DeviceState(device=FORGER, boot="b", status=DeviceStatus.READY)),
        (Kind.META, meta),
    ):
        site.watch.publish(topics.device(SITE, FORGER, kind), encode(said), retain=True)


@pytest.mark.parametrize("listed", [["cam"], []])
def test_rows_of_one_that_has_no_inputs_loosen_nothing(site, listed):
    path, database = site.folder / "orchestrator.yaml", site.folder / "orchestrator.db"
    pipeline = {"name": PIPELINE, "bundle": "fashion", "goal": {"accuracy_drop": 0.01}, "origins": listed}
    store = {"path": str(database)}
    path.write_text(
        yaml.safe_dump({"site": SITE, "broker": {"port": site.broker.port}, "store": store, "pipelines": [pipeline]})
    )
    wanted = load_spec(load_config(path).pipelines[0]).plan
    site.start("orchestrator", "orchestrator", "run", "-c", str(path))
    site.watch.until(lambda: "published epoch 1" in site.log("orchestrator"), "the first plan")
    announce(site)
    topic = topics.of_origin(SITE, PIPELINE, Kind.AUDIT, FORGER)
    for number in range(1, ROWS + 1):
        row = AuditRow(
            request=f"r-{number}", origin=FORGER, boot="b", sequence=number, revision=wanted.revision, epoch=1,
            criterion=wanted.criterion, scores=(0.001, 0.07), predictions=(1, 1, 1),
        )  # fmt: skip
        site.watch.publish(topic, encode(row))
        if number % 50 == 0:
            site.watch.settle()
    # A message that is refused shows that the ones before it were read.
    site.watch.publish(topic, b"the end")
    site.watch.until(lambda: "audit/dashboard: encoding" in site.log("orchestrator"), "the end")
    with Store(database, read_only=True) as kept:
        latest, rows = kept.latest_plan(PIPELINE), kept.samples(PIPELINE)
    assert (latest.plan.epoch, latest.plan.thresholds, rows) == (1, wanted.thresholds, ())
    if listed:
        assert "dashboard is not among the origins of fashion" in site.log("orchestrator")
