"""What can be set up wrongly, by section: `python tests/integration/provoked.py` writes what is then printed to
docs/reference/error-messages.md. Each value is a function that makes it so in a folder of its own and returns the arguments
of `distree`, the exit status, and words that the one line on standard error must contain, some of the remedy among them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from broker_config.managed import free_port
from distree.bundle.loading import find_bundle

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "error-messages.md"
NOT_OURS = re.compile(r"INFO: Created TensorFlow Lite|\d+: |W0000|I0000|WARNING: All log messages before absl")
FASHION = find_bundle("fashion")
IMAGES = np.arange(2 * 784, dtype=np.uint8).reshape(2, 28, 28, 1)
WIDE, MIXED = (ROOT / "tests" / "data" / name for name in ("tiny-wide", "tiny-mixed"))


class Case:
    """A folder in which something is wrong. Methods return the arguments of `distree`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, name, text):
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def bundle(self, good=FASHION):
        """A copy of a good bundle, to be spoilt."""
        return Path(shutil.copytree(good, self.folder / "copy"))

    def sealed(self, path, name):
        """Name a changed file's SHA-256 in the manifest, as a wrong build would."""
        manifest = yaml.safe_load((path / "bundle.yaml").read_text())
        digest = hashlib.sha256((path / name).read_bytes()).hexdigest()
        for part in (*manifest["stages"], manifest["golden"]):
            if name in (part.get("segment"), part.get("file")):
                part["sha256"] = digest
        (path / "bundle.yaml").write_text(yaml.safe_dump(manifest))

    def agent(self, *options, verb="check", **changes):
        config = {"site": "lab", "device": "cam", "pipelines": [{"name": "p", "bundle": "fashion", "stages": [0]}]}
        config["broker"] = {"port": free_port()}
        path = self.file("agent.yaml", yaml.safe_dump({**config, **changes}, sort_keys=False))
        return ["agent", verb, "-c", path, *options]

    def init(self, *options):
        """To a file of this folder, unless another -o follows: the last one counts."""
        return ["init", "-o", str(self.folder / "new.yaml"), *options]

    def text(self, text):
        return ["agent", "check", "-c", self.file("agent.yaml", text)]

    def pipeline(self, **changes):
        return self.agent(pipelines=[{"name": "p", "bundle": "fashion", "stages": [0], **changes}])

    def replay(self, path):
        return self.pipeline(origin={"source": {"kind": "replay", "path": str(path)}})

    def replayed(self, **arrays):
        np.savez(self.folder / "inputs.npz", **arrays)
        return self.replay(self.folder / "inputs.npz")

    def orchestrator(self, **changes):
        pipeline = {"name": "p", "bundle": "fashion", **changes}
        config = {"site": "lab", "store": {"path": str(self.folder / "o.db")}, "pipelines": [pipeline]}
        return ["orchestrator", "run", "-c", self.file("orchestrator.yaml", yaml.safe_dump(config))]

    def data(self, *command, **arrays):
        np.savez(self.folder / "x.npz", **arrays)
        return [*command, "--data", str(self.folder / "x.npz")]

    def evaluate(self, **arrays):
        return self.data("zoo", "evaluate", "fashion", **arrays)

    def submit(self, *options, content=bytes(784), name="x.raw"):
        (self.folder / name).write_bytes(content)
        where = ["--site", "lab", "--pipeline", "p", "--origin", "cam"]
        return ["submit", *where, *options, str(self.folder / name)]


STAGE = ("--site", "lab", "--device", "cam", "--bundle", "fashion", "--stages", "0")


def missing_segment(case):
    path = case.bundle()
    (path / "stage0.tflite").unlink()
    return case.pipeline(bundle=str(path))


def tampered(name, good=FASHION, **pipeline):
    def arguments(case):
        path = case.bundle(good)
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
        return case.pipeline(bundle=str(path), **pipeline)

    return arguments


def wide(bundle=WIDE, **pipeline):
    return lambda case: case.pipeline(bundle=str(bundle), **pipeline)


def no_segment_at_all(case):
    path = case.bundle()
    (path / "stage0.tflite").write_bytes(b"this is no flatbuffer" * 10)
    case.sealed(path, "stage0.tflite")
    return case.agent(self_test=False, pipelines=[{"name": "p", "bundle": str(path), "stages": [0]}])


