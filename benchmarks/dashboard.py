"""The dashboard in headless Chromium: does it hold a stream of results, and what does it look like?

    python -m benchmarks.dashboard --soak 60                # 50 results a second for a minute
    python -m benchmarks.dashboard --pictures docs/images   # screenshots of a real run

*Soak*: results by the wire format are published at `--rate`, each with a thumbnail, besides telemetry of three boards.
Printed are the page's heap after garbage collection and its nodes, at the start and at the end, how many results it
showed and how many it said it did not show, and the time between animation frames. It fails if a result is
unaccounted for, the nodes grew, or the heap grew by more than 1 MB.

*Pictures*: a mosquitto, an orchestrator and four agents of bundle `fashion`, which answer its sample images; one
of them is killed at the end.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.browser import browser, log_in, memory, missing, prefer, resize
from broker_config.managed import WEBSOCKETS_USER, ManagedBroker
from device_agent.thumbnails import png
from distree import child_processes, topics
from distree.apps.dashboard.page import assets, policy
from distree.apps.dashboard.server import make_server
from distree.broker_settings import BrokerSettings, Session
from distree.messages.codec import encode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus, HeldStage
from distree.messages.events import Thumbnail
from distree.messages.plan import Plan
from distree.messages.request import Hop
from distree.messages.result import Result, Stamp
from distree.messages.telemetry import PipelineTelemetry, StageTelemetry, Telemetry
from distree.topics import DELIVERY, Kind
from distree.transport import make_transport
from distree.transport.base import QuietListener

SITE, PIPELINE = "hall-2", "fashion"
BOARDS = ("cam1", "hub-a", "hub-b")
MAX_GROWTH_BYTES = 1 << 20
WARM_UP_S = 3.0
PATIENCE_S = 60.0
SAMPLES = Path(__file__).parents[1] / "model_zoo" / "samples" / "fashion.npz"
LABELS = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@contextlib.contextmanager
def served(brokers: list[str], site: str = "") -> Iterator[str]:
    """Serve the page on a free port of this machine; give its address."""
    server: ThreadingHTTPServer = make_server("127.0.0.1", 0, assets(brokers, site), policy(brokers))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds."""
    ends_at = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > ends_at:
            raise SystemExit(f"waited {patience_s:g} s in vain for {what}")
        time.sleep(0.1)


class Stream(QuietListener):
    """Publishes what a site of three boards would, at a rate of its own, from a thread of its own."""

    def __init__(self, port: int, rate_hz: float, seed: int = 1) -> None:
        self.sent = 0
        self._rate_hz = rate_hz
        self._random = np.random.default_rng(seed)
        self._stop = threading.Event()
        self._transport = make_transport(BrokerSettings(port=port), client_id="stream", session=Session.NONE)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Stream:
        self._transport.open(self, [])
        self._transport.connect_now(10.0)
        self._introduce()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._transport.close()

    def stop(self) -> int:
        """Publish no more results; return how many there were."""
        self._stop.set()
        self._thread.join()
        return self.sent

    def publish(self, kind: Kind, topic: str, payload: bytes) -> None:
        """Publish as messages of its kind are."""
        with self._transport.lock:
            self._transport.publish(topic, payload, qos=DELIVERY[kind].qos, retain=DELIVERY[kind].retain)

    def _introduce(self) -> None:
        plan = Plan(
            pipeline=PIPELINE, epoch=4, model="fashion", revision="4ab1fe8ae806", criterion="max_softmax",
            thresholds=(0.91, 0.84), audit_rate=0.05,
        )  # fmt: skip
        self.publish(Kind.PLAN, topics.plan(SITE, PIPELINE), encode(plan))
        for stage, device in enumerate(BOARDS):
            held = HeldStage(pipeline=PIPELINE, stage=stage, model="fashion", revision="4ab1fe8ae806")
            meta = DeviceMeta(
                device=device, boot="b0", version="0.1.0", python="3.11.2", runtime="ai-edge-litert 2.1.6",
                machine="aarch64", memory_mb=1024, stages=(held,), origins=(PIPELINE,) if stage == 0 else (),
            )  # fmt: skip
            state = DeviceState(device=device, boot="b0", status=DeviceStatus.READY)
            self.publish(Kind.META, topics.device(SITE, device, Kind.META), encode(meta))
            self.publish(Kind.STATE, topics.device(SITE, device, Kind.STATE), encode(state))

    def _run(self) -> None:
        begun = time.monotonic()
        while not self._stop.is_set():
            self._transport.poll(0.0)
            due = int((time.monotonic() - begun) * self._rate_hz)
            while self.sent < due:
                self.sent += 1
                if self.sent % max(1, int(self._rate_hz)) == 0:
                    self._report(time.monotonic() - begun)
                self._result(f"r-{self.sent:x}")
            self._stop.wait(0.005)

    def _result(self, request: str) -> None:
        exit = int(self._random.choice(3, p=[0.75, 0.2, 0.05]))
        times = self._random.gamma(2.0, 0.4e-3, 2 * (exit + 1)).tolist()
        hops = tuple(
            Hop(device=BOARDS[k], stage=k, queue_s=times[2 * k] / 4, compute_s=times[2 * k + 1])
            for k in range(exit + 1)
        )
        class_id = int(self._random.integers(10))
        result = Result(
            request=request, site=SITE, pipeline=PIPELINE, origin="cam1", input=f"frame-{self.sent:06d}.png",
            label=LABELS[class_id], class_id=class_id, confidence=float(self._random.uniform(0.6, 1.0)), exit=exit,
            reason="last" if exit == 2 else "confident", final=True, late=False, attempt=1,
            latency_s=sum(times) + exit * 1.2e-3, epoch=4, model="fashion", revision="4ab1fe8ae806", hops=hops,
        )  # fmt: skip
        picture = png(self._random.integers(0, 256, (28, 28, 1), dtype=np.uint8))
        thumbnail = Thumbnail(request=request, png=picture)
        self.publish(
            Kind.THUMBNAIL,
            topics.of_origin(SITE, PIPELINE, Kind.THUMBNAIL, "cam1"),
            encode(thumbnail),
        )
        payload = encode(result, Stamp(time="2026-01-15T09:30:00.123+00:00", clock_synced=True))
        self.publish(Kind.RESULT, topics.of_origin(SITE, PIPELINE, Kind.RESULT, "cam1"), payload)

    def _report(self, uptime_s: float) -> None:
        for stage, device in enumerate(BOARDS):
            counters = StageTelemetry(
                stage=stage, received=self.sent, exited=0, forwarded=0, shed=0, expired=0, failed=0, duplicate=0,
                waiting=0, bytes_out=0, queue_s=1e-4, compute_s=1e-3,
            )  # fmt: skip
            pipeline = PipelineTelemetry(
                pipeline=PIPELINE,
                epoch=4,
                plan_hash="8f14e45fceea167a",
                revision="4ab1fe8ae806",
                stages=(counters,),
                origin=None,
            )
            report = Telemetry(
                device=device, boot="b0", sequence=self.sent, uptime_s=uptime_s, rss_bytes=54 << 20, dead_letters=0,
                offline_dropped=0, pipelines=(pipeline,),
            )  # fmt: skip
            topic = topics.device(SITE, device, Kind.TELEMETRY)
            self.publish(Kind.TELEMETRY, topic, encode(report))


