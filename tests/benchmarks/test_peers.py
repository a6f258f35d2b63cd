"""`make peers` takes bytes apart without losing any, and its ways to ask give the same answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from benchmarks.peers import dissect
from distree.transport import packets

ROOT = Path(__file__).parents[2]
TENSOR = bytes(range(256)) * 6 + bytes(32)
TOPIC = "distree/1/site/pipeline/p/stage/1"
CONNECT_5 = bytes.fromhex("101100044d5154540502003c03210010000161")


def mqtt_stream():
    message = msgpack.packb({"v": 1, "hops": [{"device": "a"}], "payload": TENSOR})
    properties = packets.properties("application/json", 3.0)
    return [
        CONNECT_5,
        packets.publish(TOPIC, message, mid=7, properties=properties),
        packets.publish("t", b'{"a":{"b":1}}', mid=None, properties=b"\0"),
        packets.publish("t", b"neither", mid=None, properties=b"\0"),
        packets.puback(7),
    ], message


def test_a_publish_is_divided_into_what_it_is_made_of():
    stream, message = mqtt_stream()
    found = dissect.count(dissect.mqtt, b"".join(stream), 0, 1 << 20)
    names = sum(len(msgpack.packb(name)) for name in ("v", "hops", "device", "payload"))
    assert {part: found[f"PUBLISH {TOPIC}: {part}"] for part in ("features", "names of fields", "topic")} == {
        "features": len(TENSOR),
        "names of fields": names,
        "topic": 2 + len(TOPIC),
    }
    assert found[f"PUBLISH {TOPIC}: values of fields"] == len(message) - len(TENSOR) - names
    assert found["PUBLISH t: names of fields"] == len('"a":"b":')
    assert found["PUBLISH t: payload"] == len(b"neither")
    assert found["PUBACK"] == 4


def http2_frame(kind: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes((kind, 0, 0, 0, 0, 1)) + body


STREAMS = {
    "mqtt": (dissect.mqtt, mqtt_stream()[0]),
    "http1": (
        dissect.http1,
        [b"POST / HTTP/1.1\r\ncontent-length: 1568\r\n\r\n" + TENSOR, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"],
    ),
    "http2": (
        dissect.http2,
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            http2_frame(4, b""),
            http2_frame(1, b"head"),
            http2_frame(0, b"\0\0\0\6\x20" + TENSOR),
            http2_frame(0, b""),
        ],
    ),
    "zmtp": (
        dissect.zmtp,
        [
            b"\xff" + bytes(63),
            b"\x04\x05READY",
            b"\x01\x00",
            b"\x02" + len(TENSOR).to_bytes(8, "big") + TENSOR,
            b"\x00\x09" + bytes(9),
        ],
    ),
}


@pytest.mark.parametrize("protocol", STREAMS)
def test_no_byte_is_lost_wherever_a_count_begins_and_a_stream_is_cut(protocol):
    read, whole = STREAMS[protocol]
    stream = b"".join(whole)
    starts = [sum(map(len, whole[:i])) for i in range(len(whole) + 1)]
    for start in starts[:-1]:
        assert dissect.count(read, stream, start, len(stream)).total() == len(stream) - start
    for cut in range(len(stream)):
        if cut in starts:
            continue
        assert sum(nbytes for _, _, nbytes in read(stream[:cut])) == max(at for at in starts if at <= cut)


def test_the_features_travel_once_by_http_and_twice_by_a_broker(mosquitto_only, tmp_path):
    out = tmp_path / "peers.json"
    command = [sys.executable, "-m", "benchmarks.peers", "--ways", "distree", "leaves", "http", "alone"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--inputs", "10", "--json", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert set(report["times"]) == {"distree", "leaves", "http", "alone"}
    assert features(report, "distree") == 2 * len(TENSOR)
    assert features(report, "http") == len(TENSOR)
    assert features(report, "leaves") == 0
    assert "where each byte of distree goes" in done.stdout


def features(report, way):
    parts = [item for parts in report["bytes"][way].values() for item in parts.items()]
    return round(sum(nbytes for name, nbytes in parts if name.endswith("features")), 6)
