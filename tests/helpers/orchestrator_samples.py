"""Messages, a pipeline and a bundle folder as small as they can be."""

from __future__ import annotations

import hashlib
from pathlib import Path

from distree import topics
from distree.messages.codec import encode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus, HeldStage
from distree.messages.plan import MaskedThresholds, Plan, plan_hash
from distree.messages.telemetry import FusionTelemetry, OriginTelemetry, PipelineTelemetry, StageTelemetry, Telemetry
from distree.topics import DELIVERY, Kind
from orchestrator.fleet import Fleet
from orchestrator.pipeline_spec import PipelineSpec
from orchestrator.site_view import device_row
from orchestrator.store.database import Store
from orchestrator.store.records import Batch, Refused, ServiceRow

SITE = "lab"
WIDE = Path(__file__).parents[1] / "data" / "tiny-wide"
"""A bundle of three wide stages of two branches."""
MASKED = (
    MaskedThresholds(missing=(0,), thresholds=(0.95, 0.7)),
    MaskedThresholds(missing=(1,), thresholds=(0.93, 1 / 3)),
)


def plan(epoch=0, thresholds=(0.9, 0.8), criterion="max_softmax", pipeline="fashion", revision="r1", masked=()):
    return Plan(
        pipeline=pipeline,
        epoch=epoch,
        model="fashion",
        revision=revision,
        criterion=criterion,
        thresholds=tuple(thresholds),
        masked=masked,
    )


def pipeline(**changes):
    return PipelineSpec(name="fashion", exits=3, plan=plan(**changes))


def wide_pipeline(**changes):
    """As `pipeline`, of three wide stages of two branches."""
    wanted = plan(**{"masked": MASKED, **changes})
    return PipelineSpec(
        name="fashion", exits=3, plan=wanted, branches=(2, 2, 2), calibrated="max_softmax", masked=MASKED
    )


def state(device="a", boot="b1", status="ready"):
    return DeviceState(device=device, boot=boot, status=DeviceStatus(status))


def meta(
    device="a",
    boot="b1",
    stages=(0,),
    runtime="ai-edge-litert 2.1",
    name="fashion",
    branch=None,
    origin=True,
    fuser=False,
    revision="r1",
):
    held = tuple(HeldStage(pipeline=name, stage=k, model="fashion", revision=revision, branch=branch) for k in stages)
    return DeviceMeta(
        device=device,
        boot=boot,
        version="0.1.0",
        python="3.11",
        runtime=runtime,
        machine="aarch64",
        memory_mb=512,
        stages=held,
        origins=(name,) if origin else (),
        fusers=(name,) if fuser else (),
    )


def fusion(k=0, fused=100, missing=(3, 0)):
    return FusionTelemetry(
        stage=k, fused=fused, exited=60, forwarded=37, failed=1, expired=2, late=4, missing=tuple(missing)
    )


def stage(k=0, received=100, wasted=0):
    return StageTelemetry(
        stage=k,
        received=received,
        exited=70,
        forwarded=30,
        shed=1,
        expired=2,
        failed=3,
        duplicate=4,
        waiting=5,
        bytes_out=6,
        queue_s=0.001,
        compute_s=0.002,
        wasted=wasted,
    )


def origin(exits=(70, 20, 10)):
    return OriginTelemetry(
        accepted=101,
        answered=100,
        resent=1,
        late=2,
        pending=1,
        exits=tuple(exits),
        reasons={"confident": 90, "last": 10},
        latency_p50_s=0.004,
        latency_p95_s=0.009,
        latency_max_s=0.02,
    )


HASH = plan_hash(plan())
"""By which boards tell that they follow the plan of `pipeline`, whatever its epoch."""


def telemetry(device="a", boot="b1", sequence=1, epoch=1, uptime_s=None, pipelines=None, follows=HASH):
    part = PipelineTelemetry(
        pipeline="fashion", epoch=epoch, plan_hash=follows, revision="r1", stages=(stage(),), origin=origin()
    )
    return Telemetry(
        device=device,
        boot=boot,
        sequence=sequence,
        uptime_s=10.0 * sequence if uptime_s is None else uptime_s,
        rss_bytes=30_000_000,
        dead_letters=2,
        offline_dropped=0,
        pipelines=(part,) if pipelines is None else pipelines,
    )


