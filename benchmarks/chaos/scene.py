"""A site under a steady stream of inputs, on which a fault is played: who is there, and what can be done to them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.chaos.clock import Clock
from benchmarks.chaos.conditions import GOOD, Conditions
from benchmarks.chaos.disk import small_disk
from benchmarks.chaos.expected import WholeNetwork
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.site import (
    PIPELINE,
    SITE,
    TINY_WIDE,
    Flow,
    Images,
    Observer,
    Options,
    Publisher,
    ShortfallError,
    Site,
    images,
    tiny_images,
)
from benchmarks.chaos.tap import Tap
from broker_config.managed import ManagedBroker
from distree.formatting import counted

ORIGINS = {"cam-spool": True, "cam-plain": False}
"""The two origins of every site, and whether each has a spool."""

DEADLINE_S = 2.0
CHAIN_THRESHOLDS = (0.9999, 0.97)
"""Three of four inputs of the chain travel, and about a third of these to its end."""

WIDE_THRESHOLDS = (0.85, 0.75)
BROKER, ORCHESTRATOR, STORE = "broker", "orchestrator", "store"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a site is made of, beside its two origins and the broker.

    `boards` are the stages of each other board. `wide`: the bundle tiny-wide, on one board per branch and one that
    fuses, instead of a chain. `links` are boards, beside the origins, that reach the broker through a proxy.
    `persistence`: the broker keeps a store on disk. `small_disks` are folders of the site that lie on disks of a few
    MiB. `clock`: the wall clock of all agents and of the orchestrator is set by the fault.
    """

    boards: tuple[tuple[str, tuple[int, ...]], ...] = (("mid", (1,)), ("last", (2,)))
    wide: bool = False
    orchestrator: bool = False
    persistence: bool = False
    links: tuple[str, ...] = ()
    small_disks: tuple[str, ...] = ()
    clock: bool = False


CHAIN = Setting()
TWINS = Setting(boards=(("mid", (1,)), ("twin", (1,)), ("last", (2,))))
WIDE = Setting(boards=(), wide=True)