def embedding_off(case):
    path = case.bundle(WIDE)
    with np.load(path / "golden.npz") as arrays:
        vectors = {name: arrays[name] for name in arrays}
    vectors["stage1_branch1_embedding"] = vectors["stage1_branch1_embedding"] // 2
    np.savez(path / "golden.npz", **vectors)
    case.sealed(path, "golden.npz")
    return case.pipeline(bundle=str(path), stages=[0, 1, 2], branch=1)


def golden_off(case):
    path = case.bundle()
    with np.load(path / "golden.npz") as arrays:
        vectors = {name: arrays[name] for name in arrays}
    vectors["stage0_logits"] = vectors["stage0_logits"] + 30
    np.savez(path / "golden.npz", **vectors)
    case.sealed(path, "golden.npz")
    return case.pipeline(bundle=str(path))


def manifest(change):
    def arguments(case):
        path = case.bundle()
        content = yaml.safe_load((path / "bundle.yaml").read_text())
        change(content)
        (path / "bundle.yaml").write_text(yaml.safe_dump(content))
        return case.pipeline(bundle=str(path))

    return arguments


def unknown_key(case):
    lines = "site: lab\ndevice: cam\npipelines:\n  - name: p\n    bundle: fashion\n    stagse: [0]\n    stages: [0]\n"
    return case.text(lines)


def single_array(case):
    np.save(case.folder / "x.npy", np.zeros((2, 28, 28, 1), np.uint8))
    return case.replay(case.folder / "x.npy")


def no_archive(case):
    return case.replay(case.file("inputs.npz", "not an archive"))