def send(transport, message):
    """Publish a message on its own topic by a transport."""
    match message:
        case DeviceState():
            kind, payload = Kind.STATE, encode(message)
        case DeviceMeta():
            kind, payload = Kind.META, encode(message)
        case Telemetry():
            kind, payload = Kind.TELEMETRY, encode(message)
        case Plan():
            kind, payload = Kind.PLAN, encode(message)
    topic = topics.plan(SITE, message.pipeline) if kind is Kind.PLAN else None
    topic = topic or topics.device(SITE, message.device, kind)
    with transport.lock:
        transport.publish(topic, payload, qos=DELIVERY[kind].qos, retain=DELIVERY[kind].retain)


def write_bundle(folder: Path) -> Path:
    """Write a manifest of three exits and its golden file; segments are named but missing."""
    folder.mkdir(parents=True)
    (folder / "golden.npz").write_bytes(b"golden")
    golden = hashlib.sha256(b"golden").hexdigest()
    tensor = "{name: t, dtype: int8, shape: [1, 4]}"
    stages = "".join(
        f"  - {{segment: {k}.tflite, sha256: '{'0' * 64}', bytes: 1, input: {tensor}, "
        f"{'features: ' + tensor + ', ' if k < 2 else ''}"
        "logits: {name: l, dtype: int8, shape: [1, 2]}, macs: {trunk: 1, exit: 1}}\n"
        for k in range(3)
    )
    split = "{accuracy: [0.5], accuracy_at_thresholds: 0.5, exit_share: [1.0]}"
    (folder / "bundle.yaml").write_text(
        "format: 1\nname: tiny\ndescription: d\nlicense: l\nlabels: [x, y]\n"
        "input: {dtype: uint8, shape: [4]}\npreprocess: {mean: [0.0], std: [1.0], layout: nhwc}\n"
        f"stages:\n{stages}"
        "exits: {criterion: max_softmax, thresholds: [0.9, 0.8]}\n"
        f"golden: {{file: golden.npz, sha256: '{golden}', tolerance: 1}}\n"
        "measured: {data: d, accuracy: [0.5], accuracy_at_thresholds: 0.5, exit_share: [1.0], "
        "macs_per_input: 1.0, macs_no_early_exit_strict: 1, macs_no_early_exit_loose: 1, "
        f"feature_bytes_per_input: 1.0, validation: {split}, "
        "trained: {epochs: 1, seed: 0, seconds: 1.0, torch: '2'}}\n"
    )
    return folder


def write_config(folder: Path, port=1883, extra="", broker="") -> Path:
    write_bundle(folder / "tiny")
    path = folder / "orchestrator.yaml"
    path.write_text(
        f"site: {SITE}\nbroker: {{host: 127.0.0.1, port: {port}{broker}}}\n"
        "store: {path: state/orchestrator.db, telemetry_days: 7, max_mb: 64}\n"
        f"pipelines:\n  - {{name: fashion, bundle: tiny{extra}}}\n"
    )
    return path


def known_device(name, sequence=1, follows=HASH, status="ready", runtime="litert"):
    """A board as the fleet knows it after its first report."""
    fleet = Fleet({"fashion": 3})
    fleet.saw_state(0.0, state(device=name, status=status))
    fleet.saw_meta(meta(device=name, runtime=runtime))
    return fleet.saw_telemetry(0.0, telemetry(device=name, sequence=sequence, follows=follows))


def fill_store(store_path, *devices, at):
    """Write boards into a store as a service does, heard at `at`."""
    seen = tuple(device_row(one, heard_at=at, seen_at=at) for one in devices)
    service = ServiceRow(pid=1, started_at=at, online=True, refused=(Refused(reason="field", count=3),))
    with Store(store_path) as store:
        store.save(Batch(devices=seen, reported=seen, service=service))
