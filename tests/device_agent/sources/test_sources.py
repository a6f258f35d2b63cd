"""Sources: an archive played back, and messages. Files in a folder are in test_directory_*.py."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import zlib

import msgpack
import numpy as np
import pytest
from input_bundles import HOP, SAMPLES, sound_bundle, wav
from memory_transport import MemoryBroker

from device_agent.sources.mqtt import MqttSource, MqttSourceConfig
from device_agent.sources.replay import ReplaySource, ReplaySourceConfig
from distree.bundle.inputs import InputReader
from distree.bundle.loading import load_bundle
from distree.bundle.preprocessing import Preprocessor
from distree.bundle.windows import count_of
from distree.errors import ConfigError
from distree.messages.codec import encode
from distree.messages.events import EventKind
from distree.messages.request import InputMessage

PATIENCE_S = 30.0
SHAPE = (28, 28, 1)


class Sink:
    """Takes inputs as an agent does, and answers when told."""

    def __init__(self, manifest=None):
        manifest = manifest or load_bundle("fashion", verify=()).manifest
        self.preprocessor = Preprocessor(manifest)
        self.reader = InputReader(manifest.input, manifest.preprocess)
        self.room = threading.Event()
        self.room.set()
        self.submitted = []
        self.rejected = []
        self.refused_requests = []
        self.told = []
        self.worked = 0

    def wait_for_room(self, timeout_s):
        return self.room.wait(timeout_s)

    def submit(self, name, raw, request=None):
        self.preprocessor.tensor(raw)  # raises for a wrong dtype or shape
        request = request or f"own-{len(self.submitted)}"
        self.submitted.append((name, raw, request))
        return request

    def run_jobs(self):
        self.worked = len(self.submitted)

    def reject(self, name, error, payload, *, request="", topic=""):
        assert error.remedy
        self.rejected.append((name, error.reason, error.detail, payload))
        self.refused_requests.append((request, topic))

    def tell(self, kind, what, remedy="", *, severity=None, like=""):
        self.told.append((kind, what, remedy))

    def wake(self):
        pass

    def names(self):
        return [name for name, _, _ in self.submitted]


def until(condition, what):
    ends_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_at, f"waited in vain for {what}"
        time.sleep(0.002)


def image(value=0):
    return np.full(SHAPE, value, np.uint8)


@pytest.fixture
def sink():
    return Sink()


# ---------------------------------------------------------------- recordings of several windows


@pytest.fixture
def sound(tmp_path):
    return sound_bundle(tmp_path / "sound").manifest


def room_for(sink, count):
    """Let so many inputs in, then no more."""
    left = [count]

    def wait_for_room(timeout_s):
        if left[0] <= 0:
            time.sleep(min(timeout_s, 0.005))
        return left[0] > 0

    def submit(name, raw, request=None, take=sink.submit):
        left[0] -= 1
        return take(name, raw, request)

    sink.wait_for_room, sink.submit = wait_for_room, submit
    return left


def recording(windows):
    return wav(np.arange(SAMPLES + HOP * (windows - 1)))


# ---------------------------------------------------------------- replay


@pytest.fixture
def replay(tmp_path, sink):
    def replay(count=5, arrays=None, **changes):
        path = tmp_path / "inputs.npz"
        np.savez(path, **({"input": np.stack([image(k) for k in range(count)])} if arrays is None else arrays))
        return ReplaySource(ReplaySourceConfig(kind="replay", path=path, **changes), sink.preprocessor)

    return replay


def played(feed, now=100.0, most=100):
    """Start a feed and take what it has at once; return [(name, first value)]."""
    feed.start(now)
    taken = []
    while feed.due_at() <= now and len(taken) < most:
        name, raw = feed.next_input(now)
        taken.append((name, int(raw.ravel()[0])))
    return taken


def test_all_inputs_are_replayed_by_their_index(replay):
    assert played(replay()) == [(str(k), k) for k in range(5)]


def test_names_in_the_file_are_those_of_the_inputs(replay):
    inputs = np.stack([image(k) for k in range(3)])
    feed = replay(arrays={"input": inputs, "name": np.array([4711, 7, 12])}, repeat=True)
    assert played(feed, most=4) == [("4711", 0), ("7", 1), ("12", 2), ("4711", 0)]
    named = replay(arrays={"input": inputs, "name": np.array(["a", "b\x07", "c" * 300])}, max_inputs=3)
    assert [name for name, _ in played(named)] == ["a", "b\\x07", "c" * 255 + "…"]


def test_nothing_is_due_before_the_start_and_after_the_end(replay):
    feed = replay(count=1)
    assert feed.due_at() == float("inf")
    feed.start(3.0)
    assert feed.due_at() == 3.0
    feed.next_input(3.0)
    assert feed.due_at() == float("inf")


def test_a_limit_ends_it_earlier(replay):
    assert played(replay(max_inputs=2)) == [("0", 0), ("1", 1)]
    assert len(played(replay(max_inputs=99))) == 5


def test_repeating_it_starts_again(replay):
    names = [name for name, _ in played(replay(count=2, repeat=True), most=5)]
    assert names == ["0", "1", "0", "1", "0"]


def test_a_rate_spaces_the_inputs(replay):
    feed = replay(rate_hz=10)
    feed.start(50.0)
    due = []
    for _ in range(5):
        due.append(feed.due_at())
        feed.next_input(due[-1])
    assert due == pytest.approx([50.0, 50.1, 50.2, 50.3, 50.4])


def test_what_was_held_up_for_long_is_not_caught_up_in_one_burst(replay):
    feed = replay(count=100, rate_hz=10)
    feed.start(0.0)
    late = 60.0
    burst = 0
    while feed.due_at() <= late:
        feed.next_input(late)
        burst += 1
    assert burst <= 12


DAMAGED = {
    "cut": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content[:200] + bytes(byte ^ 0x55 for byte in content[200:400]) + content[400:],
    "empty": lambda content: b"",
    "compressed badly": None,
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_archive_is_one_line_with_the_file(tmp_path, sink, how):
    path = tmp_path / "inputs.npz"
    if how == "compressed badly":
        np.savez_compressed(path, input=np.random.default_rng(1).integers(0, 256, (20, *SHAPE), np.uint8))
        content = bytearray(path.read_bytes())
        content[100:3000] = bytes(2900)
        path.write_bytes(content)
    else:
        np.savez(path, input=np.stack([image()] * 5))
        path.write_bytes(DAMAGED[how](path.read_bytes()))
    with pytest.raises(ConfigError) as caught:
        ReplaySource(ReplaySourceConfig(kind="replay", path=path), sink.preprocessor)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros(3)}, r"has no array 'input', only image"),
        (
            {"input": np.zeros((3, 28, 28), np.uint8)},
            r"input is uint8 \(3, 28, 28\), but the bundle expects uint8 \(n, 28, 28, 1\)",
        ),
        ({"input": np.zeros((3, *SHAPE), np.int8)}, "input is int8"),
        ({"input": np.uint8(1)}, "inputs.npz"),
        ({"input": np.array([{}], object)}, "cannot be replayed"),
        ({"input": np.zeros((0, *SHAPE), np.uint8)}, "inputs.npz"),
        ({"input": np.zeros((3, *SHAPE), np.uint8), "name": np.arange(2)}, r"name is \(2,\) for 3 inputs"),
    ],
)
def test_an_archive_of_something_else_is_refused(replay, arrays, message):
    with pytest.raises(ConfigError, match=message):
        replay(arrays=arrays)


# ---------------------------------------------------------------- messages


TOPIC = "distree/1/s/pipeline/p/input/cam"
OTHER = "frigate/+/+/snapshot"
DOOR = "frigate/door/person/snapshot"


class Publisher:
    """Publishes on the input topic, and polls when told."""

    def __init__(self, broker):
        self.transport = broker.transport("publisher")
        self.transport.open(self, [])
        self.transport.poll(0.0)

    def connected(self): ...

    disconnected = published = given_up = received = no_subscribers = connected

    def say(self, payload, *, qos=1, retain=False, topic=TOPIC):
        self.transport.publish(topic, payload, qos=qos, retain=retain)


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.fixture
def start(sink, broker):
    """Starts a source; its session at the broker is the same each time."""
    running = []

    def begin(**changes):
        config = MqttSourceConfig(kind="mqtt", **changes)
        source = MqttSource(config, sink, broker.transport("inputs", receive_maximum=512), TOPIC)
        stop = threading.Event()
        thread = threading.Thread(target=source.run, args=(stop,))
        thread.start()
        until(lambda: source.ready, "the subscription")

        def end():
            stop.set()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

        running.append(end)
        return end

    yield begin
    sink.room.set()
    for end in running:
        end()


@pytest.fixture
def publisher(broker):
    return Publisher(broker)


def left(broker):
    """How many inputs the broker still keeps for the source."""
    session = broker._sessions["inputs"]
    return len(session.waiting) + len(session.unacknowledged)


def test_raw_bytes_named_inputs_and_nonsense_are_each_acknowledged(start, publisher, sink, broker):
    start()
    named = encode(InputMessage(request="mine", name="shoe", payload=image(2).tobytes()))
    nonsense = [b"x", named[:-1], b"\x83" * 30, msgpack.packb({"v": 1, "kind": "input", "x": 1})]
    for payload in (image(1).tobytes(), named, *nonsense):
        publisher.say(payload)
    until(lambda: len(sink.rejected) == 4 and not left(broker), "all acknowledgements")
    assert [(name, int(raw.ravel()[0])) for name, raw, _ in sink.submitted] == [("", 1), ("shoe", 2)]
    assert sink.submitted[1][2] == "mine"
    assert sink.worked == 2
    assert [reason for _, reason, _, _ in sink.rejected] == ["image", "encoding", "image", "field"]


def test_what_is_retained_is_an_old_input_and_an_empty_message_is_none(start, publisher, sink, broker):
    publisher.say(image(1).tobytes(), retain=True)
    start()
    publisher.say(image(2).tobytes(), retain=True)  # live: answered, this once
    publisher.say(b"", retain=True)
    publisher.say(b"")
    publisher.say(image(3).tobytes())
    until(lambda: len(sink.submitted) == 2 and not left(broker), "the live ones")
    assert [int(raw.ravel()[0]) for _, raw, _ in sink.submitted] == [2, 3]
    assert not sink.rejected
    ((kind, what, remedy),) = sink.told
    assert (kind, "retained message" in what, "publish inputs without retain" in remedy) == (
        EventKind.INPUT,
        True,
        True,
    )


def test_without_room_the_broker_keeps_inputs_and_those_at_qos_0_are_turned_away(start, publisher, sink, broker):
    start()
    sink.room.clear()
    for value in range(200):
        publisher.say(image(value).tobytes())
    publisher.say(image(200).tobytes(), qos=0)
    until(lambda: len(sink.submitted) == 1, "the one that cannot wait")
    assert int(sink.submitted[0][1].ravel()[0]) == 200
    assert left(broker) == 200
    sink.room.set()
    until(lambda: len(sink.submitted) == 201 and not left(broker), "all")
    assert [int(raw.ravel()[0]) for _, raw, _ in sink.submitted[1:]] == list(range(200))


def test_inputs_published_while_it_is_away_are_seen_when_it_is_back(start, publisher, sink, broker):
    start()()
    for value in range(100):
        publisher.say(image(value).tobytes())
    assert not sink.submitted
    start()
    until(lambda: len(sink.submitted) == 100 and not left(broker), "all")


def test_a_recording_waits_for_room_window_by_window(start, publisher, sink, broker, sound):
    sink.__init__(sound)
    left = room_for(sink, 2)
    start()
    publisher.say(encode(InputMessage(request="mine", name="clip", payload=recording(3))))
    publisher.say(recording(1))
    until(lambda: len(sink.submitted) == 2, "the windows for which there is room")
    assert sink.submitted[1][0] == "clip@0.015s"
    until(lambda: len(broker._sessions["inputs"].unacknowledged) == 2, "the second message, which waits")
    left[0] = 9
    until(lambda: len(sink.submitted) == 4, "the rest")
    assert [request for _, _, request in sink.submitted] == ["mine~1/3", "mine~2/3", "mine~3/3", "own-3"]
    until(lambda: not broker._sessions["inputs"].unacknowledged, "all acknowledgements")


def test_a_recording_that_is_cut_short_by_the_connection_comes_again(start, publisher, sink, broker, sound):
    sink.__init__(sound)
    left = room_for(sink, 1)
    start()
    publisher.say(encode(InputMessage(request="mine", name="clip", payload=recording(3))))
    until(lambda: len(sink.submitted) == 1, "the first window")
    session = broker._sessions["inputs"]
    (first,) = session.unacknowledged.values()
    broker.drop("inputs")
    until(lambda: any(again is not first for again in list(session.unacknowledged.values())), "the delivery again")
    left[0] = 9
    until(lambda: not session.unacknowledged and len(sink.submitted) >= 4, "all of it")
    assert [request for _, _, request in sink.submitted] == ["mine~1/3", "mine~1/3", "mine~2/3", "mine~3/3"]


def test_windows_without_a_request_id_get_one_in_common(start, publisher, sink, sound):
    sink.__init__(sound)
    start()
    publisher.say(recording(2), qos=0)
    until(lambda: len(sink.submitted) == 2, "both")
    (one, count), (other, _) = (count_of(request) for _, _, request in sink.submitted)
    assert (one, count) == (other, 2)


def test_a_request_id_that_leaves_no_room_for_windows_is_refused(start, publisher, sink, broker, sound):
    sink.__init__(sound)
    start()
    publisher.say(encode(InputMessage(request="r" * 61, name="", payload=recording(2))))
    publisher.say(encode(InputMessage(request="s" * 64, name="", payload=recording(1))))
    until(lambda: sink.rejected and sink.submitted, "both")
    assert sink.rejected[0][1:3] == ("request", "61 characters, and '~1/2' of a window, exceed the limit of 64")
    assert sink.submitted[0][2] == "s" * 64


def test_raw_values_that_begin_as_a_message_are_raw_values(start, publisher, sink, broker):
    start()
    raw = image(0x83)
    publisher.say(raw.tobytes())
    publisher.say(encode(InputMessage(request="mine", name="shoe", payload=raw.tobytes())))
    until(lambda: len(sink.submitted) == 2, "both")
    assert [name for name, _, _ in sink.submitted] == ["", "shoe"]
    assert not sink.rejected


def test_what_it_had_not_seen_when_the_connection_broke_comes_again_once(start, publisher, sink, broker):
    start()
    sink.room.clear()
    for value in range(5):
        publisher.say(image(value).tobytes())
    session = broker._sessions["inputs"]
    until(lambda: len(session.unacknowledged) == 5, "the deliveries")
    first = list(session.unacknowledged.values())
    broker.drop("inputs")
    until(
        lambda: (
            len(session.unacknowledged) == 5
            and not any(again is one for again in list(session.unacknowledged.values()) for one in first)
        ),
        "the deliveries again",
    )
    sink.room.set()
    until(lambda: len(sink.submitted) == 5 and not left(broker), "all")
    assert [int(raw.ravel()[0]) for _, raw, _ in sink.submitted] == list(range(5))


def test_images_that_pillow_chokes_on_end_nobody(start, publisher, sink, broker):
    pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    from PIL import Image

    payloads = []
    for kind in ("PNG", "GIF", "BMP", "JPEG", "PPM"):
        with io.BytesIO() as file:
            Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28)).save(file, kind)
            content = file.getvalue()
        random = np.random.default_rng(zlib.crc32(kind.encode()))
        for _ in range(100):
            damaged = bytearray(content[: random.integers(1, len(content) + 1)])
            for at in random.integers(0, len(damaged), 4):
                damaged[at] = random.integers(0, 256)
            payloads.append(bytes(damaged))
    start()
    for payload in payloads:
        publisher.say(payload)
    until(lambda: len(sink.submitted) + len(sink.rejected) == len(payloads) and not left(broker), "acknowledgements")
    assert sink.rejected


def test_whatever_pillow_raises_is_a_dead_letter(start, publisher, sink, broker, monkeypatch):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

    def fail(*_, **__):
        raise zlib.error("deep inside a decoder")

    monkeypatch.setattr(image_module, "open", fail)
    start()
    publisher.say(b"\x89PNG")
    until(lambda: sink.rejected and not left(broker), "the acknowledgement")
    assert sink.rejected[0][1] == "image"


# ---------------------------------------------------------------- topics of other programs


def test_topics_of_other_programs_are_read_beside_our_own_and_name_their_inputs(start, publisher, sink, broker):
    start(topic=OTHER)
    packed = json.dumps({"image": base64.b64encode(image(3).tobytes()).decode(), "name": "shoe", "request": "mine"})
    publisher.say(image(1).tobytes(), topic=DOOR)
    publisher.say(image(2).tobytes())
    publisher.say(packed.encode(), topic=DOOR)
    publisher.say(encode(InputMessage(request="r", name="", payload=image(4).tobytes())), topic=DOOR)
    publisher.say(image(5).tobytes(), topic="frigate/door/person")
    publisher.say(image(6).tobytes(), topic=DOOR, qos=0)
    until(lambda: len(sink.submitted) == 5 and not left(broker), "the inputs")
    assert sorted((int(raw[0, 0, 0]), name) for name, raw, _ in sink.submitted) == [
        (1, DOOR), (2, ""), (3, "shoe"), (4, DOOR), (6, DOOR),
    ]  # fmt: skip
    assert [request for _, raw, request in sink.submitted if raw[0, 0, 0] in (3, 4)] == ["mine", "r"]


def test_what_is_no_input_is_refused_with_where_it_came_from_and_its_request(start, publisher, sink, broker):
    start(topic=OTHER, json_field="thumb.data")
    publisher.say(b'{"camera": "door", "thumb": {"url": "x"}}', topic=DOOR)
    publisher.say(encode(InputMessage(request="r-7", name="a.txt", payload=b"hello")))
    until(lambda: len(sink.rejected) == 2 and not left(broker), "refusals")
    taken = "an image file, 784 raw bytes or an .npy array (uint8 (28, 28, 1))"
    assert [(name, detail) for name, _, detail, _ in sink.rejected] == [
        (DOOR, "it is JSON, but it has no field 'data' (its fields: url)"),
        ("a.txt", f"expected {taken}, received text of 5 bytes, 'hello'"),
    ]
    assert sink.refused_requests == [("", DOOR), ("r-7", TOPIC)]


def test_a_retained_input_is_taken_once_where_that_is_wanted(start, publisher, sink, broker):
    publisher.say(image(1).tobytes(), topic=DOOR, retain=True)
    end = start(topic=OTHER, retained="take")
    until(lambda: len(sink.submitted) == 1, "the one that was there")
    broker.drop("inputs")
    publisher.say(image(2).tobytes(), topic=DOOR, retain=True)  # live, or kept for this client and retained
    until(lambda: len(sink.submitted) == 2, "the next")
    for again in range(3):
        broker.drop("inputs")
        publisher.say(image(9).tobytes())  # on our own topic: to see that it is back
        until(lambda n=again: len(sink.submitted) == 3 + n and not left(broker), "the connection")
        time.sleep(0.05)
    assert [name for name, _, _ in sink.submitted].count(DOOR) == 2
    publisher.say(image(3).tobytes(), topic=DOOR)
    publisher.say(image(3).tobytes(), topic=DOOR)
    until(lambda: len(sink.submitted) == 7, "the same picture, published twice")
    end()
    start(topic=OTHER, retained="take")
    until(lambda: len(sink.submitted) == 8, "the newest retained one, once after a restart")
    assert int(sink.submitted[-1][1][0, 0, 0]) == 2


def test_a_retained_input_that_was_not_taken_in_comes_again(start, publisher, sink, broker):
    sink.room.clear()
    publisher.say(image(1).tobytes(), topic=DOOR, retain=True)
    start(topic=OTHER, retained="take")
    session = broker._sessions["inputs"]
    until(lambda: session.unacknowledged, "the delivery")
    (first,) = session.unacknowledged.values()
    broker.drop("inputs")
    until(lambda: any(again is not first for again in list(session.unacknowledged.values())), "the delivery again")
    sink.room.set()
    until(lambda: sink.submitted and not left(broker), "the input")
    assert len(sink.submitted) == 1


def test_what_an_earlier_configuration_subscribed_to_is_no_input(start, publisher, sink, broker):
    start(topic=OTHER)()
    start()
    publisher.say(image(1).tobytes(), topic=DOOR)
    publisher.say(image(2).tobytes())
    until(lambda: len(sink.submitted) == 1 and not left(broker), "our own")
    ((kind, what, remedy),) = sink.told
    assert kind is EventKind.SOURCE
    assert DOOR in what
    assert remedy


@pytest.mark.parametrize(
    "wrong",
    [
        "", "#", "+/#", "distree/#", "distree/1/#", "distree/1/lab/pipeline/p/input/cam", "distree/+/+/pipeline/+/result/+",
        "+/+/+/+/+/result/+", "+/+/+/site-event", "a/#/b", "a/b+", "a#", "$share/g/a", "a\nb", "a\0",
    ],
)  # fmt: skip
def test_topics_that_are_none_or_ours_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"^topic: "):
        MqttSourceConfig(kind="mqtt", topic=wrong)


@pytest.mark.parametrize(
    "right", ["a", "zigbee2mqtt/+", "frigate/+/+/snapshot", "cams/#", "/a//b", "Ä b/c", "distree-x/y"]
)
def test_topics_of_other_programs(right):
    assert MqttSourceConfig(kind="mqtt", topic=right).foreign_topics() == (right,)


def test_a_field_without_a_name_is_refused():
    for wrong in ("", ".", "a..b", "a."):
        with pytest.raises(ConfigError, match=r"^json_field: "):
            MqttSourceConfig(kind="mqtt", json_field=wrong)
