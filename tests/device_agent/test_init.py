"""`distree init`: what it writes passes the check, and nothing else is ever written."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from device_agent.config import load_agent_config
from device_agent.init import _scalar, device_name
from distree.broker_settings import TlsSettings
from distree.bundle.loading import bundle_of
from distree.topics import is_id

ROOT = Path(__file__).resolve().parents[2]
WIDE = ROOT / "tests" / "data" / "tiny-wide"
STAGE = ["--site", "lab", "--bundle", "fashion", "--stages", "0"]


def init(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run(["init", *arguments], cwd=folder)


def test_a_stage_with_all_defaults(tmp_path: Path) -> None:
    done = init(tmp_path, *STAGE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("agent.yaml is written and checked. Next: distree doctor -c agent.yaml\n")
    config = load_agent_config(tmp_path / "agent.yaml")
    assert (config.site, config.broker.host, config.broker.port) == ("lab", "127.0.0.1", 1883)
    assert is_id(config.device)
    (pipeline,) = config.pipelines
    assert (pipeline.name, pipeline.bundle, pipeline.stages, pipeline.origin) == (
        "fashion",
        bundle_of(tmp_path, "fashion"),
        (0,),
        None,
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "agent.yaml"]


@pytest.mark.parametrize("source", ["directory", "mqtt", "python"])
def test_an_origin_behind_tls(tmp_path: Path, source: str) -> None:
    (tmp_path / "etc").mkdir()
    path = ["--path", "etc/inbox"] if source == "directory" else []
    done = init(
        tmp_path, "-o", "etc/board.yaml", "--site", "no", "--device", "12", "--bundle", "fashion", "--source", source, *path,
        "--broker", "mqtts://broker.example", "--ca-file", "etc/ca.crt", "--username", "a: b", "--password-file", "/run/secret",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = load_agent_config(tmp_path / "etc" / "board.yaml")
    assert (config.site, config.device) == ("no", "12")
    assert config.broker.tls == TlsSettings(ca_file=tmp_path / "etc" / "ca.crt")
    assert (config.broker.port, config.broker.username, config.broker.password_file) == (
        8883,
        "a: b",
        Path("/run/secret"),
    )
    origin = config.pipelines[0].origin
    assert origin is not None
    assert origin.source.kind == source
    if source == "directory":
        assert origin.source.path == tmp_path / "etc" / "inbox"


@pytest.mark.parametrize(
    ("source", "bundle", "path", "line"),
    [
        ("camera", "fashion", "/dev/video0", "input: /dev/video0"),
        ("camera", "fashion", "rtsp://ann:pw@cam/1?x=#", 'input: "rtsp://ann:pw@cam/1?x=#"'),
        ("microphone", "spoken-digits", "plughw:1,0", 'device: "plughw:1,0"'),
        ("microphone", "spoken-digits", None, "kind: microphone"),
        ("stream", "wrist-exercises", "/dev/ttyUSB0", "path: /dev/ttyUSB0"),
    ],
)
def test_cameras_microphones_and_streams(tmp_path: Path, source: str, bundle: str, path: str | None, line: str) -> None:
    given = ["--path", path] if path else []
    done = init(tmp_path, "--site", "lab", "--bundle", bundle, "--stages", "0", "--source", source, *given)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "agent.yaml").read_text().splitlines()[-1].strip() == line
    origin = load_agent_config(tmp_path / "agent.yaml").pipelines[0].origin
    assert origin is not None
    assert origin.source.kind == source


def test_in_a_terminal_a_camera_is_asked_for(tmp_path: Path) -> None:
    shown, status = converse(tmp_path, ["camera", ""], *STAGE, "--device", "a", "--broker", "h:1")
    assert status == 0, shown
    assert "camera's device, URL or video file [/dev/video0]: " in shown
    assert "input: /dev/video0" in (tmp_path / "agent.yaml").read_text()


@pytest.mark.parametrize(
    ("broker", "host", "port"),
    [("[::1]:1883", "::1", 1883), ("mqtt://[fe80::1%25eth0]/", "fe80::1%eth0", 1883), (" hub:1884 ", "hub", 1884)],
)
def test_the_broker_is_written_as_its_host_and_port(tmp_path: Path, broker: str, host: str, port: int) -> None:
    done = init(tmp_path, *STAGE, "--broker", broker)
    assert done.returncode == 0, done.stderr
    settings = load_agent_config(tmp_path / "agent.yaml").broker
    assert (settings.host, settings.port) == (host, port)


def test_a_branch_of_a_bundle_in_a_folder(tmp_path: Path) -> None:
    done = init(
        tmp_path, "--site", "lab", "--bundle", os.path.relpath(WIDE, tmp_path), "--stages", "0,1,2", "--branch", "1"
    )
    assert done.returncode == 0, done.stderr
    (pipeline,) = load_agent_config(tmp_path / "agent.yaml").pipelines
    assert (Path(pipeline.bundle), pipeline.branch, pipeline.stages) == (WIDE, 1, (0, 1, 2))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            [],
            "init: missing --site, --bundle, --stages or --source; give the options, or run it in a terminal to be asked",
        ),
        ([*STAGE[:4], "--source", "directory"], "init: missing --path"),
        (
            [*STAGE, "--path", "x"],
            "--path: belongs to one of --source directory, --source camera, --source microphone, --source stream, --source replay",
        ),
        ([*STAGE, "--device", "Cam_1"], "--device: 'Cam_1' is not an id"),
        ([*STAGE, "--username", "ann"], "give --password-file too"),
        ([*STAGE[:4], "--stages", "one"], "--stages one: not a list of numbers"),
        ([*STAGE[:4], "--stages", "7"], "stages: bundle fashion has no stage 7; choose stages from 0 to 2"),
        ([*STAGE[:4], "--stages", "0,0"], "agent.yaml:15: pipelines[0].stages: [0, 0] lists a stage twice"),
        (["--site", "lab", "--bundle", "none-such", "--stages", "0"], "none-such"),
        (
            ["--site", "lab", "--bundle", str(WIDE), "--stages", "0,1,2"],
            "set branch to the one that this board runs, from 0 to 1",
        ),
        ([*STAGE, "-o", "none/agent.yaml"], "none/agent.yaml: cannot be written"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_written(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = init(tmp_path, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_is_overwritten_with_force_alone(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text("mine")
    done = init(tmp_path, *STAGE)
    assert done.returncode == 2
    assert "overwrite it with --force" in done.stderr
    assert init(tmp_path, *STAGE[:4], "--stages", "9", "--force").returncode == 2
    assert (tmp_path / "agent.yaml").read_text() == "mine"
    assert init(tmp_path, *STAGE, "--force").returncode == 0
    assert load_agent_config(tmp_path / "agent.yaml").site == "lab"


def test_no_flag_takes_a_password(tmp_path: Path) -> None:
    done = init(tmp_path, *STAGE, "--password", "secret")
    assert done.returncode == 2
    assert "unrecognized arguments: --password" in done.stderr
    assert not list(tmp_path.iterdir())


def converse(folder: Path, answers: list[str], *arguments: str) -> tuple[str, int]:
    """Answer each question in a terminal of its own; return what it showed, and the exit status."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "distree", "init", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown, asked, until = "", 0, time.monotonic() + 60
    try:
        while time.monotonic() < until:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    shown += os.read(ours, 4096).decode()
                except OSError:
                    break
            if asked < len(answers) and shown.count("]: ") + shown.count("(not shown): ") > asked:
                os.write(ours, answers[asked].encode() + b"\n")
                asked += 1
        return shown, process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_in_a_terminal_it_asks_and_asks_again(tmp_path: Path) -> None:
    answers = ["Lab!", "lab", "cam7", "127.0.0.1:1884", "ann", "", "", "0", "telepathy", "directory", "", "s3cret"]
    shown, status = converse(tmp_path, answers)
    assert status == 0, shown
    assert "'Lab!' is not an id" in shown
    assert "'telepathy' is not a source; enter one of none, directory" in shown
    assert "s3cret" not in shown
    config = load_agent_config(tmp_path / "agent.yaml")
    assert (config.site, config.device, config.broker.port, config.broker.username) == ("lab", "cam7", 1884, "ann")
    secret = tmp_path / "secret"
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("s3cret\n", 0o600)
    assert "s3cret" not in (tmp_path / "agent.yaml").read_text()


