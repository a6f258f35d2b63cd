"""The flow of docs/node-red in a real Node-RED: imported by its admin API, fed by a real mosquitto, asked by HTTP."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from broker_config.managed import ManagedBroker, find_mosquitto
from distree import child_processes, topics
from distree.broker_settings import BrokerSettings, Session
from distree.messages.codec import encode
from distree.messages.request import Hop
from distree.messages.result import Result, Stamp
from distree.topics import Kind
from distree.transport import make_transport

ROOT = Path(__file__).parents[2]
FLOW = ROOT / "docs" / "node-red" / "flow.json"
PATIENCE_S = 90.0
RESULT = Result(
    request="r-1", site="lab", pipeline="fashion", origin="cam1", input="boot.png", label="Ankle boot", class_id=9,
    confidence=0.9981, exit=0, reason="confident", final=True, late=False, attempt=1, latency_s=0.0004, epoch=3,
    model="fashion", revision="r1", hops=(Hop(device="cam1", stage=0, queue_s=0.0, compute_s=0.0001),),
)  # fmt: skip
RESULTS = [
    RESULT,
    replace(RESULT, request="r-2", input="bag.png", label="Bag", exit=2, reason="last", confidence=0.41),
    replace(RESULT, request="r-1", final=False, late=True, label="Sandal"),
    replace(
        RESULT, request="r-3", site="attic", input="<b>&.png", label=None, exit=None, reason="shed", confidence=0.0
    ),
]


def find_node_red() -> str | None:
    inside = ROOT / "node_modules" / ".bin" / "node-red"
    return str(inside) if inside.exists() else shutil.which("node-red")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class NodeRed:
    """A Node-RED of its own folder and port, without an editor; it fetches nothing and reports nothing."""

    def __init__(self, program: str, folder: Path) -> None:
        self.address = f"http://127.0.0.1:{(port := free_port())}"
        self.log = folder / "node-red.log"
        settings = folder / "settings.js"
        settings.write_text(
            f"module.exports = {{uiHost: '127.0.0.1', uiPort: {port}, disableEditor: true, flowFile: 'flows.json',\n"
            "  telemetry: {enabled: false, updateNotification: false}, externalModules: {autoInstall: false},\n"
            "  logging: {console: {level: 'info'}}};\n"
        )
        with self.log.open("wb") as log:
            argv = [program, "--settings", str(settings), "--userDir", str(folder)]
            self.process = child_processes.spawn(argv, stdout=log, stderr=subprocess.STDOUT)
        self.until(self.is_up, "Node-RED to start")

    def is_up(self) -> bool:
        try:
            return isinstance(self.get("/flows"), list)
        except (urllib.error.URLError, ConnectionError):
            return False

    def until(self, condition, what: str) -> None:
        ends_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < ends_at, f"{what}: {self.log.read_text()}"
            time.sleep(0.1)

    def text(self, path: str) -> str:
        with urllib.request.urlopen(self.address + path, timeout=30) as answer:
            return answer.read().decode()

    def get(self, path: str):
        return json.loads(self.text(path))

    def deploy(self, flow: list[dict]) -> None:
        headers = {"Content-Type": "application/json", "Node-RED-Deployment-Type": "full"}
        asked = urllib.request.Request(self.address + "/flows", json.dumps(flow).encode(), headers, method="POST")
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert answer.status == 204

    def close(self) -> None:
        child_processes.stop(self.process, 10.0)


class Publisher:
    def __init__(self, port: int) -> None:
        self.transport = make_transport(BrokerSettings(port=port), client_id="publisher", session=Session.NONE)
        self.taken: set[str] = set()
        self.transport.open(self, [])
        self.transport.connect_now(10.0)

    def connected(self): ...
    def disconnected(self, why): ...
    def received(self, message): ...

    def published(self, token):
        self.taken.add(token)

    def given_up(self, token):
        pass

    def no_subscribers(self, topic, payload):
        pass

    def say(self, result: Result) -> None:
        topic = topics.of_origin(result.site, result.pipeline, Kind.RESULT, result.origin)
        payload = encode(result, Stamp(time="2026-01-15T09:30:00.123+00:00", clock_synced=True))
        self.raw(topic, payload)

    def raw(self, topic: str, payload: bytes) -> None:
        token = str(len(self.taken))
        with self.transport.lock:
            self.transport.publish(topic, payload, qos=1, token=token)
        while token not in self.taken:
            self.transport.poll(0.1)


@pytest.fixture
def node_red(tmp_path):
    program = find_node_red()
    if program is None:
        pytest.skip("Node-RED is not installed: apt install nodejs npm; make node")
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")
    running = NodeRed(program, tmp_path)
    yield running
    running.close()


def test_the_flow_shows_final_answers_and_filters_them(node_red):
    with ManagedBroker(engine="mosquitto") as broker:
        flow = json.loads(FLOW.read_text(encoding="utf-8"))
        (server,) = (node for node in flow if node["type"] == "mqtt-broker")
        server["port"] = str(broker.port)
        node_red.deploy(flow)
        assert len(node_red.get("/flows")) == len(flow)
        publisher = Publisher(broker.port)
        # Whether its subscription stands is seen by what comes through.
        probe = replace(RESULT, request="r-0", site="probe")

        def comes_through() -> bool:
            publisher.say(probe)
            return any(answer["site"] == "probe" for answer in node_red.get("/distree/answers"))

        node_red.until(comes_through, "the subscription")
        publisher.raw("distree/1/lab/pipeline/fashion/result/cam1", b"not JSON")
        for result in RESULTS:
            publisher.say(result)
        node_red.until(lambda: len(node_red.get("/distree/answers?site=attic")) == 1, "the last answer")
        publisher.transport.close()

        kept = node_red.get("/distree/answers?site=lab")
        assert [answer["label"] for answer in kept] == ["Bag", "Ankle boot"]
        assert kept[1] == {
            "time": "2026-01-15T09:30:00.123+00:00", "site": "lab", "pipeline": "fashion", "origin": "cam1",
            "input": "boot.png", "label": "Ankle boot", "confidence": 0.9981, "exit": 0, "reason": "confident",
            "latency_ms": 0.4, "unsure": False,
        }  # fmt: skip
        assert [answer["label"] for answer in node_red.get("/distree/answers?unsure=true")] == [None, "Bag"]
        assert [answer["label"] for answer in node_red.get("/distree/answers?label=Bag&exit=2")] == ["Bag"]
        assert node_red.get("/distree/answers?label=Sandal") == []
        page = node_red.text("/distree?site=attic")
        assert "<h1>Answers (1)</h1>" in page
        assert "&lt;b&gt;&amp;.png" in page
        assert "<b>" not in page


def test_the_flow_needs_only_what_node_red_brings():
    core = {
        "tab", "mqtt-broker", "mqtt in", "switch", "function", "debug", "http in", "template", "http response",
    }  # fmt: skip
    flow = json.loads(FLOW.read_text(encoding="utf-8"))
    assert {node["type"] for node in flow} == core
    ids = {node["id"] for node in flow}
    assert len(ids) == len(flow)
    assert {target for node in flow for wire_ in node.get("wires", []) for target in wire_} <= ids
    subscribed = next(node["topic"] for node in flow if node["type"] == "mqtt in")
    assert subscribed == topics.of_origin("+", "+", Kind.RESULT, "+")
