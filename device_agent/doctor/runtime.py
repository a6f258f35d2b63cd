"""Python, its packages, the interpreter of segments, the bundles. Whatever may crash is tried in a child process."""

from __future__ import annotations

import importlib
import os
import platform
import signal
import subprocess
import sys

from device_agent.doctor.checks import Check, CheckContext, Finding, failed, ok
from distree.record import record

OLDEST_PYTHON = (3, 10)
PACKAGES = {"numpy": "numpy", "msgpack": "msgpack", "yaml": "pyyaml", "paho.mqtt": "paho-mqtt"}
"""What an agent imports, beside the interpreter, and the packages that provide it."""

_LOAD = """
import sys
from distree.bundle.runtimes.tflite import load_interpreter
from distree.errors import RuntimeUnavailableError
try:
    print(load_interpreter()[1])
except RuntimeUnavailableError as error:
    sys.exit(error.what)
"""


@record
class Wheel:
    """The Pythons and machines for which a TFLite runtime is published."""

    package: str
    """With its version, as pip expects it."""
    oldest: tuple[int, int]
    newest: tuple[int, int]
    machines: tuple[str, ...]
    numpy: str = "numpy"
    """The numpy that it works with, as pip expects it."""


WHEELS = (
    Wheel(
        package="ai-edge-litert==2.3.*",
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
    """Return what this Python was built for: a 32-bit one may run on a 64-bit kernel, which only names itself."""
    name = platform.machine()
    return {"aarch64": "armv7l", "x86_64": "i686"}.get(name, name) if sys.maxsize < 1 << 32 else name


def wheels_for(python: tuple[int, int], arch: str) -> list[Wheel]:
    """Return the runtimes that are published for a Python on a machine."""
    return [wheel for wheel in WHEELS if wheel.oldest <= python <= wheel.newest and arch in wheel.machines]


def check_python(context: CheckContext) -> Finding:
    """Python, its packages, and an interpreter of segments that can be loaded."""
    version = sys.version_info[:2]
    here = f"Python {platform.python_version()} on {machine()}"
    if version < OLDEST_PYTHON:
        return failed(f"{here} is too old", "install Python 3.10 or later; Debian 12 has 3.11")
    missing = [package for module, package in PACKAGES.items() if not _importable(module)]
    if missing:
        return failed(f"{here}: cannot import {', '.join(missing)}", f"run: pip install {' '.join(missing)}")
    import numpy as np

    loaded, problem = _load_interpreter(context.timeout_s)
    if loaded:
        return ok(f"{here}, numpy {np.__version__}, {loaded}")
    wheels = wheels_for(version, machine())
    if not wheels:
        return failed(
            f"{here}: no wheel of a TFLite runtime is published for it",
            "use Python 3.10 to 3.14 on x86_64 or aarch64, or 3.10 to 3.11 on armv7l",
        )
    offers = ", or ".join(_offer(wheel) for wheel in wheels)
    return failed(f"{here}, numpy {np.__version__}: {problem}", f"run: pip install {offers}")


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
        lines = done.stderr.strip().splitlines() or ["loading the interpreter fails without a message"]
        return "", lines[-1]
    return done.stdout.strip(), ""


def check_bundle(context: CheckContext) -> Finding:
    """Every bundle is complete and unchanged, and has the stages and branches that the configuration names."""
    from device_agent.preflight import load_bundles

    context.bundles = load_bundles(context.config)
    return ok(", ".join(f"{bundle.name} {bundle.revision}" for bundle in context.bundles) + ": all files are unchanged")


def check_self_test(context: CheckContext) -> Finding:
    """The interpreter gives the right answers on this CPU, within the time that an agent would allow.

    It forks, and so the main thread must be the only one.
    """
    from device_agent.preflight import fuses
    from device_agent.selftest import TIMEOUT_S, self_test

    tested = []
    for pipeline, bundle in zip(context.config.pipelines, context.bundles, strict=True):
        fuse = fuses(pipeline, bundle)
        if pipeline.stages or fuse:
            self_test(
                bundle,
                pipeline.stages,
                context.config.num_threads,
                max(context.timeout_s, TIMEOUT_S),
                branch=pipeline.branch,
                fuse=fuse,
            )
            tested.append(bundle.name)
    if not tested:
        return ok("this board computes nothing")
    return ok(f"{', '.join(tested)}: right answers on this CPU")


CHECKS = (
    Check(name="python", run=check_python),
    Check(name="bundle", run=check_bundle, needs=("python",)),
    Check(name="self-test", run=check_self_test, needs=("python", "bundle"), forks=True),
)