# What the page itself says and does; rows shown are counted from outside, by watching the list.
WATCH = """
window.watched = {rows: 0, frames: []};
new MutationObserver((all) => {
  // A row put in front is one result, be it new or used again.
  for (const one of all) window.watched.rows += one.addedNodes.length;
}).observe(document.getElementById('rows'), {childList: true});
let before = null;
requestAnimationFrame(function each(now) {
  if (before !== null && window.watched.frames.length < 20000) window.watched.frames.push(now - before);
  before = now;
  requestAnimationFrame(each);
});
"""


def figure(driver: Any, name: str) -> int:
    """Return one of the page's totals."""
    return int(driver.find_element("id", name).text.replace(",", ""))


@contextlib.contextmanager
def dashboard_on(broker: ManagedBroker) -> Iterator[Any]:
    """Give a browser whose page is connected to a broker."""
    with served([f"ws://127.0.0.1:{broker.websockets_port}"]) as url, browser() as driver:
        log_in(driver, url, WEBSOCKETS_USER, broker.websockets_password)
        until(lambda: driver.find_element("id", "state").get_attribute("data-state") == "connected", "the connection")
        yield driver


def soak(seconds: float, rate_hz: float) -> dict[str, float]:
    """Stream results into the page for so long; return what was counted and measured."""
    with ManagedBroker(engine="mosquitto", websockets_port=0) as broker, dashboard_on(broker) as driver:
        driver.execute_script(WATCH)
        with Stream(broker.port, rate_hz) as stream:
            # The heap has its shape once the list is full and all code has run.
            until(lambda: figure(driver, "total") >= WARM_UP_S * rate_hz, "the first results")
            heap, nodes = memory(driver)
            time.sleep(seconds)
            heap_after, nodes_after = memory(driver)
            sent = stream.stop()
        until(lambda: figure(driver, "total") == sent, f"the last of {sent} results")
        time.sleep(0.5)
        frames = np.asarray(driver.execute_script("return watched.frames"))
        return {
            "seconds": seconds,
            "sent": sent,
            "shown": driver.execute_script("return watched.rows"),
            "dropped": figure(driver, "dropped"),
            "refused": figure(driver, "refused"),
            "heap_start": heap,
            "heap_end": heap_after,
            "nodes_start": nodes,
            "nodes_end": nodes_after,
            "frame_p50_ms": float(np.median(frames)),
            "frame_p99_ms": float(np.percentile(frames, 99)),
            "frame_max_ms": float(frames.max()),
        }


def faults(figures: dict[str, float]) -> list[str]:
    """Say what of a soak was not as it must be."""
    checks = {
        "a result was neither shown nor told of": figures["shown"] + figures["dropped"] == figures["sent"],
        "a message was refused": figures["refused"] == 0,
        "the page's nodes grew": figures["nodes_end"] <= figures["nodes_start"],
        "the heap grew by more than 1 MB": figures["heap_end"] - figures["heap_start"] <= MAX_GROWTH_BYTES,
    }
    return [fault for fault, holds in checks.items() if not holds]


