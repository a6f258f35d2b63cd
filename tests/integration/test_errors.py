"""Everything that can be set up wrongly is told in one line: what, where, and how to mend it; never a traceback."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from broker_config.managed import ManagedBroker, find_mosquitto, free_port
from distree.bundle import find_bundle

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = re.compile(r"INFO: Created TensorFlow Lite|\d+: |W0000|I0000|WARNING: All log messages before absl")
FASHION = find_bundle("fashion")
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
        config["state_dir"] = str(self.folder / "state")
        path = self.file("agent.yaml", yaml.safe_dump({**config, **changes}, sort_keys=False))
        return ["agent", verb, "-c", path, *options]

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

    def submit(self, *options, content=bytes(784), name="x.raw"):
        (self.folder / name).write_bytes(content)
        where = ["--site", "lab", "--pipeline", "p", "--origin", "cam"]
        return ["submit", *where, *options, str(self.folder / name)]


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


def broken_npy(case):
    return case.submit(name="x.npy", content=b"PK\x03\x04 neither .npy nor .npz")


def single_array(case):
    np.save(case.folder / "x.npy", np.zeros((2, 28, 28, 1), np.uint8))
    return case.replay(case.folder / "x.npy")


def no_archive(case):
    return case.replay(case.file("inputs.npz", "not an archive"))


def unlabelled(case):
    np.savez(case.folder / "x.npz", input=np.zeros((2, 28, 28, 1), np.uint8))
    return ["demo", "--data", str(case.folder / "x.npz"), "--inputs", "1"]


def nowhere():
    return f"127.0.0.1:{free_port()}"


ERRORS = {
    # Configuration: exit status 2.
    "no such file": (lambda c: ["agent", "check", "-c", str(c.folder / "none.yaml")], 2, ["none.yaml: cannot be read: No such"]),
    "not YAML": (lambda c: c.text("site: lab\n  device: [cam"), 2, ["agent.yaml:2: not YAML: "]),
    "unknown key": (unknown_key, 2, ["agent.yaml:6: pipelines[0].stagse: unknown key (received a list); nearest: stages"]),
    "a password in the file": (
        lambda c: c.agent(broker={"password": "hunter2"}), 2, ["broker.password: unknown key", "nearest: password_file"],
    ),
    "missing key": (lambda c: c.text("device: cam\npipelines: []\n"), 2, ["agent.yaml: missing key site"]),
    "wrong type": (lambda c: c.agent(telemetry_s="fast"), 2, [": telemetry_s: expected float, received 'fast'"]),
    "quoted number": (lambda c: c.agent(broker={"port": "1883"}), 2, ["broker.port: expected int", "remove the quotes"]),
    "no id": (lambda c: c.agent(device="Cam 1"), 2, ["device: 'Cam 1' is not an id; use 1 to 32 of a-z, 0-9 and '-'"]),
    "not positive": (lambda c: c.agent(num_threads=0), 2, ["num_threads: must be above 0"]),
    "nothing to do": (lambda c: c.pipeline(stages=[]), 2, ["pipelines[0].stages: nothing to do"]),
    "a stage twice": (lambda c: c.pipeline(stages=[0, 0]), 2, ["stages: must be different numbers from 0"]),
    "unknown source": (
        lambda c: c.pipeline(origin={"source": {"kind": "camera"}}), 2, ["source.kind: expected one of replay, directory"],
    ),
    "two pipelines of one name": (
        lambda c: c.agent(pipelines=[{"name": "p", "bundle": "fashion", "stages": [k]} for k in (0, 1)]),
        2, ["pipelines: at least one is needed, each with its own name"],
    ),
    "unknown codec": (lambda c: c.agent(codec="zip"), 2, ["codec: expected one of raw, zlib, received 'zip'"]),
    "unknown criterion": (lambda c: c.orchestrator(criterion="max_sotfmax"), 2, ["max_sotfmax", "max_softmax"]),
    "unknown criterion on the command line": (
        lambda c: ["zoo", "evaluate", "fashion", "--criterion", "vibes", "--thresholds", "1,1", "--limit", "1"],
        2, ["vibes", "max_softmax"],
    ),
    "missing password file": (
        lambda c: c.agent(verb="run", broker={"username": "ann", "password_file": str(c.folder / "none")}),
        2, ["broker.password_file ", "none: no such file"],
    ),
    "wrong HOST:PORT": (lambda c: c.submit("--broker", "localhost"), 2, ["--broker: expected HOST:PORT, received 'localhost'"]),
    "a port that cannot be": (lambda c: c.submit("--broker", "h:70000"), 2, ["expected HOST:PORT, received 'h:70000'"]),
    "a site that is no id": (lambda c: ["results", "--site", "a/#"], 2, ["--site: 'a/#' is not an id"]),
    "nothing to submit": (lambda c: [*c.submit(), str(c.folder / "none.png")], 2, ["none.png: cannot be read: No such file"]),
    "too large to submit": (lambda c: c.submit(content=bytes(1 << 20)), 2, ["x.raw: 1048576 bytes are too many"]),
    "no array to submit": (broken_npy, 2, ["x.npy: cannot be read as an .npy array"]),
    # Sources: exit status 2.
    "replay file missing": (lambda c: c.replay(c.folder / "none.npz"), 2, ["none.npz: cannot be replayed: No such file"]),
    "replay of another shape": (
        lambda c: c.replayed(input=np.zeros((5, 8, 8, 1), np.uint8)), 2,
        ["inputs.npz: input is uint8 (5, 8, 8, 1), the bundle takes uint8 (n, 28, 28, 1)"],
    ),
    "replay of another dtype": (lambda c: c.replayed(input=np.zeros((5, 28, 28, 1))), 2, ["input is float64"]),
    "replay without inputs": (lambda c: c.replayed(x=np.zeros(3)), 2, ["inputs.npz: has no array 'input' (it has x)"]),
    "replay of one number": (lambda c: c.replayed(input=np.uint8(3)), 2, ["inputs.npz: "]),
    "replay of a single array": (single_array, 2, ["x.npy: ", "savez"]),
    "replay of no archive": (no_archive, 2, ["inputs.npz: cannot be replayed", ".npz file with an array 'input' is needed"]),
    # Bundles: exit status 2.
    "missing bundle": (lambda c: c.pipeline(bundle="fasion"), 2, ["bundle 'fasion' not found", "model zoo (cifar10-wide, fashion"]),
    "missing segment": (missing_segment, 2, ["stage0.tflite: No such file or directory; copy the whole bundle"]),
    "tampered segment": (tampered("stage0.tflite"), 2, ["stage0.tflite: its SHA-256 is not the manifest's", "copy"]),
    "tampered golden vectors": (tampered("golden.npz"), 2, ["golden.npz: its SHA-256 is not the manifest's", "copy"]),
    "no segment at all": (no_segment_at_all, 2, ["stage0.tflite: the interpreter refuses it"]),
    "too few thresholds": (
        manifest(lambda m: m["exits"].update(thresholds=[0.5])), 2, ["exits.thresholds: 1 given, one per exit but the last"],
    ),
    "unknown key in a manifest": (manifest(lambda m: m.update(licence="x")), 2, ["bundle.yaml:", "licence: unknown key", "license"]),
    # What did not work out: exit status 1.
    "golden vectors off": (golden_off, 1, ["self-test of bundle fashion: stage 0 is off by 30 quantisation steps, ", "install"]),
    "submit to no broker": (lambda c: c.submit("--broker", nowhere()), 1, ["nothing listens on 127.0.0.1:", "start the broker"]),
    "results of no broker": (lambda c: ["results", "--site", "lab", "--broker", nowhere()], 1, ["nothing listens on 127.0.0.1:"]),
    "demo on no broker": (lambda c: ["demo", "--inputs", "1", "--broker", nowhere()], 1, ["nothing listens on 127.0.0.1:"]),
    # The demo's own.
    "demo of no inputs": (lambda c: ["demo", "--inputs", "0"], 2, ["--inputs: expected 1 to 1000", "received 0"]),
    "demo of too many inputs": (lambda c: ["demo", "--inputs", "1001"], 2, ["--inputs: expected 1 to 1000", "received 1001"]),
    "demo without labels": (unlabelled, 2, ["x.npz: ", "'input' and 'label' is needed"]),
    "demo without samples": (lambda c: ["demo", "--data", str(c.folder / "no.npz")], 2, ["no samples for bundle fashion", "--data"]),
    "a stage that the bundle does not have": (
        lambda c: c.pipeline(stages=[7]), 2, ["stages: bundle fashion has 0 to 2, not 7"],
    ),
    "agent check of no broker": (
        lambda c: c.agent("--connect"), 1, ["nothing listens on 127.0.0.1:", "start the broker"],
    ),
    # Wide stages.
    "a branch of a chain": (lambda c: c.pipeline(branch=0), 2, ["pipelines.p.branch: bundle fashion has no wide stage; remove branch"]),
    "fusing in a chain": (lambda c: c.pipeline(fuse=True), 2, ["pipelines.p.fuse: bundle fashion has no wide stage; remove fuse"]),
    "a fuser in a chain": (
        lambda c: c.pipeline(origin={"fuser": "hub", "source": {"kind": "mqtt"}}),
        2, ["pipelines.p.origin.fuser: bundle fashion has no wide stage; remove origin.fuser"],
    ),
    "a wide stage without a branch": (
        wide(stages=[0, 1, 2]), 2, ["pipelines.p.stages: stage 0 of bundle tiny-wide has 2 branches", "by branch: 0 to 1"],
    ),
    "a branch that the bundle does not have": (
        wide(stages=[0, 1, 2], branch=2), 2, ["pipelines.p.branch: stage 0 of bundle tiny-wide has 0 to 1, not 2"],
    ),
    "a branch of plain stages alone": (
        wide(MIXED, stages=[0, 3], branch=1), 2, ["pipelines.p.branch: none of this board's stages is wide", "tiny-mixed are 1, 2"],
    ),
    "a part of wide stages in a row": (
        wide(stages=[0, 2], branch=1), 2, ["pipelines.p.stages: 0, 1, 2 of bundle tiny-wide belong on one board", "add 1"],
    ),
    "a wide stage that the bundle does not have": (wide(stages=[0, 1, 2, 3], branch=0), 2, ["has 0 to 2, not 3"]),
    "a negative branch": (wide(stages=[0, 1, 2], branch=-1), 2, ["pipelines[0].branch: must be a number from 0, received -1"]),
    "a branch without stages": (wide(stages=[], fuse=True, branch=0), 2, ["pipelines[0].branch: needs stages too"]),
    "a fuser that is no id": (
        wide(stages=[], origin={"fuser": "Hub", "source": {"kind": "mqtt"}}), 2, ["origin.fuser: 'Hub' is not an id"],
    ),
    "a mode that there is not": (
        wide(stages=[], origin={"mode": "eagre", "source": {"kind": "mqtt"}}), 2, ["origin.mode: expected one of gated, eager"],
    ),
    "tampered segment of a branch": (
        tampered("stage1.branch1.tflite", WIDE, stages=[0, 1, 2], branch=1), 2, ["stage1.branch1.tflite: its SHA-256 is not"],
    ),
    "tampered fusion head": (
        tampered("stage2.fusion.tflite", WIDE, stages=[], fuse=True), 2, ["stage2.fusion.tflite: its SHA-256 is not", "copy"],
    ),
    "tampered fusion head of an origin": (
        tampered("stage0.fusion.tflite", WIDE, stages=[], origin={"source": {"kind": "mqtt"}}), 2, ["stage0.fusion.tflite: its"],
    ),
    "golden embeddings off": (
        embedding_off, 1, ["self-test of bundle tiny-wide: branch 1 of stage 1 is off by", "install another version"],
    ),
    "a board that fuses in a demo of a chain": (
        lambda c: ["demo", "--fuser", "board", "--inputs", "1"], 2, ["--fuser board: bundle fashion has no wide stage"],
    ),
    "a criterion of embeddings for a chain": (
        lambda c: c.orchestrator(criterion="feature_difference", thresholds=[-0.5, -0.5]),
        2, ["pipeline p: feature_difference", "only wide stages have"],
    ),
    "a time-out of nothing": (lambda c: c.agent(broker={"connect_timeout_s": 0}), 2, ["broker.connect_timeout_s"]),
    "a port beyond all": (lambda c: c.agent(broker={"port": 99999}), 2, ["broker.port"]),
    "a deadline beyond what messages carry": (
        lambda c: c.pipeline(origin={"deadline_ms": 4e6, "source": {"kind": "mqtt"}}), 2, ["deadline_ms"],
    ),
    "an unknown criterion in a manifest": (
        manifest(lambda m: m["exits"].update(criterion="vibes")), 2, ["bundle.yaml", "vibes"],
    ),
    "a broker's port that cannot be": (lambda c: ["broker", "run", "--port", "99999"], 2, ["--port"]),
}  # fmt: skip


def distree(arguments, program=("-m", "distree")):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)


def check_told(done, status, expected, prefix="distree"):
    ours = [line for line in done.stderr.splitlines() if not NOT_OURS.match(line)]
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert len(ours) == 1, done.stderr
    assert ours[0].startswith(prefix)
    for part in expected:
        assert part in ours[0]
    assert done.returncode == status, done.stderr


@pytest.mark.parametrize("name", ERRORS)
def test_one_line_says_what_where_and_how_to_mend_it(name, tmp_path):
    arguments, status, expected = ERRORS[name]
    check_told(distree(arguments(Case(tmp_path))), status, expected)


def test_a_board_does_not_care_for_the_segments_of_other_boards(tmp_path):
    case = Case(tmp_path)
    arguments = tampered("stage1.branch1.tflite", WIDE, stages=[0, 1, 2], branch=0)(case)
    done = distree(arguments)
    assert done.returncode == 0, done.stderr
    assert "ok: p: bundle tiny-wide " in done.stdout


@pytest.mark.parametrize("roles", [{"fuse": True}, {"origin": {"mode": "eager", "source": {"kind": "mqtt"}}}])
def test_a_board_that_only_fuses_is_checked_with_an_interpreter(tmp_path, roles):
    done = distree(wide(stages=[], **roles)(Case(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert "ok: p: bundle tiny-wide " in done.stdout
    assert "no interpreter needed" not in done.stdout


def test_the_line_about_an_unknown_key_is_complete(tmp_path):
    done = distree(unknown_key(Case(tmp_path)))
    line = f"{tmp_path}/agent.yaml:6: pipelines[0].stagse: unknown key (received a list); nearest: stages"
    assert done.stderr == f"distree: {line}\n"


def test_each_mistake_of_a_file_has_its_line(tmp_path):
    done = distree(Case(tmp_path).text("site: lab\ndevise: cam\npipelines: 3\ntelemetry_s: soon\n"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 4
    for number in (2, 3, 4):
        assert f"agent.yaml:{number}: " in done.stderr
    assert "devise: unknown key (received 'cam'); nearest: device" in done.stderr
    assert "missing key device" in done.stderr


# ---------------------------------------------------------------- brokers


def test_a_port_in_use_is_told_by_broker_run():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = distree(["broker", "run", "--port", str(port)])
    check_told(done, 2, [f"port {port} on 127.0.0.1 cannot be used", "choose another with --port"], prefix="")


@contextlib.contextmanager
def running(arguments):
    """`distree agent run`, and its lines on stderr as they come."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "distree", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)
    # A process that says nothing must not hold the test for ever.
    end = threading.Timer(60, process.kill)
    end.start()
    try:
        yield process
    finally:
        end.cancel()
        process.kill()
        process.communicate()


