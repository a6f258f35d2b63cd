"""A packet of 200 MB and a mebibyte of empty maps on a board's topics: its peak memory, and whether it still works."""

from __future__ import annotations

import struct
import time

from benchmarks.chaos.broker import RawBroker
from benchmarks.chaos.raw import publish_packet, raw_client
from benchmarks.chaos.report import Report
from benchmarks.chaos.scenarios.outages import start_chain
from benchmarks.chaos.site import (
    PIPELINE,
    SITE,
    Flow,
    Observer,
    Options,
    Publisher,
    closing_all,
    images,
    open_site,
    stage_topic,
)
from distree.thresholds import NEVER

BIG_BYTES = 200_000_000
MAPS = (1 << 20) - 64
SIDE = 1020
MAX_GROWTH_KB = 16 << 10
_PIECE = 1 << 20


def run(report: Report, options: Options) -> None:
    maps = [b"\xdd" + struct.pack(">I", MAPS) + b"\x80" * MAPS, _nested()]
    root = f"distree/1/{SITE}"
    topics = [stage_topic(1, "mid", "cam"), f"{root}/pipeline/{PIPELINE}/plan", f"{root}/device/mid/state"]
    with RawBroker("max_queued_messages 20000") as broker, open_site(broker.port, options) as site:
        publisher = Publisher(broker.port)
        with closing_all(publisher):
            site.plan(publisher, (NEVER, NEVER))
            start_chain(site, deadline_ms=5000)
            flow = Flow(publisher, "cam", images())
            _ask(report, "before", site.observer, flow)
            for name, payloads in (("maps", maps), ("200 MB", [bytes(BIG_BYTES)])):
                before = {device: found["VmHWM"] for device, found in site.memory().items()}
                for topic in topics:
                    for payload in payloads:
                        _pour(broker.port, publish_packet(topic, payload))
                time.sleep(3.0)
                after = {device: found["VmHWM"] for device, found in site.memory().items()}
                report.check(len(after) == 3, f"{name}: of three agents only {sorted(after)} live")
                grown = {device: (after[device] - before[device]) / 1024 for device in after}
                peaks = {device: f"{before[device] / 1024:.0f} → {after[device] / 1024:.0f}" for device in after}
                report.note(**{f"{name}_peaks_mib": peaks})
                for device, mib in grown.items():
                    report.check(mib * 1024 <= MAX_GROWTH_KB, f"{name}: the peak of {device} grew by {mib:.0f} MiB")
                _ask(report, f"after {name}", site.observer, flow)
            report.note(
                dead_letters=sum(site.observer.dead.values()),
                warnings={device: len(site.grave(device)) for device in site.processes},
            )


def _nested() -> bytes:
    """A mebibyte of empty maps in lists of a thousand, which a limit on the length of each lets pass."""
    inner = b"\xdc" + struct.pack(">H", SIDE) + b"\x80" * SIDE
    return b"\xdc" + struct.pack(">H", SIDE) + inner * SIDE


def _pour(port: int, packet: bytes) -> None:
    with raw_client(port) as connection:
        for at in range(0, len(packet), _PIECE):
            connection.sendall(packet[at : at + _PIECE])


def _ask(report: Report, when: str, observer: Observer, flow: Flow, count: int = 60) -> None:
    """Have inputs travel through all boards."""
    requests = flow.send(count, when.replace(" ", "-"), rate_hz=30.0)
    observer.until(lambda: all(observer.finals.get(request) for request in requests), 20.0)
    with observer.lock:
        last = sum(any(answer.exit == 2 for answer in observer.finals.get(r, ())) for r in requests)
    report.note(**{f"{when.replace(' ', '_')}": f"{last} of {count} at the last exit"})
    report.check(last == count, f"{when}: {last} of {count} inputs answered by the last exit")
