"""The ways to ask: for each one the program that asks, with stage 0, and the one that answers, with the others.

`python -m benchmarks.peers.ways serve|ask WAY PORT BUNDLE`, each in as few lines as are honest: connections are kept,
nothing waits for more to send, bytes travel as they are. DistrEE's program that answers is `distree agent run`. A
program that asks takes the number of inputs of a round from a line of its standard input and prints, as JSON, what
each one took.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hop import SAMPLES
from benchmarks.peers.segments import Answer, Segments

HOST = "127.0.0.1"
ANSWER = struct.Struct("<Bd")
"""How an answer comes back: class and confidence, 9 bytes."""

SITE, PIPELINE, SERVER = "bench", "split", "there"
GRPC_METHOD = "/split.Rest/Answer"
START_S = 30.0

Ask = Callable[[Any], Answer]
Rest = Callable[[bytes], bytes]


# ---------------------------------------------------------------- DistrEE


@contextlib.contextmanager
def ask_distree(port: int, bundle: Path, pipeline: str = PIPELINE, stages: int = 3) -> Iterator[Ask]:
    """Ask as a program does: `Origin.submit().result()`; `stages` is how many an input is to go through."""
    from device_agent import Origin

    # Each pipeline has an origin of its own here, named as the pipeline is.
    with Origin(bundle, site=SITE, device=pipeline, pipeline=pipeline, stages=[0], broker=f"{HOST}:{port}") as origin:
        image = np.zeros(origin.shape, origin.dtype)
        ends_at = time.monotonic() + START_S
        while origin.submit(image).result().exit != stages - 1:  # the other board is on its way
            if time.monotonic() > ends_at:
                raise SystemExit(f"no input went through {stages} stages within {START_S:g} s")
            time.sleep(0.05)

        def ask(image: Any) -> Answer:
            result = origin.submit(image).result()
            if result.exit != stages - 1 or result.class_id is None or result.confidence is None:
                raise SystemExit(f"an input left at exit {result.exit}, {result.reason}: is the machine overloaded?")
            return result.class_id, result.confidence

        yield ask


# ---------------------------------------------------------------- the peers: `carry` takes features there


def _with_stage_0(bundle: Path, carry: Rest) -> Ask:
    segments = Segments(bundle, [0])

    def ask(image: Any) -> Answer:
        answer, features = segments.answer(0, segments.tensor(image))
        return answer if features is None else ANSWER.unpack(carry(features.tobytes()))

    return ask


@contextlib.contextmanager
def ask_grpc(port: int, bundle: Path) -> Iterator[Ask]:
    import grpc

    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        grpc.channel_ready_future(channel).result(START_S)
        yield _with_stage_0(bundle, channel.unary_unary(GRPC_METHOD))


def serve_grpc(port: int, rest: Rest) -> None:
    from concurrent import futures

    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(lambda features, _context: rest(features))
    service, method = GRPC_METHOD[1:].split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    server.wait_for_termination()


@contextlib.contextmanager
def ask_http(port: int, bundle: Path) -> Iterator[Ask]:
    connection = http.client.HTTPConnection(HOST, port)  # sets TCP_NODELAY
    with contextlib.closing(connection):

        def carry(features: bytes) -> bytes:
            connection.request("POST", "/", features)
            return connection.getresponse().read()

        yield _with_stage_0(bundle, carry)


def serve_http(port: int, rest: Rest) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body in one write

        def do_POST(self) -> None:
            answer = rest(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_request(self, *_: Any) -> None:
            pass

    http.server.HTTPServer((HOST, port), Handler).serve_forever()


@contextlib.contextmanager
def ask_zeromq(port: int, bundle: Path) -> Iterator[Ask]:
    import zmq

    with zmq.Context() as context, context.socket(zmq.REQ) as asking:
        asking.connect(f"tcp://{HOST}:{port}")

        def carry(features: bytes) -> bytes:
            asking.send(features)
            return asking.recv()

        yield _with_stage_0(bundle, carry)


def serve_zeromq(port: int, rest: Rest) -> None:
    import zmq

    answering = zmq.Context().socket(zmq.REP)
    answering.bind(f"tcp://{HOST}:{port}")
    while True:
        answering.send(rest(answering.recv()))


@contextlib.contextmanager
def ask_nobody(_port: int, bundle: Path) -> Iterator[Ask]:
    """All stages in one program: what computing alone takes."""
    segments = Segments(bundle, [0, 1, 2])
    yield lambda image: segments.answer(0, segments.tensor(image))[0]


# ---------------------------------------------------------------- a program of one way

ASK: dict[str, Callable[[int, Path], contextlib.AbstractContextManager[Ask]]] = {
    "distree": ask_distree,
    "leaves": lambda port, bundle: ask_distree(port, bundle, "leaves", stages=1),
    "grpc": ask_grpc,
    "http": ask_http,
    "zeromq": ask_zeromq,
    "alone": ask_nobody,
}
SERVE: dict[str, Callable[[int, Rest], None]] = {"grpc": serve_grpc, "http": serve_http, "zeromq": serve_zeromq}


def serve(way: str, port: int, bundle: Path) -> None:
    segments = Segments(bundle, [1, 2])

    def rest(payload: bytes) -> bytes:
        return ANSWER.pack(*segments.answer(1, segments.features(1, payload))[0])

    SERVE[way](port, rest)


def converse(ask: Ask) -> None:
    """Ask rounds of inputs, as many of them as each line of standard input says."""
    images = list(np.load(SAMPLES)["input"])
    print("ready", flush=True)
    for line in sys.stdin:
        took_s, answers = [], []
        cpu_s = time.process_time()
        for image in images[: int(line)]:
            started_at = time.perf_counter()
            answer = ask(image)
            took_s.append(time.perf_counter() - started_at)
            answers.append(answer)
        print(json.dumps({"took_s": took_s, "cpu_s": time.process_time() - cpu_s, "answers": answers}), flush=True)


def main() -> None:
    does, way, port, bundle = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    if does == "serve":
        serve(way, port, bundle)
    with ASK[way](port, bundle) as ask:
        converse(ask)


if __name__ == "__main__":
    main()