def line_of(process, part):
    for line in process.stderr:
        if part in line:
            return line
    raise AssertionError(f"{part!r} was never said")


def test_an_agent_without_broker_says_so_once_keeps_trying_and_can_be_stopped(tmp_path):
    case = Case(tmp_path)
    port = free_port()
    arguments = case.agent(verb="run", broker={"port": port}, self_test=False)
    with running(arguments) as process:
        first = line_of(process, "WARNING")
        assert f"nothing listens on 127.0.0.1:{port}: start the broker" in first
        with ManagedBroker(port):
            # Everything said in between would come before this.
            following = [process.stderr.readline()]
            while "is ready" not in following[-1]:
                assert following[-1], "the agent ended"
                following.append(process.stderr.readline())
            ours = [line for line in following if not NOT_OURS.match(line)]
            assert len(ours) == 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_an_agent_that_never_found_its_broker_ends_on_sigterm(tmp_path):
    with running(Case(tmp_path).agent(verb="run", self_test=False)) as process:
        line_of(process, "nothing listens on")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()


@pytest.fixture
def guarded(tmp_path):
    """A broker that knows ann, and what to give for her password file."""
    tool = shutil.which("mosquitto_passwd")
    if tool is None or find_mosquitto() is None:
        pytest.skip("mosquitto or mosquitto_passwd is not installed: no broker with passwords")
    users, good, bad = tmp_path / "users", tmp_path / "good", tmp_path / "bad"
    subprocess.run([tool, "-b", "-c", str(users), "ann", "secret"], check=True)
    good.write_text("secret\n")
    bad.write_text("wrong\n")
    with ManagedBroker(engine="mosquitto", password_file=users) as broker:
        yield broker


