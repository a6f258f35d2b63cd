"""A real browser on the real page, and a mosquitto with websockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.browser import browser, log_in, missing, prefer, resize
from benchmarks.dashboard import served
from broker_config.managed import WEBSOCKETS_USER, ManagedBroker, find_mosquitto
from distree.broker_settings import BrokerSettings, Session
from distree.errors import Problem
from distree.topics import DELIVERY, Kind
from distree.transport import make_transport
from distree.transport.base import Received

PATIENCE_S = 60.0


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests; each opens the page anew."""
    if (problem := missing()) is not None:
        pytest.skip(problem)
    with browser() as driver:
        yield driver


@pytest.fixture
def driver(chromium: Any) -> Iterator[Any]:
    """The browser at its usual size; nothing it logged may be an error that the test did not expect."""
    resize(chromium, 1280, 900)
    prefer(chromium, "light")
    chromium.get_log("browser")
    yield chromium
    chromium.get("about:blank")


@pytest.fixture
def broker() -> Iterator[ManagedBroker]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")
    with ManagedBroker(engine="mosquitto", websockets_port=0) as broker:
        yield broker


class Page:
    """What a user sees and does."""

    def __init__(self, driver: Any, url: str, broker: ManagedBroker | None = None) -> None:
        self.driver, self.url = driver, url
        self._broker = broker

    @property
    def broker(self) -> ManagedBroker:
        assert self._broker is not None
        return self._broker

    def log_in(self, user: str = WEBSOCKETS_USER, password: str | None = None) -> None:
        log_in(self.driver, self.url, user, self.broker.websockets_password if password is None else password)

    def connect(self) -> None:
        self.log_in()
        self.until(lambda: self.state == "connected", "the connection")

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        text: str = self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent).join('\\n')", selector
        )
        return text

    def number(self, name: str) -> int:
        return int(self.text(f"#{name}").replace(",", ""))

    @property
    def state(self) -> str:
        return str(self.find("#state").get_attribute("data-state"))

    @property
    def line(self) -> str:
        return self.text("#state-text")

    def errors(self) -> list[str]:
        """What the browser logged as errors; a connection that fails is one, by its own judgement."""
        logged = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [message for message in logged if "WebSocket connection to" not in message]

    def until(self, condition: Callable[[], Any], what: str) -> None:
        ends_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < ends_at, f"waited in vain for {what}; the page says {self.line!r}"
            time.sleep(0.05)


@pytest.fixture
def page_at(driver: Any) -> Callable[[str], Page]:
    """Makes a page that another program serves."""
    return lambda url: Page(driver, url)


@pytest.fixture
def page(driver: Any, broker: ManagedBroker) -> Iterator[Page]:
    """The page of a broker, not connected."""
    with served([f"ws://127.0.0.1:{broker.websockets_port}"]) as url:
        yield Page(driver, url, broker)


class Publisher:
    """Publishes what the test gives it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._under_way = 0
        self.connect()

    def connect(self) -> None:
        """Connect, anew if the broker was away."""
        self._under_way = 0
        self.transport = make_transport(BrokerSettings(port=self._port), client_id="publisher", session=Session.NONE)
        self.transport.open(self, [])
        self.transport.connect_now(10.0)

    def connected(self) -> None: ...

    def disconnected(self, why: Problem) -> None: ...

    def published(self, token: str) -> None:
        self._under_way -= 1

    def given_up(self, token: str) -> None:
        pass

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        pass

    def received(self, message: Received) -> None: ...

    def publish(self, kind: Kind, topic: str, payload: bytes) -> None:
        """Send it; what is left for the broker to acknowledge then is no more than goes out without being asked."""
        with self.transport.lock:
            delivery = DELIVERY[kind]
            self.transport.publish(topic, payload, qos=max(1, delivery.qos), retain=delivery.retain, token="-")
            self._under_way += 1
        ends_at = time.monotonic() + PATIENCE_S
        self.transport.poll(0.0)
        while self._under_way > 8:
            assert time.monotonic() < ends_at, f"{self._under_way} messages were not taken by the broker"
            self.transport.poll(0.05)


@pytest.fixture
def publisher(broker: ManagedBroker) -> Iterator[Publisher]:
    publisher = Publisher(broker.port)
    yield publisher
    publisher.transport.close()
