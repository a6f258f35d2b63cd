"""What the server of the page gives away, and what it does not; the command's words; the files of others."""

from __future__ import annotations

import hashlib
import http.client
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.dashboard import served
from distree import __version__
from distree.apps.dashboard.page import NAMES, assets, check_broker, policy
from distree.errors import ConfigError
from tools import dashboard_messages

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "distree" / "apps" / "dashboard" / "page"
BROKERS = ["ws://192.168.1.10:9001", "wss://broker.example:443/mqtt"]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(BROKERS, "lab") as url:
        yield int(url.rstrip("/").rpartition(":")[2])


def ask(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_every_file_of_the_page_is_served_and_there_is_no_other(port: int) -> None:
    there = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()}
    assert there - set(NAMES) == {"vendor/README.md", "vendor/SHA256SUMS"}
    for name, asset in assets(BROKERS, "lab").items():
        status, headers, body = ask(port, f"/{name}")
        assert (status, headers["content-type"], body) == (200, asset.content_type, asset.content)
        head = ask(port, f"/{name}", "HEAD")
        assert (head[0], head[1]["content-length"], head[2]) == (200, str(len(body)), b"")
    assert ask(port, "/")[2] == ask(port, "/index.html?x=1")[2] == assets(BROKERS, "lab")["index.html"].content


@pytest.mark.parametrize("path", ["/", "/main.js", "/nothing"])
def test_every_answer_says_what_browsers_are_to_forbid(port: int, path: str) -> None:
    _, headers, _ = ask(port, path)
    assert headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src ws://192.168.1.10:9001 wss://broker.example:443; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["server"].strip() == "distree"


@pytest.mark.parametrize(
    "path",
    [
        "/vendor", "/vendor/", "/vendor/README.md", "/vendor/SHA256SUMS", "/../page.py", "/vendor/../../server.py",
        "/%2e%2e/page.py", "/..%2fpage.py", "/vendor/%2e%2e/main.js", "/main.js/", "/MAIN.JS", "/main.js%00",
        "/etc/passwd", "//etc/passwd", "/.git/config", "http://127.0.0.1/etc/passwd",
    ],
)  # fmt: skip
def test_nothing_else_is_there(port: int, path: str) -> None:
    status, _, body = ask(port, path)
    assert status == 404
    assert b"root:" not in body


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
def test_any_path_is_a_file_of_the_page_or_none(port: int, path: str) -> None:
    status, _, body = ask(port, f"/{path}")
    assert status == 404 or body in {asset.content for asset in assets(BROKERS, "lab").values()}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_it_only_gives(port: int, method: str) -> None:
    status, headers, _ = ask(port, "/", method)
    assert status == 501
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_noise_does_not_stop_it(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    for noise in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 70_000):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(noise)
    assert ask(port, "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_the_page_knows_its_brokers_and_asks_nobody_else() -> None:
    page = assets(BROKERS, "lab")
    index = page["index.html"].content.decode()
    assert 'name="distree-brokers" content="ws://192.168.1.10:9001 wss://broker.example:443/mqtt"' in index
    assert 'id="site" value="lab"' in index
    assert __version__ in index
    assert "@" not in index
    own = [name for name in NAMES if not name.startswith("vendor/")]
    for name in own:
        addresses = set(re.findall(r"\bhttps?://[^\s\"'<>]+", page[name].content.decode()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name


@pytest.mark.parametrize(
    "url",
    [
        "", "127.0.0.1:9001", "http://127.0.0.1:9001", "ws://127.0.0.1", "ws://:9001", "ws://host:0", "ws://host:99999",
        "ws://host:x", "ws://eva:secret@host:9001", "ws://host:9001?password=secret", "ws://host:9001#x",
        "ws://host:9001;script-src *", "ws://ho st:9001", "ws://host:9001 *", "ws://hóst:9001", "ws://[::1:9001",
        "ws://host:9001/'\"><script>",
    ],
)  # fmt: skip
def test_brokers_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--broker") as caught:
        check_broker(url)
    assert "secret" not in str(caught.value) or "@" not in url


@given(st.text(max_size=40))
def test_a_broker_never_adds_to_the_policy(text: str) -> None:
    try:
        url = check_broker(f"ws://host:9001/{text}")
    except ConfigError:
        return
    assert policy([url]) == policy(["ws://host:9001"])


def test_the_files_of_others_are_as_they_were_published() -> None:
    sums = dict(reversed(line.split()) for line in (PAGE / "vendor" / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {path.name for path in (PAGE / "vendor").glob("*.js")}
    for name, expected in sums.items():
        assert hashlib.sha256((PAGE / "vendor" / name).read_bytes()).hexdigest() == expected, name
        licence = (PAGE / "vendor" / name.replace(".min.js", ".LICENSE.txt")).read_text()
        assert "Permission is hereby granted" in licence or "Permission to use, copy" in licence


# ---------------------------------------------------------------- the command


def distree(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run(["dashboard", *arguments])


def test_export_writes_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "www" / "distree"
    for _ in range(2):  # again over itself, as after an update
        done = distree("--broker", BROKERS[0], "--site", "lab", "--export", str(folder))
        assert (done.returncode, done.stderr) == (0, "")
    written = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert written == {name: asset.content for name, asset in assets(BROKERS[:1], "lab").items()}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--broker", "localhost:1883"], "--broker: expected ws://HOST:PORT"),
        (["--site", "Lab"], "--site: 'Lab' is not an id"),
        (["--port", "70000"], "--port: 70000 is out of range; choose 0 to 65535"),
        (["--bind", "192.0.2.1"], "cannot serve the page on 192.0.2.1:8080 ("),
        (["--export", "/dev/null/here"], "--export /dev/null/here: cannot be written"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], told: str) -> None:
    done = distree(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"distree: {told}")
    assert done.stderr.count("\n") == 1


def test_a_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = distree("--port", port)
        assert done.returncode == 2
        assert done.stderr.startswith(f"distree: cannot serve the page on 127.0.0.1:{port} (address already in use)")


def test_it_serves_until_ctrl_c_and_says_when_others_cannot_reach_the_broker() -> None:
    command = [sys.executable, "-m", "distree", "dashboard", "--port", "0", "--bind", "0.0.0.0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            found = re.fullmatch(r"dashboard on http://0\.0\.0\.0:(\d+)/, until Ctrl-C\n", process.stdout.readline())
            assert found
            assert "give --broker the address that they use" in process.stderr.readline()
            assert ask(int(found.group(1)), "/")[0] == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_the_page_reads_messages_as_they_are_declared() -> None:
    assert dashboard_messages.PATH.read_text(encoding="utf-8") == dashboard_messages.text(), "run make api"