def test_a_wrong_password_is_told_with_user_and_file(tmp_path, guarded):
    login = ["--username", "ann", "--password-file"]
    where = ["--broker", f"127.0.0.1:{guarded.port}"]
    done = distree(Case(tmp_path).submit(*where, *login, str(tmp_path / "bad")))
    check_told(done, 1, ["refuses user 'ann'", "correct broker.username or the first line of broker.password_file"])
    assert "wrong" not in done.stderr
    done = distree(Case(tmp_path).submit(*where))
    check_told(done, 1, ["wants a login", "set broker.username and broker.password_file"])


def test_an_agent_with_a_wrong_password_says_so_and_goes_on_trying(tmp_path, guarded):
    broker = {"port": guarded.port, "username": "ann", "password_file": str(tmp_path / "bad")}
    with running(Case(tmp_path).agent(verb="run", broker=broker, self_test=False)) as process:
        assert "refuses user 'ann'" in line_of(process, "WARNING")
        (tmp_path / "bad").write_text("secret\n")  # mended while it runs
        line_of(process, "is ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_agent_check_logs_in(tmp_path, guarded):
    broker = {"port": guarded.port, "username": "ann", "password_file": str(tmp_path / "good")}
    done = distree(Case(tmp_path).agent("--connect", broker=broker))
    assert done.returncode == 0, done.stderr
    assert f"ok: broker 127.0.0.1:{guarded.port}" in done.stdout
    broker["password_file"] = str(tmp_path / "bad")
    check_told(distree(Case(tmp_path).agent("--connect", broker=broker)), 1, ["refuses user 'ann'"])


# ---------------------------------------------------------------- interpreters

WITHOUT = "import sys; {blocked}; from distree.cli import main; sys.exit(main(sys.argv[1:]))"
BLOCK = "sys.modules.update({'ai_edge_litert': None, 'tflite_runtime': None})"


def test_no_interpreter_at_all_is_told_with_the_package_to_install(tmp_path):
    # As where it was never installed: neither importable nor known to pip.
    hidden = (
        f"{BLOCK}; import importlib.metadata as m; real = m.version; "
        "m.version = lambda name: real('no-such-package' if name in ('ai-edge-litert', 'tflite-runtime') else name)"
    )
    done = distree(Case(tmp_path).agent(), ("-c", WITHOUT.format(blocked=hidden)))
    check_told(done, 1, ["no TFLite runtime can be loaded", "pip install 'ai-edge-litert", "armv7l"])


def test_tflite_runtime_beside_numpy_2_is_told_before_it_crashes(tmp_path):
    package = tmp_path / "site" / "tflite_runtime-2.14.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: tflite-runtime\nVersion: 2.14.0\n")
    fake = (
        f"sys.path.append({str(package.parent)!r}); sys.modules['ai_edge_litert'] = None; "
        "import numpy; numpy.__version__ = '2.1.3'"
    )
    done = distree(Case(tmp_path).agent(), ("-c", WITHOUT.format(blocked=fake)))
    check_told(
        done, 1, ["tflite-runtime 2.14.0 needs numpy below 2, but numpy 2.1.3 is installed; run: pip install 'numpy<2'"]
    )


def test_an_interpreter_that_crashes_in_the_self_test_leaves_the_agent_alive_to_tell(tmp_path):
    crash = (
        "import os, signal, device_agent.selftest as selftest; "
        "selftest.TFLiteRuntime = lambda *_, **__: os.kill(os.getpid(), signal.SIGSEGV)"
    )
    done = distree(Case(tmp_path).agent(), ("-c", WITHOUT.format(blocked=crash)))
    check_told(done, 1, ["self-test of bundle fashion: the interpreter crashed (SIGSEGV)", "install another version"])
