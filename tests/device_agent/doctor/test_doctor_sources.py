"""`distree doctor` tries cameras, microphones and streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from live_sink import named, needs_ffmpeg, python

from device_agent import presence
from device_agent.config import load_agent_config
from device_agent.doctor import report
from device_agent.doctor.checks import CheckContext, Finding
from device_agent.doctor.sources import check_sources
from device_agent.preflight import load_bundles
from distree.errors import ConfigError

LAVFI = {"kind": "camera", "input": "testsrc=size=64x48:rate=10", "input_options": ["-re", "-f", "lavfi"]}


def board(folder: Path, *sources: dict[str, Any], bundle: str = "fashion") -> Path:
    pipelines = [
        {"name": f"p{k}", "bundle": bundle, "stages": [0], "origin": {"source": source}}
        for k, source in enumerate(sources)
    ]
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump({"site": "lab", "device": "cam", "pipelines": pipelines}))
    return path


def found(path: Path) -> Finding:
    config = load_agent_config(path)
    return check_sources(CheckContext(config=config, timeout_s=10.0, bundles=load_bundles(config)))


def test_a_board_without_such_sources(tmp_path: Path) -> None:
    assert found(board(tmp_path, {"kind": "mqtt"})).status == "ok"


@needs_ffmpeg
def test_a_camera_that_works(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="pictures are fitted by Pillow: pip install 'distree[images]'")
    finding = found(board(tmp_path, {**LAVFI, "rate_hz": 10}))
    assert finding.status == "ok", finding
    assert "pictures of 64x48 pixels by ffmpeg " in finding.text
    assert "per second" in finding.text
    assert not named("ffmpeg")


@needs_ffmpeg
def test_a_camera_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="pictures are fitted by Pillow: pip install 'distree[images]'")
    finding = found(board(tmp_path, {"kind": "camera", "input": "/dev/video99"}))
    assert (finding.status, finding.text) == ("failed", "p0: /dev/video99: No such file or directory")
    assert finding.remedy == "check that the camera is connected: ls /dev/video* shows what is"


def test_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL", reason="pictures are fitted by Pillow: pip install 'distree[images]'")
    path = board(tmp_path, {"kind": "camera", "input": "/dev/video0"})
    load_bundles(load_agent_config(path))
    monkeypatch.setenv("PATH", "/nowhere")
    finding = found(path)
    assert (finding.text, finding.remedy) == ("p0: ffmpeg is not installed", "run: sudo apt install ffmpeg")
    finding = found(board(tmp_path, {"kind": "microphone"}, bundle="spoken-digits"))
    assert (finding.text, finding.remedy) == ("p0: arecord is not installed", "run: sudo apt install alsa-utils")


def test_a_sensor_that_says_nothing(tmp_path: Path) -> None:
    command = python(tmp_path, "print('warming up', file=sys.stderr, flush=True)\ntime.sleep(600)\n")
    config = load_agent_config(board(tmp_path, {"kind": "stream", "command": [*command]}, bundle="spoken-digits"))
    finding = check_sources(CheckContext(config=config, timeout_s=2.5, bundles=load_bundles(config)))
    assert finding.status == "failed"
    assert finding.text == "p0: no sample for 2.5 s (warming up)"


def test_what_an_agent_is_using_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "boots_here", lambda config: {"1"})
    command = python(tmp_path, "note()\n")
    finding = found(board(tmp_path, {"kind": "stream", "command": [*command]}, bundle="spoken-digits"))
    assert finding.text == "not tried, because the agent that runs here is using it"
    assert not (tmp_path / "pids").exists()


def test_a_bundle_that_does_not_fit_is_told_before(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pipelines\.p0\.origin\.source\.kind: a stream gives windows of samples"):
        found(board(tmp_path, {"kind": "microphone"}))


def test_a_report_has_no_password_of_a_camera(tmp_path: Path) -> None:
    path = board(tmp_path, {"kind": "camera", "input": "rtsp://ann:geheim@cam/1?pwd=geheim"})
    report.write(tmp_path / "report.txt", path, load_agent_config(path), [])
    text = (tmp_path / "report.txt").read_text()
    assert "rtsp://cam/1?" in text
    assert "geheim" not in text


def test_an_error_in_the_file_shows_no_password_of_a_camera(tmp_path: Path) -> None:
    path = board(tmp_path, {"kind": "camera", "inptu": "rtsp://ann:geheim@cam/1"})
    with pytest.raises(ConfigError) as refused:
        load_agent_config(path)
    assert "rtsp://cam/1" in str(refused.value)
    assert "geheim" not in str(refused.value)