def test_what_is_answered_wrongly_in_a_terminal(tmp_path: Path) -> None:
    wide = ["--site", "lab", "--device", "cam", "--bundle", str(WIDE), "--stages", "0,1,2", "--source", "none"]
    shown, status = converse(tmp_path, ["", "cam-1", "pw", "one", "1", "secret"], *wide)
    assert status == 0, shown
    assert "'one' is not a number" in shown
    config = load_agent_config(tmp_path / "agent.yaml")
    assert (config.broker.username, config.pipelines[0].branch) == ("cam-1", 1)
    shown, status = converse(tmp_path, ["-", "\x04"], *wide, "-o", "other.yaml", "--broker", "h:1")
    assert (status, "Traceback" in shown) == (130, False), shown
    where = ["-o", "other.yaml", "--broker", "h:1", "--username", "a", "--password-file", "no/pw"]
    shown, status = converse(tmp_path, ["1", "x"], *wide, *where)
    assert status == 2, shown
    assert "no/pw: cannot be written (No such file or directory); name a new file in an existing folder" in shown
    assert not (tmp_path / "other.yaml").exists()


def test_in_a_terminal_flags_are_not_asked_for(tmp_path: Path) -> None:
    shown, status = converse(tmp_path, [""], *STAGE, "--device", "a", "--broker", "h:1")
    assert status == 0, shown
    assert shown.count("]: ") == 1  # the source
    assert load_agent_config(tmp_path / "agent.yaml").pipelines[0].origin is None


@given(st.text())
def test_any_host_name_makes_an_id(host: str) -> None:
    assert is_id(device_name(host))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_string_is_read_back_as_that_string(text: str) -> None:
    assert yaml.safe_load(f"key: {_scalar(text)}") == {"key": text}
