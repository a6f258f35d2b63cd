"""Everything that can be set up wrongly is one line: what is wrong and where, then how to fix it; never a traceback."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest
from forked import run
from provoked import NOT_OURS, PAGE, ROOT, SECTIONS, WIDE, Case, distree, row, shown, tampered, told, unknown_key, wide

from broker_config.managed import ManagedBroker, find_mosquitto, free_port

ERRORS = {name: error for section in SECTIONS.values() for name, error in section.items()}


def check_told(done, status, expected, prefix="distree"):
    ours = told(done)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert len(ours) == 1, done.stderr
    assert ours[0].startswith(prefix)
    assert "; " in ours[0], "no remedy"
    for part in expected:
        assert part in ours[0]
    assert done.returncode == status, done.stderr


@pytest.mark.parametrize("name", ERRORS)
def test_one_line_says_what_where_and_how_to_fix_it(name, tmp_path):
    arguments, status, expected = ERRORS[name]
    done = run(arguments(Case(tmp_path)))
    check_told(done, status, expected)
    printed = row(name, status, shown(told(done)[0], tmp_path))
    assert printed in PAGE.read_text(encoding="utf-8").splitlines(), "run: make reference"


def test_the_page_of_errors_has_nothing_else():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!mistake \||---)", line)]
    assert len(rows) == len(ERRORS) == sum(map(len, SECTIONS.values()))


def test_a_board_does_not_care_for_the_segments_of_other_boards(tmp_path):
    case = Case(tmp_path)
    arguments = tampered("stage1.branch1.tflite", WIDE, stages=[0, 1, 2], branch=0)(case)
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert "ok: p: bundle tiny-wide " in done.stdout


@pytest.mark.parametrize("roles", [{"fuse": True}, {"origin": {"mode": "eager", "source": {"kind": "mqtt"}}}])
def test_a_board_that_only_fuses_is_checked_with_an_interpreter(tmp_path, roles):
    done = run(wide(stages=[], **roles)(Case(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert "ok: p: bundle tiny-wide " in done.stdout
    assert "no interpreter needed" not in done.stdout


def test_the_line_about_an_unknown_key_is_complete(tmp_path):
    done = run(unknown_key(Case(tmp_path)))
    line = f"{tmp_path}/agent.yaml:6: pipelines[0].stagse: unknown key (received a list); rename it to stages, or remove it"
    assert done.stderr == f"distree: {line}\n"


def test_each_mistake_of_a_file_has_its_line(tmp_path):
    done = run(Case(tmp_path).text("site: lab\ndevise: cam\npipelines: 3\ntelemetry_interval_s: soon\n"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 4
    for number in (2, 3, 4):
        assert f"agent.yaml:{number}: " in done.stderr
    assert "devise: unknown key (received 'cam'); rename it to device, or remove it" in done.stderr
    assert "missing key device" in done.stderr


# ---------------------------------------------------------------- brokers


@pytest.mark.any_broker
def test_a_port_in_use_is_told_by_broker_run():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run(["broker", "run", "--port", str(port)])
    check_told(done, 2, [f"port {port} on 127.0.0.1 cannot be used", "choose another port with --port"], prefix="")


@contextlib.contextmanager
def running(arguments):
    """`distree agent run`, and its lines on stderr as they come."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "distree", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)
    # A process that says nothing must not block the test forever.
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


@pytest.mark.any_broker
def test_an_agent_without_broker_says_so_once_keeps_trying_and_can_be_stopped(tmp_path):
    case = Case(tmp_path)
    port = free_port()
    arguments = case.agent(verb="run", broker={"port": port}, self_test=False)
    with running(arguments) as process:
        first = line_of(process, "WARNING")
        assert f"nothing listens on 127.0.0.1:{port}; start the broker" in first
        with ManagedBroker(port):
            # Everything said in between would come before this.
            following = [process.stderr.readline()]
            while "is ready" not in following[-1]:
                assert following[-1], "the agent ended"
                following.append(process.stderr.readline())
            ours = [line for line in following if not NOT_OURS.match(line)]
            # What a broker of MQTT 3.1.1 lacks is said once, too.
            assert len([line for line in ours if "speaks MQTT 3.1.1 only" not in line]) == 1
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
    done = run(Case(tmp_path).submit(*where, *login, str(tmp_path / "bad")))
    check_told(done, 1, ["refuses user 'ann'", "correct broker.username or the first line of broker.password_file"])
    assert "wrong" not in done.stderr
    done = run(Case(tmp_path).submit(*where))
    check_told(done, 1, ["requires a login", "set broker.username and broker.password_file"])