@dataclass
class Scene:
    """A running site. A fault is played by its methods; `hold_s` is how long one is to last.

    `said` collects what the page tells of this fault beside the counts, `failures` what is wrong beside them.
    """

    setting: Setting
    hold_s: float
    folder: Path
    broker: ManagedBroker
    site: Site
    publisher: Publisher
    network: WholeNetwork
    clock: Clock | None = None
    proxies: dict[str, Proxy] = field(default_factory=dict)
    taps: dict[str, Tap] = field(default_factory=dict)
    flows: dict[str, Flow] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    began_at: float = 0.0
    ended_at: float = 0.0

    # ------------------------------------------------------------ setting up

    def set_up(self, pool: Images) -> None:
        """Start everybody; return once the site is ready and its plan is in force."""
        for origin in ORIGINS:
            self.taps[origin] = Tap()
            self.proxies[origin] = Proxy(self.broker.port, listener=self.taps[origin])
            self.flows[origin] = Flow(self.publisher, origin, pool)
        for device in self.setting.links:
            self.proxies[device] = Proxy(self.broker.port)
        self._put_plan_in_force()
        if self.setting.wide:
            for branch in range(2):
                self._configure(f"branch{branch}", stages=[0, 1, 2], branch=branch, bundle=TINY_WIDE)
            self._configure("fuser", fuse=True, bundle=TINY_WIDE)
        for device, stages in self.setting.boards:
            self._configure(device, stages=stages)
        for origin, spool in ORIGINS.items():
            how: dict[str, Any] = {"deadline_ms": 1000 * DEADLINE_S, "spool": spool, "source": {"kind": "mqtt"}}
            if self.setting.wide:
                self._configure(origin, bundle=TINY_WIDE, origin={**how, "fuser": "fuser"})
            else:
                self._configure(origin, stages=[0], origin=how)
        for device in self.devices:
            self.start(device)
        if not self.observer.until(lambda: self.observer.ready(*self.devices), 60.0):
            raise ShortfallError(f"not ready: {self.observer.states}")

    def _put_plan_in_force(self) -> None:
        """Have thresholds that make most inputs travel: by the orchestrator, or published."""
        thresholds = WIDE_THRESHOLDS if self.setting.wide else CHAIN_THRESHOLDS
        bundle = TINY_WIDE if self.setting.wide else PIPELINE
        if not self.setting.orchestrator:
            self.site.plan(self.publisher, thresholds, bundle)
            return
        pipeline = {"name": PIPELINE, "bundle": str(bundle), "thresholds": list(thresholds)}
        config = {
            "site": SITE,
            "broker": {"port": self.broker.port, "keepalive_s": 5},
            "store": {"path": str(self.folder / "orchestrator.db")},
            "pipelines": [pipeline],
        }
        self.orchestrator_yaml.write_text(yaml.safe_dump(config))
        self.start(ORCHESTRATOR)
        if not self.observer.until(lambda: bool(self.observer.plans), 30.0):
            raise ShortfallError("the orchestrator has published no plan")

    def _configure(self, device: str, stages: Any = (), **changes: Any) -> None:
        proxy = self.proxies.get(device)
        self.site.configure(device, stages, port=proxy.port if proxy else None, **changes)

    @property
    def observer(self) -> Observer:
        return self.site.observer

    @property
    def devices(self) -> list[str]:
        """All boards, origins last."""
        wide = ["branch0", "branch1", "fuser"] if self.setting.wide else []
        return [*wide, *(device for device, _ in self.setting.boards), *ORIGINS]

    @property
    def orchestrator_yaml(self) -> Path:
        return self.folder / "orchestrator.yaml"

    @property
    def store(self) -> Path:
        """The broker's store on disk."""
        assert self.broker.persistence is not None
        return self.broker.persistence

    # ------------------------------------------------------------ what can be done

    @contextlib.contextmanager
    def fault(self) -> Iterator[None]:
        """What happens within is the fault: it lasts `hold_s`, and what undoes it follows the `with`."""
        self.began_at = time.monotonic()
        yield
        time.sleep(max(0.0, self.began_at + self.hold_s - time.monotonic()))

    def start(self, name: str) -> None:
        """Start a board's agent or the orchestrator; do not wait for it."""
        if name == ORCHESTRATOR:
            arguments = ("orchestrator", "run", "-c", str(self.orchestrator_yaml))
        else:
            arguments = ("agent", "run", "-c", str(self.folder / f"{name}.yaml"))
        self.site.run(name, *arguments, environment=self.clock.environment if self.clock else None)

    def kill(self, *names: str) -> None:
        """SIGKILL."""
        for name in names:
            self.send(name, signal.SIGKILL)
        for name in names:
            if name == BROKER:
                self.cut()
                self.broker.stop()
            else:
                self.site.processes[name].wait()

    def send(self, name: str, number: signal.Signals) -> None:
        os.kill(self.broker.pid if name == BROKER else self.site.processes[name].pid, number)

    def stop_broker(self) -> None:
        """Stop the broker in order; its links are cut, for behind a proxy a closed port would look open."""
        self.broker.stop()
        self.cut()

    def start_broker(self) -> None:
        """Start it on the same port."""
        self.broker.start()
        for proxy in self.proxies.values():
            proxy.restore()

    def cut(self) -> None:
        for proxy in self.proxies.values():
            proxy.cut()

    def become(self, conditions: Conditions, *names: str) -> None:
        """Set the conditions of boards' links."""
        for name in names:
            self.proxies[name].become(conditions)

    def expect_warning(self, name: str, about: str) -> None:
        """Have the page tell what an agent's log says at level WARNING or above; to say nothing is a failure."""
        lines = self.site.grave(name)
        if not lines:
            self.failures.append(f"{name} logs nothing about {about}")
            return
        first = lines[0].split(": ", 1)[-1].replace(f"{self.folder}/", "")
        self.said.append(f"{name} logs {counted(len(lines), 'warning')}, the first: “{first}”")

    def close(self) -> None:
        for flow in self.flows.values():
            flow.stop()
        for proxy in self.proxies.values():
            proxy.become(GOOD)
        self.publisher.close()
        for name, process in self.site.processes.items():
            if process.poll() is None:
                self.send(name, signal.SIGCONT)
        self.site.close()
        for proxy in self.proxies.values():
            proxy.close()


@contextlib.contextmanager
def open_scene(setting: Setting, hold_s: float, options: Options, folder: Path) -> Iterator[Scene]:
    """Set up a site in a folder; end it when left."""
    pool = tiny_images() if setting.wide else images()
    network = WholeNetwork(pool, TINY_WIDE if setting.wide else PIPELINE)
    persistence = folder / STORE if setting.persistence else None
    clock = Clock(folder / "clock") if setting.clock else None
    with contextlib.ExitStack() as stack:
        for name in setting.small_disks:
            stack.enter_context(small_disk(folder / name))
        broker = stack.enter_context(ManagedBroker(engine="mosquitto", persistence=persistence))
        site = Site(broker.port, options, Observer(broker.port), folder)
        scene = Scene(setting, hold_s, folder, broker, site, Publisher(broker.port), network, clock)
        try:
            scene.set_up(pool)
            yield scene
        finally:
            scene.close()