def broken_image(case):
    (case.folder / "Bag").mkdir()
    (case.folder / "Bag" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return ["zoo", "evaluate", "fashion", "--data", str(case.folder)]


def broken_archive(case):
    (case.folder / "x.npz").write_bytes(b"PK\x03\x04 and no more")
    return ["zoo", "evaluate", "fashion", "--data", str(case.folder / "x.npz")]


def nowhere():
    return f"127.0.0.1:{free_port()}"


SPOOLED = {"name": "p", "bundle": "fashion", "stages": [0], "origin": {"spool": True, "source": {"kind": "mqtt"}}}

SECTIONS = {
    "Setting up a board": {
        "init: required options are missing": (lambda c: c.init("--bundle", "fashion"), 2, ["missing --site, --stages or --source; give the options", "in a terminal"]),
        "init: the output file already exists": (lambda c: c.init(*STAGE, "-o", c.file("a.yaml", "mine")), 2, ["a.yaml: already exists", "--force"]),
        "init: the output folder does not exist": (lambda c: c.init(*STAGE, "-o", str(c.folder / "no" / "a.yaml")), 2, ["cannot be written (No such", "in an existing folder"]),
        "init: a user name without a password file": (lambda c: c.init(*STAGE, "--username", "ann"), 2, ["--username: there is no password; give --password-file too"]),
        "init: a directory source without --path": (lambda c: c.init(*STAGE, "--source", "directory"), 2, ["missing --path; give the options"]),
        "doctor: the configuration file does not exist": (lambda c: ["doctor", "-c", str(c.folder / "none.yaml")], 2, ["none.yaml: cannot be read", "check the path"]),
        "doctor: --timeout 0": (lambda c: ["doctor", *c.agent()[2:], "--timeout", "0"], 2, ["--timeout: 0 is out of range", "more than 0"]),
        "service install: state_dir is outside /var/lib/distree": (
            lambda c: ["service", "install", *c.agent(state_dir=str(c.folder / "mine"), pipelines=[SPOOLED])[2:], "--print"],
            2, ["the service may write only below /var/lib/distree; remove state_dir"],
        ),
        "service install: the image is not writable": (
            lambda c: ["service", "install", *c.agent()[2:], "--root", c.file("image", ""), "--exec", "/opt/distree/bin/distree"],
            2, ["distree-agent.service: cannot be written", "sudo"],
        ),
    },
    "Configuration": {
        "the configuration file does not exist": (lambda c: ["agent", "check", "-c", str(c.folder / "none.yaml")], 2, ["none.yaml: cannot be read (No such", "check the path"]),
        "not valid YAML": (lambda c: c.text("site: lab\n  device: [cam"), 2, ["agent.yaml:2: not YAML: ", "check the indentation"]),
        "unknown key": (unknown_key, 2, ["agent.yaml:6: pipelines[0].stagse: unknown key (received a list); rename it to stages"]),
        "a password written in the file": (
            lambda c: c.agent(broker={"password": "hunter2"}), 2, ["broker.password: unknown key", "rename it to password_file"],
        ),
        "missing key": (lambda c: c.text("device: cam\npipelines: []\n"), 2, ["agent.yaml: missing key site; add it"]),
        "wrong type": (lambda c: c.agent(telemetry_interval_s="fast"), 2, [": telemetry_interval_s: expected a number, received 'fast'; write one"]),
        "a number in quotes": (lambda c: c.agent(broker={"port": "1883"}), 2, ["broker.port: expected a whole number", "remove the quotes"]),
        "the device name is not a valid id": (lambda c: c.agent(device="Cam 1"), 2, ["device: 'Cam 1' is not an id; use 1 to 32 of a-z, 0-9 and '-'"]),
        "num_threads: 0": (lambda c: c.agent(num_threads=0), 2, ["num_threads: 0 is out of range; choose"]),
        "a board with nothing to do": (lambda c: c.pipeline(stages=[]), 2, ["pipelines[0].stages: this board has nothing to do; give stages"]),
        "the same stage listed twice": (lambda c: c.pipeline(stages=[0, 0]), 2, ["stages: [0, 0] lists a stage twice; list each once"]),
        "a stage that the bundle does not have": (
            lambda c: c.pipeline(stages=[7]), 2, ["stages: bundle fashion has no stage 7; choose stages from 0 to 2"],
        ),
        "unknown source": (
            lambda c: c.pipeline(origin={"source": {"kind": "telepathy"}}), 2, ["source.kind: expected one of ", "write one of these"],
        ),
        "two pipelines with the same name": (
            lambda c: c.agent(pipelines=[{"name": "p", "bundle": "fashion", "stages": [k]} for k in (0, 1)]),
            2, ["pipelines: two have the same name; give each a name of its own"],
        ),
        "unknown codec": (lambda c: c.agent(codec="zip"), 2, ["codec: expected one of raw, zlib, received 'zip'; write one"]),
        "connect_timeout_s: 0": (lambda c: c.agent(broker={"connect_timeout_s": 0}), 2, ["broker.connect_timeout_s: 0 is out of range; choose"]),
        "a port number out of range": (lambda c: c.agent(broker={"port": 99999}), 2, ["broker.port: 99999 is out of range; choose 1 to 65535"]),
        "a deadline longer than an hour": (
            lambda c: c.pipeline(origin={"deadline_ms": 4e6, "source": {"kind": "mqtt"}}), 2, ["deadline_ms: 4e+06 is out of range; choose at most 3600000"],
        ),
        "unknown criterion in a bundle's manifest": (
            manifest(lambda m: m["exits"].update(criterion="vibes")), 2, ["copy/bundle.yaml: exits.criterion: unknown 'vibes'", "use one of"],
        ),
        "broker run: port number out of range": (lambda c: ["broker", "run", "--port", "99999"], 2, ["--port: 99999 is out of range; choose 0 to 65535"]),
        "unknown criterion in orchestrator.yaml": (lambda c: c.orchestrator(criterion="max_sotfmax"), 2, ["give thresholds for max_sotfmax"]),
        "zoo evaluate: unknown criterion": (
            lambda c: ["zoo", "evaluate", "fashion", "--criterion", "vibes", "--thresholds", "1,1", "--limit", "1"],
            2, ["unknown criterion 'vibes'; use one of", "max_softmax"],
        ),
        "the password file does not exist": (
            lambda c: c.agent(verb="run", broker={"username": "ann", "password_file": str(c.folder / "none")}),
            2, ["broker.password_file ", "none: no such file", "write the password into"],
        ),
        "results: --debounce below 0": (lambda c: ["results", "--site", "lab", "--debounce", "-1"], 2, ["--debounce: -1 is out of range; choose a number of seconds"]),
        "submit: --broker without a port": (lambda c: c.submit("--broker", "localhost"), 2, ["--broker: expected HOST:PORT, received 'localhost'; add the port, as in localhost:1883"]),
        "submit: --broker with a port number out of range": (lambda c: c.submit("--broker", "h:70000"), 2, ["expected HOST:PORT, received 'h:70000'; choose a port from 1 to 65535"]),
        "submit: an IPv6 address without brackets": (lambda c: c.submit("--broker", "::1"), 2, ["put the address in brackets, as in [::1]:1883"]),
        "submit: a login in the broker's address": (lambda c: c.submit("--broker", "mqtt://ann:secret@hub"), 2, ["received an address with a login; write only the address"]),
        "the broker's host in agent.yaml is a URL": (lambda c: c.agent(broker={"host": "mqtt://hub"}), 2, ["host: 'mqtt://hub' is neither a name nor an address; remove the scheme"]),
        "a source mqtt that would read DistrEE's own topics": (
            lambda c: c.pipeline(origin={"source": {"kind": "mqtt", "topic": "#"}}), 2, ["topic: '#' covers topics of DistrEE", "name the topics of the program"],
        ),
        "results: --site is not a valid id": (lambda c: ["results", "--site", "a/#"], 2, ["--site: 'a/#' is not an id; use"]),
        "submit: the file does not exist": (lambda c: [*c.submit()[:-1], str(c.folder / "none.png")], 2, ["none.png: cannot be read (No such file", "check the path"]),
    },
    "Inputs": {
        "camera: neither a camera nor a command is given": (
            lambda c: c.pipeline(origin={"source": {"kind": "camera"}}), 2, ["source.input: give either this or command; name the camera, such as /dev/video0"],
        ),
        "camera: the bundle is not for images": (
            lambda c: c.pipeline(bundle="spoken-digits", origin={"source": {"kind": "camera", "input": "/dev/video0"}}),
            2, ["pipelines.p.origin.source.kind: a camera gives images, but inputs of the bundle are int16 (8000,); choose another source"],
        ),
        "microphone: the bundle is not for sound": (
            lambda c: c.pipeline(bundle="wrist-exercises", origin={"source": {"kind": "microphone"}}),
            2, ["origin.source.kind: the bundle is not for sound: its input has channels ", "choose kind: stream, or another bundle"],
        ),
        "stream: a speed that serial devices do not have": (
            lambda c: c.pipeline(origin={"source": {"kind": "stream", "path": "/dev/ttyUSB0", "baud": 115201}}),
            2, ["source.baud: 115201 is not a speed of serial devices; choose one, such as 115200"],
        ),
        "replay: the file does not exist": (lambda c: c.replay(c.folder / "none.npz"), 2, ["none.npz: cannot be replayed (No such file", "give an .npz file"]),
        "replay: the inputs have the wrong shape": (
            lambda c: c.replayed(input=np.zeros((5, 8, 8, 1), np.uint8)), 2,
            ["inputs.npz: input is uint8 (5, 8, 8, 1), but the bundle expects uint8 (n, 28, 28, 1); convert it"],
        ),
        "replay: the inputs have the wrong dtype": (lambda c: c.replayed(input=np.zeros((5, 28, 28, 1))), 2, ["input is float64"]),
        "replay: the file has no array called input": (lambda c: c.replayed(x=np.zeros(3)), 2, ["inputs.npz: has no array 'input', only x; save the inputs under that name"]),
        "replay: input is a single number": (lambda c: c.replayed(input=np.uint8(3)), 2, ["inputs.npz: ", "convert it, or name another bundle"]),
        "replay: an .npy file instead of an .npz file": (single_array, 2, ["x.npy: ", "savez"]),
        "replay: the file is not an .npz archive": (no_archive, 2, ["inputs.npz: cannot be replayed", "give an .npz file with an array 'input'"]),
    },
    "Data": {
        "data that are not there": (
            lambda c: ["zoo", "evaluate", str(WIDE), "--data", str(c.folder / "no")], 2, ["no: does not exist; check the path"],
        ),
        "data without labels": (lambda c: c.evaluate(x=IMAGES), 2, ["x.npz: has no labels; give an .npz file with x and y"]),
        "channels first": (
            lambda c: c.evaluate(x=np.zeros((2, 3, 28, 28), np.uint8), y=[0, 1]), 2, ["x.npz: x: inputs are 3 x 28 x 28, but must be 28 x 28 x 1"],
        ),
        "images divided by 255": (lambda c: c.evaluate(x=IMAGES / 255, y=[0, 1]), 2, ["but must be uint8; save them as x * 255 as uint8, rounded"]),
        "too few labels": (lambda c: c.evaluate(x=IMAGES, y=[0]), 2, ["x.npz: y has 1 rows, but there are 2 inputs"]),
        "labels that the bundle does not have": (lambda c: c.evaluate(x=IMAGES, y=[0, 10]), 2, ["label 10 of input 1 is outside 0 to 9"]),
        "a class that the bundle does not have": (
            lambda c: c.evaluate(x=IMAGES, y=["Bag", "Trousers"]), 2, ["the bundle has no class 'Trousers'", "nearest: Trouser"],
        ),
        "a damaged image": (broken_image, 2, ["a.png: ", "are not a readable image", "save it again"]),
        "a damaged archive": (broken_archive, 2, ["x.npz: not a readable .npz archive", "save it again with numpy.savez"]),
        "a split of data that are not divided": (
            lambda c: [*c.evaluate(x=IMAGES, y=[0, 1]), "--split", "train"], 2, ["is not divided, so it has no split 'train'; leave --split out"],
        ),
    },
    "Bundles": {
        "the bundle is not found": (lambda c: c.pipeline(bundle="fasion"), 2, ["/fasion' not found", "known bundle (cifar10-wide, fashion", "correct the name"]),
        "a segment is missing": (missing_segment, 2, ["stage0.tflite: No such file or directory; copy the whole bundle"]),
        "a segment is damaged or altered": (tampered("stage0.tflite"), 2, ["stage0.tflite: its SHA-256 differs from the manifest's", "copy"]),
        "the golden vectors are damaged or altered": (tampered("golden.npz"), 2, ["golden.npz: its SHA-256 differs from the manifest's", "copy"]),
        "a segment is not a TFLite model": (no_segment_at_all, 2, ["stage0.tflite: the interpreter cannot load it", "copy"]),
        "too few thresholds in a manifest": (
            manifest(lambda m: m["exits"].update(thresholds=[0.5])), 2, ["copy/bundle.yaml: exits.thresholds: 1 given; give 2, one per exit but the last"],
        ),
        "a threshold in a manifest outside the criterion's range": (
            manifest(lambda m: m["exits"].update(thresholds=[90, 80])),
            2, ["exits.thresholds: the threshold of exit 0 is 90", "scores of max_softmax are between 0 and 1", "give 0.9 for 90%", "'never'"],
        ),
        "unknown key in a manifest": (manifest(lambda m: m.update(licence="x")), 2, ["bundle.yaml:", "licence: unknown key", "rename it to license"]),
    },
    "Self-test and broker": {
        "the self-test fails": (golden_off, 1, ["self-test of bundle fashion: stage 0 is off by 30 quantisation steps (2 allowed), ", "install"]),
        "agent check --connect: no broker is running": (
            lambda c: c.agent("--connect"), 1, ["nothing listens on 127.0.0.1:", "start the broker"],
        ),
        "submit: no broker is running": (lambda c: c.submit("--broker", nowhere()), 1, ["nothing listens on 127.0.0.1:", "start the broker"]),
        "results: no broker is running": (lambda c: ["results", "--site", "lab", "--broker", nowhere()], 1, ["nothing listens on 127.0.0.1:", "start the broker"]),
        "demo: no broker is running": (lambda c: ["demo", "--inputs", "1", "--broker", nowhere()], 1, ["nothing listens on 127.0.0.1:", "start the broker"]),
    },
    "The demo": {
        "demo: --inputs 0": (lambda c: ["demo", "--inputs", "0"], 2, ["--inputs: 0 is out of range; choose 1 to 1000"]),
        "demo: more inputs than samples": (lambda c: ["demo", "--inputs", "1001"], 2, ["--inputs: 1001 is out of range; choose 1 to 1000"]),
        "demo: the data file has no inputs": (
            lambda c: c.data("demo", weights=np.zeros(3)), 2, ["--data ", "x.npz: contains no array of inputs (found: weights)"],
        ),
        "demo: the data file does not exist": (lambda c: ["demo", "--data", str(c.folder / "no.npz")], 2, ["no.npz: does not exist", "check the path"]),
    },
    "Wide stages": {
        "branch set for a chain": (lambda c: c.pipeline(branch=0), 2, ["pipelines.p.branch: bundle fashion has no wide stage; remove branch"]),
        "fuse set for a chain": (lambda c: c.pipeline(fuse=True), 2, ["pipelines.p.fuse: bundle fashion has no wide stage; remove fuse"]),
        "origin.fuser set for a chain": (
            lambda c: c.pipeline(origin={"fuser": "hub", "source": {"kind": "mqtt"}}),
            2, ["pipelines.p.origin.fuser: bundle fashion has no wide stage; remove origin.fuser"],
        ),
        "no branch set for a wide stage": (
            wide(stages=[0, 1, 2]), 2, ["pipelines.p.stages: stage 0 of bundle tiny-wide has 2 branches", "set branch to the one that this board runs, from 0 to 1"],
        ),
        "a branch that the bundle does not have": (
            wide(stages=[0, 1, 2], branch=2), 2, ["pipelines.p.branch: stage 0 of bundle tiny-wide has no branch 2; choose one from 0 to 1"],
        ),
        "branch set on a board without a wide stage": (
            wide(MIXED, stages=[0, 3], branch=1), 2, ["pipelines.p.branch: none of this board's stages is wide", "tiny-mixed are 1, 2", "remove branch"],
        ),
        "a gap in a row of wide stages": (
            wide(stages=[0, 2], branch=1), 2, ["pipelines.p.stages: 0, 1, 2 of bundle tiny-wide belong on one board", "add 1"],
        ),
        "a wide stage that the bundle does not have": (wide(stages=[0, 1, 2, 3], branch=0), 2, ["has no stage 3; choose stages from 0 to 2"]),
        "a negative branch": (wide(stages=[0, 1, 2], branch=-1), 2, ["pipelines[0].branch: -1 is negative; count branches from 0"]),
        "branch set without stages": (wide(stages=[], fuse=True, branch=0), 2, ["pipelines[0].branch: there are no stages; give the wide stages"]),
        "the fuser is not a valid id": (
            wide(stages=[], origin={"fuser": "Hub", "source": {"kind": "mqtt"}}), 2, ["origin.fuser: 'Hub' is not an id"],
        ),
        "an unknown mode": (
            wide(stages=[], origin={"mode": "eagre", "source": {"kind": "mqtt"}}), 2, ["origin.mode: expected one of gated, eager", "write eager"],
        ),
        "a branch's segment is damaged or altered": (
            tampered("stage1.branch1.tflite", WIDE, stages=[0, 1, 2], branch=1), 2, ["stage1.branch1.tflite: its SHA-256 differs"],
        ),
        "a fusion head is damaged or altered": (
            tampered("stage2.fusion.tflite", WIDE, stages=[], fuse=True), 2, ["stage2.fusion.tflite: its SHA-256 differs", "copy"],
        ),
        "an origin's fusion head is damaged or altered": (
            tampered("stage0.fusion.tflite", WIDE, stages=[], origin={"source": {"kind": "mqtt"}}), 2, ["stage0.fusion.tflite: its"],
        ),
        "the self-test of a branch fails": (
            embedding_off, 1, ["self-test of bundle tiny-wide: branch 1 of stage 1 is off by", "install another version"],
        ),
        "demo: --fuser board with a chain": (
            lambda c: ["demo", "--fuser", "board", "--inputs", "1"], 2, ["--fuser board: bundle fashion has no wide stage", "leave it out"],
        ),
        "feature_difference for a chain": (
            lambda c: c.orchestrator(criterion="feature_difference", thresholds=[-0.5, -0.5]),
            2, ["pipeline p: feature_difference", "only wide stages have; choose another"],
        ),
    },
    "Dashboards and brokers": {
        "dashboard: --broker is not a websockets address": (
            lambda c: ["dashboard", "--broker", "http://hub:9001"], 2, ["--broker: expected ws://HOST:PORT or wss://HOST:PORT"],
        ),
        "dashboard: a password in the broker's address": (
            lambda c: ["dashboard", "--broker", "ws://ann:secret@hub:9001"], 2, ["--broker: the address of hub has more", "into the page"],
        ),
        "dashboard: --bind with another machine's address": (
            lambda c: ["dashboard", "--bind", "203.0.113.1"], 2, ["cannot serve the page on 203.0.113.1:8080", "--bind or --port"],
        ),
        "dashboard: --export names a file": (
            lambda c: ["dashboard", "--export", c.file("page", "")], 2, ["cannot be written", "folder that can be written"],
        ),
        "top: no broker is running": (lambda c: ["top", "--site", "lab", "--broker", nowhere()], 1, ["nothing listens on", "start the broker"]),
        "results: the CA certificate does not exist": (
            lambda c: ["results", "--site", "lab", "--broker", "mqtts://hub", "--ca-file", str(c.folder / "ca.crt")],
            2, ["broker.tls.ca_file", "no such file", "check the path"],
        ),
        "broker run: websockets with the embedded broker": (
            lambda c: ["broker", "run", "--engine", "embedded", "--websockets", "0"], 2, ["the embedded broker does not support", "websockets; run: apt install mosquitto"],
        ),
    },
    "Orchestrator, tuning, simulation": {
        "a goal with an accuracy_drop of 200%": (
            lambda c: c.orchestrator(goal={"accuracy_drop": "200%"}), 2, ["goal.accuracy_drop: expected a share from 0% to 100%", "write one, such as"],
        ),
        "too few thresholds in orchestrator.yaml": (
            lambda c: c.orchestrator(thresholds=[0.9]), 2, ["pipeline p: thresholds: 1 given for 3 exits; give 2, one per exit but the last"],
        ),
        "a threshold in orchestrator.yaml outside the criterion's range": (
            lambda c: c.orchestrator(thresholds=[0.9, -1]),
            2, ["pipeline p: the threshold of exit 1 is -1", "scores of max_softmax are between 0 and 1", "'never'"],
        ),
        "set-thresholds: thresholds given in percent": (
            lambda c: ["orchestrator", "set-thresholds", *c.orchestrator()[2:], "--pipeline", "p", "90", "80"],
            2, ["pipeline p: the threshold of exit 0 is 90", "give 0.9 for 90%"],
        ),
        "orchestrator status: the orchestrator has never run": (
            lambda c: ["orchestrator", "status", *c.orchestrator()[2:]], 1, ["o.db: there is no store yet", "distree orchestrator run"],
        ),
        "set-thresholds: unknown pipeline": (
            lambda c: ["orchestrator", "set-thresholds", *c.orchestrator()[2:], "--pipeline", "q", "0.9", "0.8"],
            2, ["--pipeline q: not in the configuration; name one of p"],
        ),
        "tune: the file is not a recording": (
            lambda c: ["tune", "--replay", c.file("a.npz", "no archive"), "--accuracy-drop", "1%"],
            2, ["a.npz: not a readable .npz archive", "record one with distree zoo evaluate --audits"],
        ),
        "simulate: unknown key": (
            lambda c: ["simulate", "-c", str(ROOT / "examples" / "fleet.yaml"), "--set", "boards.hub.cuont=3"],
            2, ["boards[1].cuont: unknown key", "rename it to count"],
        ),
        "zoo evaluate: the data does not exist": (
            lambda c: ["zoo", "evaluate", "fashion", "--data", str(c.folder / "none")], 2, ["does not exist; install", "dataset-fashion-mnist"],
        ),
    },
}  # fmt: skip


def distree(arguments, program=("-m", "distree")):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)


