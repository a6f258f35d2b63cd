"""A mosquitto with any configuration, and certificates made by openssl."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from broker_config.managed import find_mosquitto, free_port
from distree import child_processes

PATIENCE_S = 30.0


class Mosquitto:
    """mosquitto on 127.0.0.1 with `lines` in its configuration; ends with the `with` block."""

    def __init__(self, folder: Path, *lines: str, nodelay: bool = True) -> None:
        program = find_mosquitto()
        if program is None:
            pytest.skip("mosquitto is not installed: apt install mosquitto")
        self._program = program
        self._folder = folder
        self._lines = ("set_tcp_nodelay true", *lines) if nodelay else lines
        self.port = free_port()
        self.pid = 0

    def __enter__(self) -> Mosquitto:
        config = self._folder / "mosquitto.conf"
        access = () if any(line.startswith(("allow_anonymous", "password_file")) for line in self._lines) else (
            "allow_anonymous true",
        )  # fmt: skip
        config.write_text("\n".join((f"listener {self.port} 127.0.0.1", "user root", *access, *self._lines)))
        self._log = (self._folder / "mosquitto.log").open("wb")
        self._process = child_processes.spawn(
            [self._program, "-v", "-c", str(config)], stdout=self._log, stderr=self._log
        )
        self.pid = self._process.pid
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                assert time.monotonic() < until
                assert self._process.poll() is None, (self._folder / "mosquitto.log").read_text()
                time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def users(folder: Path, **passwords: str) -> str:
    """Write mosquitto's password file; return the line that names it."""
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("mosquitto_passwd is not installed: apt install mosquitto")
    path = folder / "users"
    path.touch(mode=0o600)
    for name, password in passwords.items():
        subprocess.run([tool, "-b", str(path), name, password], check=True, capture_output=True)
    return f"password_file {path}"


class Certificates:
    """An authority in a folder, and what it signs. Files: ca.crt, and NAME.crt and NAME.key."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed: apt install openssl")
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"),
            *("-subj", "/CN=an authority", "-keyout", "ca.key", "-out", "ca.crt"),
        )

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def sign(
        self, name: str, alt: str = "IP:127.0.0.1,DNS:localhost", *, start: str = "", end: str = ""
    ) -> tuple[Path, Path]:
        """Make a certificate; `start` and `end` are YYYYMMDD000000Z. Returns (certificate, key)."""
        self._openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        (self.folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca=d\n[d]\ndir=.\ndatabase=index.txt\nnew_certs_dir=.\ncertificate=ca.crt\n"
            "private_key=ca.key\nrand_serial=yes\ndefault_md=sha256\npolicy=p\nx509_extensions=e\nunique_subject=no\n"
            f"[p]\ncommonName=supplied\n[e]\nsubjectAltName={alt}\n"
        )
        (self.folder / "index.txt").touch()
        self._openssl(
            *("ca", "-batch", "-config", "ca.cnf", "-in", f"{name}.csr", "-out", f"{name}.crt", "-notext"),
            *(("-startdate", start) if start else ()),
            *(("-enddate", end) if end else ("-days", "20")),
        )
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def listener(self, name: str = "broker", **how: str) -> list[str]:
        """Sign a certificate for a broker; return mosquitto's lines that name it."""
        cert, key = self.sign(name, **how)
        return [f"cafile {self.ca}", f"certfile {cert}", f"keyfile {key}"]
