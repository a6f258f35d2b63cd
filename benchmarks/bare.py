"""The bare loop: one stage of the pipeline with paho, msgpack and the interpreter, in the fewest honest lines.

It does the work of an agent and none of its duties: no deadline, no custody, no re-sending, no checks, no telemetry.
`python -m benchmarks.bare HOST PORT STAGE BUNDLE [INPUTS COUNT WINDOW]`; stage 0 streams inputs and publishes results.
"""

import json
import math
import socket
import sys
import time

import msgpack
import numpy as np
import paho.mqtt.client as mqtt
import yaml
from ai_edge_litert.interpreter import Interpreter

HOST, PORT, STAGE, BUNDLE = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
MANIFEST = yaml.load(open(f"{BUNDLE}/bundle.yaml"), yaml.CSafeLoader)
SPEC = MANIFEST["stages"][STAGE]
THRESHOLDS = [math.inf if one == "never" else one for one in [*MANIFEST["exits"]["thresholds"], -1.0]]
interpreter = Interpreter(model_path=f"{BUNDLE}/{SPEC['segment']}", num_threads=1)
interpreter.allocate_tensors()
INPUT = interpreter.get_input_details()[0]["index"]
OUTPUTS = {tuple(detail["shape"]): detail["index"] for detail in interpreter.get_output_details()}
LOGITS = OUTPUTS[tuple(SPEC["logits"]["shape"])]
FEATURES = OUTPUTS.get(tuple(SPEC.get("features", {}).get("shape", ())))
SHAPE, SCALE, ZERO = SPEC["input"]["shape"], SPEC["logits"]["scale"], SPEC["logits"]["zero_point"]


def infer(tensor):
    """Run the segment; return features, class and confidence."""
    started = time.monotonic()
    interpreter.set_tensor(INPUT, tensor)
    interpreter.invoke()
    logits = [(q - ZERO) * SCALE for q in interpreter.get_tensor(LOGITS)[0].tolist()]
    features = interpreter.get_tensor(FEATURES) if FEATURES is not None else None
    top = max(logits)
    confidence = 1.0 / sum(math.exp(z - top) for z in logits)
    return features, logits.index(top), confidence, time.monotonic() - started


def step(client, message, tensor):
    """One stage of one request: leave here, or publish the features."""
    features, class_id, confidence, took = infer(tensor)
    message["hops"].append([f"board{STAGE}", STAGE, took])
    message["guess"] = [STAGE, class_id, confidence]
    if confidence >= THRESHOLDS[STAGE]:
        message.pop("payload", None)
        return finish(client, message) if STAGE == 0 else client.publish("bare/outcome", msgpack.packb(message), 1)
    message["payload"] = features.tobytes()
    return client.publish(f"bare/stage/{STAGE + 1}", msgpack.packb(message), 1)


def on_features(client, _, mqtt_message):
    message = msgpack.unpackb(mqtt_message.payload)
    step(client, message, np.frombuffer(message["payload"], np.int8).reshape(SHAPE))


# ---------------------------------------------------------------- stage 0 only

started_at = {}
if STAGE == 0:
    COUNT, WINDOW = int(sys.argv[6]), int(sys.argv[7])
    raw = np.load(sys.argv[5])["input"]
    mean, std = MANIFEST["preprocess"]["mean"][0], MANIFEST["preprocess"]["std"][0]
    table = (np.arange(256) / 255 - mean) / std / SPEC["input"]["scale"] + SPEC["input"]["zero_point"]
    table = np.clip(np.rint(table), -128, 127).astype(np.int8)


def submit(client):
    index = len(started_at)
    if index < COUNT:
        tensor = table[raw[index % len(raw)]].transpose(2, 0, 1).reshape(SHAPE)
        started_at[str(index)] = time.monotonic()
        step(client, {"request": str(index), "hops": []}, tensor)


def finish(client, message):
    exit_, class_id, confidence = message["guess"]
    result = {
        "request": message["request"],
        "label": MANIFEST["labels"][class_id],
        "confidence": confidence,
        "exit": exit_,
        "hops": message["hops"],
        "latency_ms": 1e3 * (time.monotonic() - started_at[message["request"]]),
    }
    client.publish("bare/result", json.dumps(result), 1)
    submit(client)


def on_outcome(client, _, mqtt_message):
    finish(client, msgpack.unpackb(mqtt_message.payload))


def on_subscribe(client, *_):
    client.publish(f"bare/ready/{STAGE}", b"ready", 1)
    for _ in range(WINDOW if STAGE == 0 else 0):
        submit(client)


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.on_socket_open = lambda _c, _u, sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
client.on_message = on_outcome if STAGE == 0 else on_features
client.on_subscribe = on_subscribe
client.on_connect = lambda c, *_: c.subscribe("bare/outcome" if STAGE == 0 else f"bare/stage/{STAGE}", 1)
client.connect(HOST, PORT)
client.loop_forever()
