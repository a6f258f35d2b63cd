"""An authority of a site's own, and the certificates that it signs.

They are made by `openssl`, which Debian installs with almost everything that speaks TLS. A Python library would be one
more dependency, with a compiled wheel for each kind of board, for what is done once on one machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

from distree.errors import ConfigError
from distree.regular_files import read_regular

AUTHORITY_DAYS = 3650
DAYS = 825
"""How long certificates of brokers and users are valid."""

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


_MAX_BYTES = 16 << 20
_PEM_END = re.compile(rb"-----END [A-Z0-9 ]+-----\s*\Z")

_CONFIG = f"""\
[ca]
default_ca = authority
[authority]
database = revoked.txt
default_md = sha256
default_crl_days = {AUTHORITY_DAYS}
"""


class Authority:
    """A folder with ca.crt and ca.key, the users' certificates that are valid, and a list of those that were revoked.

    ca.key is all that is needed to log in as anybody: keep it safe.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self.key = folder / "ca.key"
        self.revoked = folder / "revoked.pem"
        self._config = folder / "ca.cnf"
        self._issued = folder / "issued"

    def create(self, site: str) -> None:
        """Make the authority of a site; ConfigError where there is no openssl."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _made_whole(self.key, self.certificate) as (key, certificate):
            _openssl(
                *("req", "-x509", *_KEY, "-days", str(AUTHORITY_DAYS), "-subj", f"/CN=DistrEE {site}"),
                *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
                *("-keyout", str(key), "-out", str(certificate)),
            )
        self._issued.mkdir(mode=0o700)
        for path, text in ((self._config, _CONFIG), (self.folder / "revoked.txt", "")):
            path.touch(mode=0o600)
            path.write_text(text, encoding="ascii")
        self._list_revoked()

    def sign_broker(self, host: str, certificate: Path, key: Path) -> None:
        """Make the broker's certificate, valid for its address and for this machine."""
        names = dict.fromkeys((_name(host), "IP:127.0.0.1", "DNS:localhost"))
        self._sign("broker", certificate, key, ("extendedKeyUsage=serverAuth", f"subjectAltName={','.join(names)}"))

    def sign_user(self, name: str, certificate: Path, key: Path) -> None:
        """Make a user's certificate, whose common name is the user's name."""
        self._sign(name, certificate, key, ("extendedKeyUsage=clientAuth",))
        shutil.copy(certificate, self._issued / f"{name}.crt")

    def revoke_user(self, name: str) -> None:
        """Declare a user's certificate invalid; whoever reads `revoked` then refuses it."""
        issued = self._issued / f"{name}.crt"
        if issued.exists():
            self._act("-revoke", str(issued), done_already="Already revoked")
            self._list_revoked()
            issued.unlink()

    def _list_revoked(self) -> None:
        with _made_whole(self.revoked) as (revoked,):
            self._act("-gencrl", "-out", str(revoked))

    def _act(self, *arguments: str, done_already: str | None = None) -> None:
        self._check_key()
        what = ("ca", "-config", str(self._config), "-keyfile", str(self.key), "-cert", str(self.certificate))
        _openssl(*what, *arguments, folder=self.folder, done_already=done_already)

    def _check_key(self) -> None:
        if not self.key.exists():
            raise ConfigError(f"{self.key} is missing", "put it back for as long as you change users")

    def _sign(self, name: str, certificate: Path, key: Path, extensions: Sequence[str]) -> None:
        self._check_key()
        with (
            tempfile.TemporaryDirectory(prefix="distree-ca-") as made,
            _made_whole(key, certificate) as (new_key, new_certificate),
        ):
            request, extra = Path(made) / "request", Path(made) / "extensions"
            _openssl("req", "-new", *_KEY, "-subj", f"/CN={name}", "-keyout", str(new_key), "-out", str(request))
            extra.write_text("\n".join(extensions), encoding="ascii")
            _openssl(
                *("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self.key)),
                *("-set_serial", f"0x{os.urandom(16).hex()}", "-days", str(DAYS), "-extfile", str(extra)),
                *("-out", str(new_certificate)),
            )


@contextlib.contextmanager
def _made_whole(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Give names beside files for openssl to write to; what is there is replaced if all of them are complete.

    openssl reports success when the disk was full, with half a file.
    """
    made = tuple(path.with_name(f".{path.name}.new") for path in paths)
    try:
        yield made
        for path, new in zip(paths, made, strict=True):
            if not _PEM_END.search(read_regular(new, _MAX_BYTES)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        for path, new in zip(paths, made, strict=True):
            new.chmod(0o600)
            new.replace(path)
    finally:
        for new in made:
            new.unlink(missing_ok=True)


def _name(host: str) -> str:
    try:
        return f"IP:{ip_address(host)}"
    except ValueError:
        return f"DNS:{host}"


def _openssl(*arguments: str, folder: Path | None = None, done_already: str | None = None) -> None:
    """Run openssl; ConfigError if it fails, unless it says by `done_already` that a command cut short had done it."""
    program = shutil.which("openssl")
    if program is None:
        raise ConfigError("certificates cannot be made: openssl is not installed", "run: apt install openssl")
    # Keys must never be readable by others, not even for a moment.
    before = os.umask(0o077)
    try:
        done = subprocess.run(
            [program, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        os.umask(before)
    if done.returncode and (done_already is None or done_already not in done.stderr):
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise ConfigError(f"openssl {arguments[0]} failed: {lines[-1]}", "check the folder, and try again")