def lines(figures: dict[str, float]) -> list[str]:
    """Return a soak's figures for people."""
    return [
        f"{figures['sent']:,.0f} results in {figures['seconds']:.0f} s and {WARM_UP_S:.0f} s before: "
        f"{figures['shown']:,.0f} shown, {figures['dropped']:,.0f} said to be not shown, "
        f"{figures['refused']:.0f} refused",
        f"heap after collection: {figures['heap_start'] / 1e6:.2f} MB at the start, {figures['heap_end'] / 1e6:.2f} MB "
        "at the end",
        f"nodes of the document: {figures['nodes_start']:.0f} at the start, {figures['nodes_end']:.0f} at the end",
        f"time between frames: median {figures['frame_p50_ms']:.1f} ms, p99 {figures['frame_p99_ms']:.1f} ms, "
        f"most {figures['frame_max_ms']:.1f} ms",
    ]


# ---------------------------------------------------------------- pictures


class Site:
    """Processes of an orchestrator and boards on a broker."""

    def __init__(self, broker: ManagedBroker, folder: Path) -> None:
        self._port, self._folder = broker.port, folder
        self.processes: dict[str, Any] = {}

    def start(self, name: str, command: str, config: dict[str, Any]) -> None:
        """Start one part of the site."""
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"site": SITE, "broker": {"port": self._port}, **config}))
        with (self._folder / f"{name}.log").open("wb") as log:
            argv = [sys.executable, "-m", "distree", command, "run", "-c", str(path)]
            self.processes[name] = child_processes.spawn(argv, stdout=log, stderr=log)

    def board(self, device: str, stages: list[int], **pipeline: Any) -> None:
        """Start a board."""
        part = {"name": PIPELINE, "bundle": "fashion", "stages": stages, **pipeline}
        self.start(device, "agent", {"device": device, "state_dir": str(self._folder / device), "pipelines": [part]})

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            child_processes.stop(process, 15.0)


def take(folder: Path, seconds: float) -> None:
    """Write dashboard.png, dashboard-dark.png and dashboard-phone.png, of a site that has run so long."""
    with tempfile.TemporaryDirectory() as name, ManagedBroker(engine="mosquitto", websockets_port=0) as broker:
        work = Path(name)
        with np.load(SAMPLES) as arrays:
            images = arrays["input"]
            np.savez(work / "inputs.npz", input=images, name=[f"frame-{k:05d}" for k in range(len(images))])
        with contextlib.closing(Site(broker, work)) as site, dashboard_on(broker) as driver:
            pipeline = {"name": PIPELINE, "bundle": "fashion"}
            site.start("orchestrator", "orchestrator", {"store": {"path": str(work / "o.db")}, "pipelines": [pipeline]})
            site.board("hub-a", [1])
            site.board("hub-b", [2])
            site.board("hub-c", [2])
            source = {"kind": "replay", "path": str(work / "inputs.npz"), "rate_hz": 12, "repeat": True}
            thumbnails = {"max_side_px": 48, "max_rate_hz": 50}
            site.board("cam1", [0], origin={"deadline_ms": 2000, "source": source, "thumbnails": thumbnails})
            until(lambda: "4 of 4" in driver.find_element("id", "online").text, "the boards")
            time.sleep(seconds)
            site.processes["hub-c"].kill()
            until(lambda: "offline" in driver.find_element("id", "devices").text, "the will of a board")
            folder.mkdir(parents=True, exist_ok=True)
            shoot(driver, folder / "dashboard.png", 1280, 1120, "light")
            shoot(driver, folder / "dashboard-dark.png", 1280, 1120, "dark")
            shoot(driver, folder / "dashboard-phone.png", 390, 1500, "light", mobile=True)


def shoot(driver: Any, path: Path, width: int, height: int, scheme: str, *, mobile: bool = False) -> None:
    """Write what the page looks like at a size and in a colour scheme."""
    resize(driver, width, height, mobile=mobile, scale=1.5)
    prefer(driver, scheme)
    time.sleep(1.5)
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    path.write_bytes(base64.b64decode(shot["data"]))
    print(f"wrote {path}")


def main() -> int:
    """Carry out what the arguments ask for; 1 if a soak was not as it must be."""
    parser = argparse.ArgumentParser(description="The dashboard in headless Chromium.")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="stream results into the page for so long")
    parser.add_argument("--rate", type=float, default=50.0, metavar="HZ", help="of the soak (default: %(default)s)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write screenshots of a real run there")
    parser.add_argument("--seconds", type=float, default=65.0, help="of the real run (default: %(default)s)")
    args = parser.parse_args()
    problem = missing()
    if problem is not None:
        raise SystemExit(problem)
    found: list[str] = []
    if args.soak is not None:
        figures = soak(args.soak, args.rate)
        print("\n".join(lines(figures)))
        found = faults(figures)
        for fault in found:
            print(f"dashboard: {fault}", file=sys.stderr)
    if args.pictures is not None:
        take(args.pictures, args.seconds)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
