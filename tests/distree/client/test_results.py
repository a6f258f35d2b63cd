"""Results and its queue, on a real broker: what comes, what is malformed, what is dropped, and every way to end."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_config.managed import ManagedBroker, find_mosquitto, free_port
from distree import Result, Results, topics
from distree.broker_settings import BrokerSettings
from distree.client.broker_options import broker_at
from distree.client.debounce import Debounce
from distree.client.subscription import Subscription
from distree.client.waiting import WaitQueue
from distree.errors import BrokerError, ClosedError, ConfigError, RemoteProtocolError, ResultTimeoutError
from distree.messages.codec import encode
from distree.messages.result import Stamp
from distree.topics import Kind
from distree.transport import make_transport
from distree.transport.base import Received

pytestmark = pytest.mark.any_broker

PATIENCE_S = 60


@pytest.fixture(scope="module")
def broker():
    with ManagedBroker() as running:
        yield running


class Publisher:
    """Publishes results as an origin does."""

    def __init__(self, port):
        self.transport = make_transport(BrokerSettings(port=port), client_id=f"publisher-{random.random()}")
        self.transport.open(self, [])
        self.transport.connect_now(PATIENCE_S)

    def connected(self): ...

    def disconnected(self, why): ...

    def received(self, message): ...

    def published(self, token): ...

    def given_up(self, token):
        pass

    def no_subscribers(self, topic, payload):
        pass

    def say(self, payload, pipeline="p", origin="cam", site="lab"):
        with self.transport.lock:
            self.transport.publish(topics.of_origin(site, pipeline, Kind.RESULT, origin), payload, qos=1)
        while not self.transport.idle:
            self.transport.poll(0.01)


@pytest.fixture
def publisher(broker):
    made = Publisher(broker.port)
    yield made
    made.transport.close()


def result(request="r", **changes):
    fields = {
        "request": request, "site": "lab", "pipeline": "p", "origin": "cam", "input": "x", "label": "boot", "class_id": 9,
        "confidence": 0.5, "exit": 0, "reason": "confident", "final": True, "late": False, "attempt": 1,
        "latency_s": 0.001, "epoch": 0, "model": "fashion", "revision": "0" * 12, "hops": (),
    }  # fmt: skip
    return encode(Result(**{**fields, **changes}), Stamp(time="", clock_synced=False))


def test_results_come_as_objects_in_order(broker, publisher):
    with Results(f"mqtt://127.0.0.1:{broker.port}", site="lab", pipeline="p", timeout_s=PATIENCE_S) as results:
        assert results.subscribed
        for k in range(20):
            publisher.say(result(f"r{k}"))
        publisher.say(result("elsewhere"), pipeline="q")
        publisher.say(result("late", final=False, late=True))
        publisher.say(result("end"))
        heard = []
        for heard_now in results:
            heard.append(heard_now)
            if heard_now.request == "end":
                break
    assert [item.request for item in heard] == [*(f"r{k}" for k in range(20)), "end"]
    assert (heard[0].label, heard[0].latency_s) == ("boot", 0.001)
    assert not results.subscribed


def test_the_command_leaves_out_what_repeats(broker, publisher):
    where = ["--broker", f"127.0.0.1:{broker.port}", "--site", "lab", "--count", "4", "--timeout", "60"]
    with subprocess.Popen(
        [sys.executable, "-m", "distree", "results", *where, "--debounce", "50"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as command:  # fmt: skip
        try:
            assert "subscribed" in command.stderr.readline()
            for name, label, origin in (
                ("a", "one", "mic"), ("b", "one", "mic"), ("c", "two", "mic"), ("d", "one", "mic"), ("e", "one", "cam"),
                ("f", "two", "mic"), ("g", "three", "mic"),
            ):  # fmt: skip
                publisher.say(result(name, label=label, origin=origin), origin=origin)
            out, _ = command.communicate(timeout=PATIENCE_S)
        finally:
            command.kill()
    assert [json.loads(line)["request"] for line in out.splitlines()] == ["a", "c", "e", "g"]
    assert command.returncode == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 3.0)), max_size=30))
def test_a_label_is_a_repetition_if_it_was_given_a_moment_ago(given_labels):
    debounce, now, before = Debounce(1.0), 0.0, {}
    for label, later_s in given_labels:
        now += later_s
        assert debounce.is_repeat(("lab",), label, now) == (label in before and now - before[label] <= 1.0)
        before[label] = now
    assert len(debounce._seen_at) <= 3


def test_late_ones_and_one_origin_if_asked_for(broker, publisher):
    with Results(f"127.0.0.1:{broker.port}", site="lab", origin="cam", late=True) as results:
        publisher.say(result("other", origin="b"), origin="b")
        publisher.say(result("late", final=False, late=True))
        assert results.get(PATIENCE_S).late


def test_malformed_messages_are_counted_and_said_and_stop_nothing(broker, publisher, caplog):
    with Results(f"127.0.0.1:{broker.port}", site="lab") as results:
        for payload in (b"", b"{", b"\xff" * 40, b'{"schema":"distree.result/1"}'):
            publisher.say(payload)
        publisher.say(result("good"))
        assert results.get(PATIENCE_S).request == "good"
        assert results.malformed == 4
    assert "malformed message on distree/1/lab/pipeline/p/result/cam (1 so far): " in caplog.text
    assert "(1 so far)" in caplog.text


def test_a_slow_reader_sees_the_newest_and_how_many_it_missed(broker, publisher, caplog):
    with Results(f"127.0.0.1:{broker.port}", site="lab", queue=5) as results:
        for k in range(30):
            publisher.say(result(f"r{k}"))
        ends_at = time.monotonic() + PATIENCE_S
        while results.dropped < 25:
            assert time.monotonic() < ends_at
            time.sleep(0.01)
        assert [results.get(PATIENCE_S).request for _ in range(5)] == [f"r{k}" for k in range(25, 30)]
        assert results.dropped == 25
    assert "the reader is too slow: 1 dropped so far" in caplog.text


def test_many_readers_share_the_results(broker, publisher):
    async def read(results, count):
        return [(await results.get_async(PATIENCE_S)).request for _ in range(count)]

    async def program():
        async with Results(f"127.0.0.1:{broker.port}", site="lab") as results:
            readers = [asyncio.create_task(read(results, 10)) for _ in range(4)]
            await asyncio.sleep(0)
            await asyncio.to_thread(lambda: [publisher.say(result(f"r{k}")) for k in range(40)])
            return await asyncio.gather(*readers)

    shares = asyncio.run(program())
    assert sorted(request for share in shares for request in share) == sorted(f"r{k}" for k in range(40))


def test_waiting_too_long_and_closing(broker, publisher):
    with Results(f"127.0.0.1:{broker.port}", site="lab", timeout_s=0.05) as results:
        with pytest.raises(ResultTimeoutError, match=r"nothing arrived within 0.05 s"):
            next(results)
        with pytest.raises(TimeoutError):
            results.get(0)
        publisher.say(result("left"))
        results.get(PATIENCE_S)
        threading.Timer(0.05, results.close).start()
        with pytest.raises(ClosedError):
            results.get(PATIENCE_S)
    assert list(results) == []
    with pytest.raises(ClosedError, match="been used before"):
        results.__enter__()
    with pytest.raises(ClosedError, match="with block"):
        next(Results(site="lab"))


def test_async_iteration_times_out_ends_and_can_be_cancelled(broker, publisher):
    async def program():
        async with Results(f"127.0.0.1:{broker.port}", site="lab", timeout_s=0.05) as results:
            with pytest.raises(ResultTimeoutError):
                async for _ in results:
                    pass
            reader = asyncio.create_task(results.get_async())
            await asyncio.sleep(0.02)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            assert not results._waiting._waiters
            await asyncio.to_thread(publisher.say, result("kept"))
            assert (await results.get_async(PATIENCE_S)).request == "kept"
            asyncio.get_running_loop().call_later(0.02, results.close)
            with pytest.raises(ClosedError):
                await results.get_async(PATIENCE_S)
            assert [item async for item in results] == []

    asyncio.run(program())


def test_it_is_subscribed_again_after_the_broker_died():
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")
    with ManagedBroker(engine="mosquitto") as broker, Results(f"127.0.0.1:{broker.port}", site="lab") as results:
        broker.stop()
        until(lambda: not results.subscribed)
        assert results.interruptions == 1
        broker.start()
        until(lambda: results.subscribed)
        publisher = Publisher(broker.port)
        publisher.say(result("after"))
        assert results.get(PATIENCE_S).request == "after"
        publisher.transport.close()


def until(condition):
    ends_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


def test_no_broker_and_no_id_are_told():
    port = free_port()
    with pytest.raises(BrokerError, match=f"nothing listens on 127.0.0.1:{port}"):
        Results(f"mqtt://127.0.0.1:{port}", site="lab", connect_timeout_s=0.3).__enter__()
    with pytest.raises(ConfigError, match="site: 'a/b' is not an id"):
        Results(site="a/b")
    with pytest.raises(ConfigError, match="pipeline: '#' is not an id"):
        Results(site="lab", pipeline="#")


@pytest.mark.parametrize(
    "wrong",
    [
        "hub",
        "mqtt://",
        "mqtts://",
        "https://hub",
        "mqtt://ann:secret@hub",
        "mqtt://hub/x",
        "hub:0",
        "hub:70000",
        "hub:x",
    ],
)
def test_addresses_that_are_none(wrong):
    with pytest.raises(ConfigError, match=r"^broker: expected"):
        broker_at(wrong)


def test_a_login_goes_on_top(tmp_path):
    told = broker_at(BrokerSettings(host="hub", keepalive_s=7), "ann", tmp_path / "password")
    assert (told.host, told.keepalive_s, told.username) == ("hub", 7, "ann")
    assert told.password_file == tmp_path / "password"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.just("message"), st.just("bad"), st.just("unwanted"), st.just("read")), max_size=60),
       st.integers(1, 5))  # fmt: skip
def test_the_queue_is_bounded_and_its_books_balance(steps, bound):
    def decode(message):
        if message.payload == b"bad":
            raise RemoteProtocolError("field", "bad")
        return None if message.payload == b"unwanted" else message.payload

    made = Subscription(BrokerSettings(), ["x"], decode, queue=bound)
    made._is_open = made._was_opened = True
    read, sent, bad = [], [], 0
    for number, step in enumerate(steps):
        if step == "read":
            try:
                read.append(made.get(0))
            except ResultTimeoutError:
                assert len(made._items) == 0
            continue
        payload = str(number).encode() if step == "message" else step.encode()
        sent += [payload] if step == "message" else []
        bad += step == "bad"
        with made._transport.lock:
            made._receive(Received(topic="x", payload=payload, retain=False, token=None))
        assert len(made._items) <= bound
    rest = list(made._items)
    assert made.malformed == bad
    assert len(sent) == len(read) + len(rest) + made.dropped
    # In order, and what is left are the newest.
    assert sorted(read + rest, key=int) == read + rest
    assert rest == sent[len(sent) - len(rest) :]


def test_a_word_that_a_cancelled_coroutine_got_goes_on_to_the_next():
    lock = threading.RLock()
    waiting = WaitQueue(lock)

    async def program():
        with lock:
            first, second = waiting.join(), waiting.join()
        waits = [asyncio.create_task(waiting.wait(waiter, PATIENCE_S)) for waiter in (first, second)]
        await asyncio.sleep(0)
        with lock:
            waiting.notify()
        waits[0].cancel()
        return await asyncio.gather(*waits, return_exceptions=True)

    assert [type(end) for end in asyncio.run(program())] == [asyncio.CancelledError, bool]


def test_who_waits_in_a_loop_that_is_gone_harms_nobody():
    lock = threading.RLock()
    waiting = WaitQueue(lock)

    async def program():
        with lock:
            waiting.join()

    asyncio.run(program())
    with lock:
        waiting.notify()
        waiting.notify_all()


def test_it_waits_for_a_broker_that_starts_later():
    port, subscribed = free_port(), []

    def read():
        with Results(f"127.0.0.1:{port}", site="lab", connect_timeout_s=60.0) as results:
            subscribed.append(results.subscribed)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.5)  # it has met nobody by now, most likely
    assert reader.is_alive()
    with ManagedBroker(port=port):
        reader.join(60.0)
        assert subscribed == [True]
