"""A bug report: one text file with the configuration, versions, findings and the end of the agent's log.

User names and passwords are removed: keys that look like secrets lose their values, URLs their users and queries, and
the broker's user name is replaced wherever it occurs.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from device_agent.config import AgentConfig
from device_agent.doctor.checks import CheckResult
from device_agent.doctor.runtime import machine
from device_agent.linux import memory_mb
from device_agent.systemd import UNIT
from distree import strict_yaml
from distree.errors import CHECK_PATH, ConfigError
from distree.printable import without_credentials
from distree.regular_files import read_regular

REMOVED = "[removed]"
LOG_LINES = 200

_SECRET = re.compile(r"user|password|passwd|secret|token|key", re.IGNORECASE)
_PACKAGES = (
    "distree", "numpy", "msgpack", "pyyaml", "paho-mqtt", "ai-edge-litert", "tflite-runtime", "pillow",
)  # fmt: skip


def redacted(value: Any) -> Any:
    """Return YAML data without the values of keys that look like secrets.

    >>> redacted({"broker": {"username": "ann", "port": 1883}})
    {'broker': {'username': '[removed]', 'port': 1883}}
    """
    if isinstance(value, dict):
        return {
            key: REMOVED if _SECRET.search(str(key)) and item is not None else redacted(item)
            for key, item in value.items()
        }
    return [redacted(item) for item in value] if isinstance(value, list) else value


def results_as_json(config: AgentConfig, results: Sequence[CheckResult]) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "schema": "distree.doctor/1",
        "site": config.site,
        "device": config.device,
        "ok": not any(result.finding.status == "failed" for result in results),
        "checks": [
            {
                "check": result.check,
                "status": result.finding.status,
                "text": result.finding.text,
                "remedy": result.finding.remedy or None,
                "took_s": round(result.took_s, 3),
            }
            for result in results
        ],
    }


def write(path: Path, config_path: Path, config: AgentConfig, results: Sequence[CheckResult]) -> None:
    """Write the report; ConfigError where it cannot be written."""
    parts = {
        "machine": _machine(),
        "packages": "\n".join(_versions()),
        "checks": json.dumps(results_as_json(config, results), indent=1, ensure_ascii=False),
        "agent.yaml": yaml.safe_dump(redacted(_data(config_path)), sort_keys=False, allow_unicode=True),
        f"last lines of {UNIT}": _journal(),
    }
    text = "".join(f"==== {title} ====\n{part.rstrip()}\n\n" for title, part in parts.items())
    try:
        path.write_text(_without_name(without_credentials(text), config.broker.username), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--report {path}: cannot be written ({error.strerror})", CHECK_PATH) from None


def _without_name(text: str, name: str | None) -> str:
    """Replace a user name where it occurs as a whole word: the name `a` must not remove every a."""
    return text if not name else re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", REMOVED, text)


def _data(path: Path) -> Any:
    return yaml.safe_load(read_regular(path, strict_yaml.MAX_BYTES))


def _machine() -> str:
    system = platform.uname()
    lines = [
        time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        f"{system.system} {system.release} on {system.machine}, {memory_mb()} MiB",
        f"{platform.python_implementation()} {platform.python_version()} for {machine()}",
    ]
    model = Path("/proc/device-tree/model")
    if model.exists():
        lines.append(model.read_text(errors="replace").rstrip("\0"))
    return "\n".join(lines)


def _versions() -> list[str]:
    return [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _journal() -> str:
    """Return the last lines of the agent's log, where systemd keeps one that this user may read."""
    command = ["journalctl", "--no-pager", "--output=short-iso", f"--lines={LOG_LINES}", f"--unit={UNIT}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not available: {error}"
    return done.stdout.strip() or done.stderr.strip() or "empty"
