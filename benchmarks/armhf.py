"""A Debian userland for armv7 with the base install in it, run by qemu-user: what an armv7l board has, on this machine.

Packages are extracted and not configured, and qemu is named in each command, so nothing has to be registered with the
kernel (binfmt_misc). Needs root, for chroot, and Debian's `mmdebstrap` and `qemu-user-static`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SUITE = "bookworm"
QEMU = "qemu-arm-static"
# What docs/howto/raspberry-pi.md tells users of armv7l to install from Debian. libstdc++6, which the runtime needs, is
# on every board, because apt uses it.
DEBIAN = ("python3", "python3-venv", "python3-numpy", "python3-msgpack", "python3-yaml", "libstdc++6")
# From PyPI, where armv7l has a wheel or needs none; pip in the userland checks the versions against pyproject.toml.
PYPI = ("tflite-runtime", "paho-mqtt>=2.1,<2.3")
WHEELS_OF = ("--platform", "manylinux_2_34_armv7l", "--python-version", "3.11", "--only-binary", ":all:")
_LIBRARIES = "/usr/lib/arm-linux-gnueabihf"
PYTHON = "/venv/bin/python"
ENVIRONMENT = {
    "PATH": "/usr/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    # The postinst scripts of BLAS and LAPACK, which have not run, would have made links to these folders' contents.
    "LD_LIBRARY_PATH": f"{_LIBRARIES}/blas:{_LIBRARIES}/lapack",
    "OPENBLAS_NUM_THREADS": "1",
}
_STEP_LIMIT_S = 600.0


class Userland:
    """The userland in `work`/root, made there at the first use and kept; SystemExit says what is missing.

    `mirror` is where Debian's packages come from, by default from where this machine's apt takes them.
    """

    def __init__(self, work: Path, mirror: str | None = None) -> None:
        self.work = work
        self.root = work / "root"
        self.wheels = self.root / "wheels"
        self._mirror = mirror

    def prepare(self) -> None:
        """Make what is not there yet, and install this checkout as it is now."""
        if os.geteuid() != 0:
            raise SystemExit("this needs root, for chroot: sudo make arm")
        for tool, package in (("mmdebstrap", "mmdebstrap"), (QEMU, "qemu-user-static")):
            if shutil.which(tool) is None:
                raise SystemExit(f"{tool} is needed: apt install {package}")
        self.work.mkdir(parents=True, exist_ok=True)
        if not (self.root / "made").exists():
            self._make()
        wheels = self.wheels
        shutil.rmtree(wheels, ignore_errors=True)
        checkout = str(Path(__file__).parents[1])
        run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), checkout])
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *WHEELS_OF, "--dest", str(wheels), *PYPI])
        # Without a network: what Debian's packages do not satisfy is an error here. The checkout's own wheel anew, for
        # its version may be the same.
        self._pip("--no-deps", "--force-reinstall", f"/wheels/{_only(wheels, 'distree-*.whl')}")
        self._pip("distree")

    def _pip(self, *arguments: str) -> None:
        # Debian's own pip, out of its wheel. Anything else would start programs of the userland by name, which takes
        # binfmt_misc.
        pip = _only(self.root / "usr/share/python-wheels", "pip-*.whl")
        install = [f"/usr/share/python-wheels/{pip}/pip", "install", "--quiet", "--no-index", "--find-links", "/wheels"]
        self.output(PYTHON, *install, *arguments)

    def _make(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        run(
            [
                "mmdebstrap", "--quiet", "--variant=extract", "--architectures=armhf", f"--include={','.join(DEBIAN)}",
                SUITE, str(self.root), self._mirror or _own_mirror(),
            ]
        )  # fmt: skip
        shutil.copy(str(shutil.which(QEMU)), self.root / QEMU)
        self.output("/usr/bin/python3", "-m", "venv", "--without-pip", "--system-site-packages", "/venv")
        (self.root / "made").touch()

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs a program of the userland; start it with ENVIRONMENT."""
        return [str(shutil.which("chroot", path="/usr/sbin:/sbin:/usr/bin")), str(self.root), f"/{QEMU}", *arguments]

    def output(self, *arguments: str) -> str:
        """Run a program of the userland and return what it printed."""
        return run(self.command(*arguments), ENVIRONMENT)


def _own_mirror() -> str:
    """Return where this machine's apt takes Debian from."""
    wanted = ["Created-By: Packages", "Origin: Debian", "Label: Debian"]
    found = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]).split()
    if not found:
        raise SystemExit("this machine's apt knows no Debian mirror: name one by MIRROR=…")
    return found[0]


def _only(folder: Path, pattern: str) -> str:
    (found,) = folder.glob(pattern)
    return found.name


def run(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it printed; SystemExit where it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_STEP_LIMIT_S, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nexit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout
