"""The origin's link is cut three times while 6,000 inputs each wait or arrive."""

from __future__ import annotations

import threading
import time

from benchmarks.chaos.books import check_books, check_next
from benchmarks.chaos.broker import make_broker
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.report import Report
from benchmarks.chaos.site import Flow, Options, Publisher, Site, closing_all, images, open_site

INPUTS = 6_000
ORIGIN = {"max_pending": 128, "deadline_ms": 3000, "source": {"kind": "mqtt"}}


def start_chain(site: Site, origin_port: int | None = None, **origin: object) -> None:
    """Boards for stages 1 and 2, and the origin with stage 0."""
    site.agent("mid", [1])
    site.agent("last", [2])
    site.agent("cam", [0], port=origin_port, origin={**ORIGIN, **origin})


def run(report: Report, options: Options) -> None:
    with (
        make_broker(options.broker) as broker,
        open_site(broker.port, options) as site,
    ):
        proxy, publisher = Proxy(broker.port), Publisher(broker.port)
        with closing_all(proxy, publisher):
            start_chain(site, proxy.port)
            observer, flow = site.observer, Flow(publisher, "cam", images())
            for name, outage in (("waiting", _waiting), ("arriving", _arriving), ("cut again", _cut_again)):
                outage(proxy, publisher, flow, name)
                observer.until(lambda: observer.ready("cam"), 20.0)
                check_books(report, name, observer, "cam", flow.requests, repeated=proxy.repeated)
                check_next(report, name, observer, flow)
            report.note(connections=proxy.connections, repeated=proxy.repeated)
            report.note(dead_letters=sum(observer.dead.values()))
            report.check(len(site.alive()) == 3, f"of three agents only {site.alive()} live")


def _waiting(proxy: Proxy, publisher: Publisher, flow: Flow, name: str) -> None:
    """All inputs come while the link is down."""
    proxy.cut()
    flow.send(INPUTS, name)
    publisher.settle()
    proxy.restore()


def _arriving(proxy: Proxy, publisher: Publisher, flow: Flow, name: str) -> None:
    """The link is cut in the midst of them."""
    cutter = threading.Timer(0.4, proxy.cut)
    cutter.start()
    flow.send(INPUTS, name, rate_hz=4000.0)
    cutter.join()
    publisher.settle()
    time.sleep(2.0)
    proxy.restore()


def _cut_again(proxy: Proxy, publisher: Publisher, flow: Flow, name: str) -> None:
    """The link comes back, and is cut twice while what waited arrives."""
    _waiting(proxy, publisher, flow, name)
    for _ in range(2):
        connections = proxy.connections
        ends_at = time.monotonic() + 15.0
        while proxy.connections == connections and time.monotonic() < ends_at:
            time.sleep(0.01)
        time.sleep(0.25)
        proxy.cut()
        time.sleep(0.5)
        proxy.restore()
