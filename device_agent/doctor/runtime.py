"""Python, its packages, the interpreter of segments, the bundles. What may crash is tried in a child process."""

from __future__ import annotations

import importlib
import os
import platform
import signal
import subprocess
import sys

from device_agent.doctor.checks import Finding, Visit, failed, ok
from distree.record import record

OLDEST_PYTHON = (3, 10)
PACKAGES = {"numpy": "numpy", "msgpack": "msgpack", "yaml": "pyyaml", "paho.mqtt": "paho-mqtt"}
"""What an agent imports, beside the interpreter, and what it is installed by."""

_LOAD = "from distree.bundle.runtimes.tflite import load_interpreter; print(load_interpreter()[1])"


@record
class Wheel:
    """For which Pythons and machines a TFLite runtime is published."""

    package: str
    """With its version, as pip takes it."""
    oldest: tuple[int, int]
    newest: tuple[int, int]
    machines: tuple[str, ...]
    numpy: str = "numpy"
    """The numpy that it works with, as pip takes it."""


WHEELS = (
    Wheel(
        package="ai-edge-litert==2.1.*",
        oldest=(3, 10),
        newest=(3, 14),
        machines=("x86_64", "aarch64"),
    ),
    Wheel(
        package="ai-edge-litert==1.2.*",
        oldest=(3, 9),
        newest=(3, 12),
        machines=("x86_64", "aarch64"),
    ),
    Wheel(
        package="tflite-runtime==2.14.*",
        oldest=(3, 9),
        newest=(3, 11),
        machines=("x86_64", "aarch64", "armv7l"),
        numpy="numpy<2",
    ),
)


def machine() -> str:
    """Return what this Python was built for: a 32-bit one may run on a 64-bit kernel, which names itself alone."""
    name = platform.machine()
    return {"aarch64": "armv7l", "x86_64": "i686"}.get(name, name) if sys.maxsize < 1 << 32 else name


def wheels_for(python: tuple[int, int], arch: str) -> list[Wheel]:
    """Return the runtimes that are published for a Python on a machine."""
    return [wheel for wheel in WHEELS if wheel.oldest <= python <= wheel.newest and arch in wheel.machines]


def check_python(visit: Visit) -> Finding:
    """Python, its packages, and an interpreter of segments that can be loaded."""
    version = sys.version_info[:2]
    here = f"Python {platform.python_version()} on {machine()}"
    if version < OLDEST_PYTHON:
        return failed(f"{here} is too old", "install Python 3.10 or later; Debian 12 has 3.11")
    missing = [package for module, package in PACKAGES.items() if not _importable(module)]
    if missing:
        return failed(f"{here}: cannot import {', '.join(missing)}", f"pip install {' '.join(missing)}")
    import numpy as np

    loaded, problem = _load_interpreter(visit.timeout_s)
    if loaded:
        return ok(f"{here}, numpy {np.__version__}, {loaded}")
    wheels = wheels_for(version, machine())
    if not wheels:
        return failed(
            f"{here} has no TFLite runtime: no wheel is published for it",
            "use a Python of 3.10 to 3.14 on x86_64 or aarch64, or 3.10 to 3.11 on armv7l",
        )
    offers = ", or ".join(_offer(wheel) for wheel in wheels)
    return failed(f"{here}, numpy {np.__version__}: {problem}", f"pip install {offers}")


def _offer(wheel: Wheel) -> str:
    return f"'{wheel.package}' '{wheel.numpy}'"


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _load_interpreter(timeout_s: float) -> tuple[str, str]:
    """Load the interpreter in a child; return (name and version, "") or ("", what is wrong)."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LOAD], env=environ, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"loading the interpreter takes more than {timeout_s:g} s"
    if done.returncode < 0:
        return "", f"the interpreter crashes while it is loaded ({signal.Signals(-done.returncode).name})"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it ends without a word"]
        return "", lines[-1].removeprefix("distree.errors.RuntimeUnavailableError: ")
    return done.stdout.strip(), ""


def check_bundle(visit: Visit) -> Finding:
    """Every bundle is whole, to the last bit, and has the stages and branches that are asked of it."""
    from device_agent.preflight import load_bundles

    visit.bundles = load_bundles(visit.config)
    return ok(", ".join(f"{bundle.name} {bundle.revision}" for bundle in visit.bundles) + ": all files are as shipped")


def check_self_test(visit: Visit) -> Finding:
    """The interpreter gives the right answers on this CPU, in the time that an agent would give it.

    Forks, and so needs the main thread to be the only one.
    """
    from device_agent.preflight import fuses
    from device_agent.selftest import TIMEOUT_S, self_test

    tested = []
    for pipeline, bundle in zip(visit.config.pipelines, visit.bundles, strict=True):
        fuse = fuses(pipeline, bundle)
        if pipeline.stages or fuse:
            self_test(
                bundle,
                pipeline.stages,
                visit.config.num_threads,
                max(visit.timeout_s, TIMEOUT_S),
                branch=pipeline.branch,
                fuse=fuse,
            )
            tested.append(bundle.name)
    if not tested:
        return ok("nothing is computed on this board")
    return ok(f"{', '.join(tested)}: right answers on this CPU")
