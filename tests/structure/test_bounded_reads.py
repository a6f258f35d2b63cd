"""No file is opened, and nothing unpacked, but by the helpers that bound what is read; who may do otherwise is listed."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("distree", "device_agent", "orchestrator", "model_zoo", "broker_config")

UNBOUNDED = {"read_text", "read_bytes", "fromfile", "genfromtxt", "loadtxt"}
"""Methods and functions that read whatever there is."""

LOADERS = {("np", "load"), ("yaml", "load"), ("yaml", "safe_load"), ("json", "load"), ("pickle", "load")}
OPENERS = {("zipfile", "ZipFile"), ("tarfile", "open"), ("gzip", "open"), ("wave", "open"), ("lzma", "open")}

ALLOWED = {
    # Of the kernel, of the package itself, or just written.
    ("device_agent/presence.py", "read_text"): "/proc/net/unix",
    ("device_agent/doctor/report.py", "read_text"): "/proc/device-tree",
    ("device_agent/doctor/resources.py", "read_text"): "/proc/meminfo",
    ("device_agent/sources/directory/inotify.py", "read_text"): "/proc/self/mountinfo",
    ("model_zoo/split/supervision.py", "read_text"): "/proc/self/statm",
    ("broker_config/site/folder.py", "read_text"): "/proc/PID/comm",
    ("distree/apps/dashboard/page.py", "read_bytes"): "files of the package",
    ("distree/apps/demo/broker.py", "read_text"): "a secret that the demo has just written",
    ("distree/apps/demo/fleet.py", "read_text"): "a log of the demo's own processes",
    ("model_zoo/build/export.py", "read_bytes"): "a network that was just exported",
    ("model_zoo/build/manifest.py", "read_bytes"): "files of the bundle that is being built",
    ("model_zoo/build/segments.py", "read_bytes"): "segments that were just exported",
    # Of bytes that were read within bounds, or of a text of our own.
    ("broker_config/site/folder.py", "safe_load"): "read_regular",
    ("device_agent/doctor/report.py", "safe_load"): "read_regular",
    ("device_agent/init.py", "safe_load"): "a word",
    ("model_zoo/data/idx.py", "open"): "open_regular, read_bounded",
    ("model_zoo/data/shipped.py", "load"): "samples of the package",
    # These are the helpers, and a writer.
    ("distree/zip_files.py", "ZipFile"): "open_zip",
    ("model_zoo/packing.py", "ZipFile"): "writes",
}


def _found(path: Path) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id == "open":
            found.append(("open", node.lineno))
        if not isinstance(called, ast.Attribute):
            continue
        owner = called.value.id if isinstance(called.value, ast.Name) else ""
        mode = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        reads = called.attr == "open" and (
            mode in ("r", "rb") or (not node.args and not node.keywords and owner == "path")
        )
        if called.attr in UNBOUNDED or (owner, called.attr) in LOADERS | OPENERS or reads:
            found.append((called.attr, node.lineno))
    return found


def test_files_are_opened_and_unpacked_by_the_helpers() -> None:
    seen = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            for what, line in _found(path):
                where = (name, what)
                # statm, read on every report.
                assert where in ALLOWED or name == "device_agent/linux.py", (
                    f"{name}:{line}: {what}: use distree/regular_files.py, distree/zip_files.py or distree/bundle/npz.py"
                )
                seen.add(where)
    assert ALLOWED.keys() - seen == set()