def test_an_agent_with_a_wrong_password_says_so_and_goes_on_trying(tmp_path, guarded):
    broker = {"port": guarded.port, "username": "ann", "password_file": str(tmp_path / "bad")}
    with running(Case(tmp_path).agent(verb="run", broker=broker, self_test=False)) as process:
        assert "refuses user 'ann'" in line_of(process, "WARNING")
        (tmp_path / "bad").write_text("secret\n")  # corrected while it runs
        line_of(process, "is ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_agent_check_logs_in(tmp_path, guarded):
    broker = {"port": guarded.port, "username": "ann", "password_file": str(tmp_path / "good")}
    done = run(Case(tmp_path).agent("--connect", broker=broker))
    assert done.returncode == 0, done.stderr
    assert f"ok: broker 127.0.0.1:{guarded.port}" in done.stdout
    broker["password_file"] = str(tmp_path / "bad")
    check_told(run(Case(tmp_path).agent("--connect", broker=broker)), 1, ["refuses user 'ann'"])


# ---------------------------------------------------------------- interpreters

WITHOUT = "import sys; {blocked}; from distree.apps.cli import main; sys.exit(main(sys.argv[1:]))"
BLOCK = "sys.modules.update({'ai_edge_litert': None, 'tflite_runtime': None})"


def test_no_interpreter_at_all_is_told_with_the_package_to_install(tmp_path):
    # As where it was never installed: neither importable nor known to pip.
    hidden = (
        f"{BLOCK}; import importlib.metadata as m; real = m.version; "
        "m.version = lambda name: real('no-such-package' if name in ('ai-edge-litert', 'tflite-runtime') else name)"
    )
    done = distree(Case(tmp_path).agent(), ("-c", WITHOUT.format(blocked=hidden)))
    check_told(done, 1, ["no TFLite runtime can be loaded", "pip install 'ai-edge-litert", "armv7l"])


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("numpy", "pip install numpy, or on armv7l: apt install python3-numpy"),
        ("yaml", "pip install pyyaml, or on armv7l: apt install python3-yaml"),
        ("msgpack", "pip install msgpack"),
    ],
)
def test_a_package_that_is_not_there_is_told_with_what_to_install(tmp_path, module, remedy):
    for arguments in (Case(tmp_path).agent(), ["doctor", *Case(tmp_path).agent()[2:]]):
        done = distree(arguments, ("-c", WITHOUT.format(blocked=f"sys.modules[{module!r}] = None")))
        check_told(done, 1, [module, remedy])


def test_agent_check_leaves_the_spool_of_a_running_agent_alone(tmp_path):
    case = Case(tmp_path)
    (tmp_path / "state").mkdir()
    journal = tmp_path / "state" / "p.spool"
    journal.write_bytes(b"\x92\x00\xa1r")
    before = journal.stat()
    pipeline = {"name": "p", "bundle": "fashion", "stages": [0], "origin": {"spool": True, "source": {"kind": "mqtt"}}}
    done = run(case.agent(pipelines=[pipeline]))
    assert done.returncode == 0, done.stderr
    assert (journal.stat().st_ino, journal.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list((tmp_path / "state").iterdir()) == [journal]


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
        "selftest.make_runtime = lambda *_, **__: os.kill(os.getpid(), signal.SIGSEGV)"
    )
    done = distree(Case(tmp_path).agent(), ("-c", WITHOUT.format(blocked=crash)))
    check_told(done, 1, ["self-test of bundle fashion: the interpreter crashed (SIGSEGV)", "install another version"])