def told(done):
    """Return a process's lines on standard error, without those of the interpreter and of the broker."""
    return [line for line in done.stderr.splitlines() if not NOT_OURS.match(line)]


def shown(line, folder):
    """Return a line as the page has it: folders, ports and versions are others each time."""
    line = line.replace(f"{folder}/copy", "/path/to/bundle").replace(f"{folder}/", "/path/to/")
    line = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1883", line.replace(f"{ROOT}/", "/path/to/distree/"))
    return re.sub(r"((?:ai-edge-litert|tflite-runtime) )\d+\.\d+\.\d+", r"\g<1>2.1.6", line)


def row(name, status, line):
    """Return a row of the page."""
    return f"| {name} | {status} | `{line.replace('|', chr(92) + '|')}` |"


def provoke(name, arguments):
    """Return the page's row of what is printed; ValueError if it is not one line."""
    with tempfile.TemporaryDirectory() as folder:
        done = distree(arguments(Case(Path(folder))))
        lines = told(done)
        if len(lines) != 1:
            raise ValueError(f"{name}: {done.stderr}")
        return row(name, done.returncode, shown(lines[0], folder))


def page():
    """Provoke everything, and return the page."""
    lines = [
        "# Error messages",
        "",
        "<!-- Written by `python tests/integration/provoked.py`: changes here are lost. -->",
        "",
        "The tests provoke each of these errors; the page shows what is printed on standard error: what is wrong and where,",
        "then, after a semicolon, how to fix it. [Exit statuses](errors.md) are explained on their own page, and so is what",
        "[`distree doctor`](../howto/diagnose.md) checks.",
    ]
    for title, errors in SECTIONS.items():
        lines += ["", f"## {title}", "", "| mistake | status | message |", "| --- | --- | --- |"]
        lines += [provoke(name, arguments) for name, (arguments, *_) in errors.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
