"""`python -m tools.dependencies bom|audit`: what an installation brings along, and what is known against it.

For the base and for each extra an environment is made in a temporary folder and the package installed into it, as by a
user. `bom` writes a bill of materials of each, in CycloneDX's JSON, with versions and licences. `audit` looks all of
them up in PyPI's list of known vulnerabilities, by pip-audit. It ends with status 1 if one is found, and also where
that list cannot be reached: what was not looked up is never reported as clean.

`make bom` and `make audit` run it in `.venv-audit`, which has the two tools; no board needs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BASE = "base"
EXTRAS = ("images", "broker", "plots", "signed", "metrics", "top")
"""Those that users install. The others are for development, and `zoo` alone takes gigabytes."""

_INSTALL_S, _AUDIT_S = 1200.0, 300.0


@dataclass(frozen=True)
class Package:
    """An installed package, with the licences that its metadata states."""

    name: str
    version: str
    licences: tuple[str, ...]


def packages_of(bom: dict[str, Any]) -> list[Package]:
    """Return the packages of a bill of materials, by name."""
    found = []
    for part in bom.get("components", ()):
        stated = [one.get("expression") or _name(one["license"]) for one in part.get("licenses", ())]
        found.append(Package(part["name"], part["version"], tuple(dict.fromkeys(stated))))
    return sorted(found, key=lambda package: package.name.lower())


def _name(licence: dict[str, Any]) -> str:
    # Some packages state the whole text.
    return str(licence.get("id") or licence.get("name", "")).strip().splitlines()[0][:60]


def verdict(reports: Iterable[dict[str, Any]]) -> tuple[str, int]:
    """Return what pip-audit's reports come to, in lines, and the exit status."""
    audited, skipped, faults = set(), set(), {}
    for report in reports:
        for part in report["dependencies"]:
            if "skip_reason" in part:
                skipped.add(part["name"])
                continue
            audited.add(part["name"])
            for fault in part["vulns"]:
                fixed = ", ".join(fault["fix_versions"]) or "no version yet"
                faults[part["name"], fault["id"]] = f"{part['name']} {part['version']}: {fault['id']}, fixed in {fixed}"
    lines = [faults[key] for key in sorted(faults)]
    if skipped:
        names = ", ".join(sorted(skipped)[:8]) + (", …" if len(skipped) > 8 else "")
        lines.append(
            f"audit: {len(skipped)} of {len(skipped | audited)} packages were not looked up ({names}): the package "
            "index has no list of vulnerabilities; use one that has, such as https://pypi.org"
        )
    elif not lines:
        lines.append(f"audit: nothing is known against any of {len(audited)} packages")
    return "\n".join(lines), int(bool(skipped or faults))


def install(extra: str, folder: Path) -> Path:
    """Install the package with an extra into an environment of its own; return its Python."""
    python = folder / extra / "bin" / "python"
    wanted = str(ROOT) if extra == BASE else f"{ROOT}[{extra}]"
    _run([sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, str(folder / extra)])
    _run([sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python), wanted])
    return python


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])}: {done.stderr.strip()[-2000:]}")


def write_bom(extra: str, python: Path, out: Path) -> Path:
    """Write the bill of materials of an environment."""
    path = out / f"distree-{extra}.cdx.json"
    project = str(ROOT / "pyproject.toml")
    tool = [sys.executable, "-m", "cyclonedx_py", "environment", str(python)]
    _run([*tool, "--pyproject", project, "--output-reproducible", "--of", "JSON", "-o", str(path)])
    return path


def audit(python: Path) -> dict[str, Any] | None:
    """Return pip-audit's report on an environment; None where it got no answer."""
    (packages,) = (python.parents[1] / "lib").glob("python3*/site-packages")
    command = [sys.executable, "-m", "pip_audit", "--path", str(packages), "--progress-spinner", "off", "-f", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_AUDIT_S, check=False)
        report: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    # The package itself is on no index.
    return {"dependencies": [part for part in report["dependencies"] if part["name"] != "distree"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write bills of materials, or audit."""
    parser = argparse.ArgumentParser(prog="python -m tools.dependencies", description="dependencies and what is known")
    parser.add_argument("what", choices=("bom", "audit"))
    parser.add_argument("--extras", nargs="*", default=EXTRAS, metavar="NAME", help="beside the base")
    parser.add_argument("--out", type=Path, default=Path("bom"), metavar="FOLDER", help="where the bills go")
    args = parser.parse_args(arguments)
    reports = []
    with tempfile.TemporaryDirectory(prefix="distree-dependencies-") as made:
        for extra in (BASE, *args.extras):
            python = install(extra, Path(made))
            if args.what == "bom":
                args.out.mkdir(parents=True, exist_ok=True)
                path = write_bom(extra, python, args.out)
                packages = packages_of(json.loads(path.read_text(encoding="utf-8")))
                unsaid = [package.name for package in packages if not package.licences]
                print(
                    f"{path}: {len(packages)} packages"
                    + (f"; no licence stated: {', '.join(unsaid)}" if unsaid else "")
                )
                if extra == BASE:
                    print(*(f"  {one.name} {one.version}: {' / '.join(one.licences)}" for one in packages), sep="\n")
            else:
                reports.append(audit(python))
    if args.what == "bom":
        return 0
    if None in reports:
        print("audit: not done: the list of vulnerabilities cannot be reached; try again where PyPI can be")
        return 1
    text, status = verdict(report for report in reports if report is not None)
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
