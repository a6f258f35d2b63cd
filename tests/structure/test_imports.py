"""The import rules of docs/architecture.md, held by reading the imports."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("distree", "device_agent", "orchestrator", "model_zoo", "broker_config")

EVERYTHING = "distree.apps"
"""What may import all packages; nobody imports it."""

KNOWS = {
    "errors": set(),
    "record": set(),
    "lanes": set(),
    "clock": set(),
    "log_throttle": set(),
    "lazy": set(),
    "logs": {"printable"},
    "printable": set(),
    "regular_files": set(),
    "zip_files": {"regular_files"},
    "child_processes": set(),
    "thresholds": set(),
    "exits_taken": set(),
    "strict_yaml": {"errors", "printable", "regular_files", "thresholds"},
    "broker_address": {"errors", "printable", "record"},
    "broker_settings": {"broker_address", "errors", "printable", "record"},
    "topics": {"errors", "lanes", "printable", "record"},
    "roles": {"errors", "record", "topics"},
    "messages": {"errors", "printable", "record", "thresholds", "topics"},
    "tensors": {"errors", "messages"},
    "signing": {"errors", "messages", "record", "regular_files"},
    "criteria": {"errors", "messages", "printable", "record", "thresholds"},
    "formatting": {"messages", "printable", "thresholds"},
    "segments": {"record", "tensors"},
    "node": {"criteria", "errors", "messages", "printable", "record", "segments", "tensors", "thresholds", "topics"},
    "bundle": {
        "criteria",
        "errors",
        "lazy",
        "messages",
        "printable",
        "record",
        "regular_files",
        "segments",
        "strict_yaml",
        "tensors",
        "thresholds",
        "zip_files",
    },
    "transport": {"broker_settings", "errors", "lanes", "lazy", "printable", "record", "regular_files", "topics"},
    "client": {"broker_address", "broker_settings", "errors", "lanes", "messages", "printable", "topics", "transport"},
}
"""What each part of distree/ may import of the others; apps/, beside them, may import all."""

SIBLINGS = {
    "messages": {
        "limits": set(),
        "packing": {"layout", "limits"},
        "layout": {"forms"},
        "forms": {"layout", "limits", "packing"},
        "fields": {"forms", "layout", "limits"},
        "codec": {"forms", "layout", "packing"},
    },
    # Parts of a node know no other part: an origin no fuser, a worker no inbox.
    "node": {
        "timers": set(),
        "settings": set(),
        "job": set(),
        "effects": {"job"},
        "round_trip": set(),
        "members": set(),
        "peer_estimates": set(),
        "answers": {"effects", "settings"},
        "routing": {"effects", "members", "peer_estimates", "settings"},
        "announcer": {"effects", "settings"},
        "probes": {"attempts", "effects", "job", "settings"},
        "dispatch": {"attempts", "custody", "effects", "routing", "settings"},
        "background": {"attempts", "audits", "custody", "effects", "exits", "job", "probes", "routing", "settings"},
        "inbox": {"effects", "job"},
        "counters": {"job"},
        "attempts": {"routing", "settings"},
        "custody": {"job", "round_trip", "timers"},
        "audits": {"settings"},
        "exits": {"settings"},
        "deliveries": {"effects", "job", "settings"},
        "gathering": {"effects", "exits"},
        "origin": {
            "answers", "attempts", "background", "counters", "custody", "dispatch", "effects", "exits", "job",
            "members", "round_trip", "routing", "settings",
        },
        "worker": {"counters", "deliveries", "effects", "exits", "job", "settings"},
        "branch": {"counters", "deliveries", "effects", "inbox", "job", "settings", "timers"},
        "fuser": {"effects", "exits", "gathering", "round_trip", "settings", "timers"},
    },
    "transport": {
        "base": set(),
        "packets": set(),
        "outbox": set(),
        "negotiation": {"hangups"},
        "limits": set(),
        "poller": set(),
    },
}  # fmt: skip
"""What single modules may import of their own folder."""


COMMANDS = {"cli", "home_assistant_cmd", "set_thresholds", "tune_cli"}
"""Modules at the top of orchestrator/ that commands consist of; its others are parts of the service."""

FOLDERS = {
    "tuning": set(),
    "store": {"tuning"},
    "service": {"store", "tuning"},
    "status": {"service", "store", "tuning"},
    "explain": {"service", "store", "tuning"},
    "commands": {"explain", "service", "status", "store", "tuning"},
    "simulator": {"service", "store", "tuning"},
}
"""What each folder of orchestrator/ may import of the others; only `distree simulate` imports the simulator."""


@functools.cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@functools.cache
def imports(name: str) -> frozenset[str]:
    """The product's modules that one of them imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found & modules().keys() - {name})


def part_of(module: str) -> str:
    """The part of distree/ to which a module belongs: a folder, or a file of its own."""
    return module.split(".")[1] if "." in module else ""


def test_packages_import_distree_and_themselves_alone():
    for name in modules():
        allowed = {name.split(".")[0], "distree"} if not name.startswith(EVERYTHING) else set(PACKAGES)
        strangers = {found for found in imports(name) if found.split(".")[0] not in allowed}
        assert not strangers, f"{name} imports {strangers}"


def test_nobody_imports_the_apps():
    for name in modules():
        if not name.startswith(EVERYTHING) and name != "distree.__main__":
            assert not {found for found in imports(name) if found.startswith(EVERYTHING)}, name


def test_every_part_of_distree_has_a_rule():
    parts = {part_of(name) for name in modules() if name.startswith("distree.")}
    assert parts == {*KNOWS, "apps", "__main__"}


def test_no_arrow_runs_back_up():
    assert list(graphlib.TopologicalSorter(KNOWS).static_order())  # CycleError where one does


@pytest.mark.parametrize("part", KNOWS)
def test_parts_of_distree(part):
    for name in modules():
        if name.startswith("distree.") and part_of(name) == part:
            found = {part_of(one) for one in imports(name) if one.startswith("distree.")} - {part}
            assert found <= KNOWS[part], name


def folder_of(module: str) -> str:
    """The folder of orchestrator/ to which a module belongs; those at its top are parts of the service or of commands."""
    name = module.removeprefix("orchestrator.")
    if (ROOT / "orchestrator" / name.split(".")[0]).is_dir():
        return name.split(".")[0]
    return "commands" if name in COMMANDS else "service"


def test_no_arrow_runs_back_up_between_the_folders_of_the_orchestrator():
    assert list(graphlib.TopologicalSorter(FOLDERS).static_order())
    for name in modules():
        if name.startswith("orchestrator."):
            own = folder_of(name)
            found = {folder_of(one) for one in imports(name) if one.startswith("orchestrator.")} - {own}
            assert found <= FOLDERS[own], f"{name} imports {found - FOLDERS[own]}"


def test_every_folder_of_the_orchestrator_has_a_rule():
    folders = {path.name for path in (ROOT / "orchestrator").iterdir() if (path / "__init__.py").is_file()}
    assert folders | {"service", "commands"} == set(FOLDERS)
    assert {f"orchestrator.{name}" for name in COMMANDS} <= modules().keys()


@pytest.mark.parametrize(("folder", "module"), [(a, b) for a, rules in SIBLINGS.items() for b in rules])
def test_modules_of_a_folder(folder, module):
    own = f"distree.{folder}."
    found = {one.removeprefix(own) for one in imports(own + module) if one.startswith(own)}
    assert found <= SIBLINGS[folder][module]


def test_only_the_transport_imports_paho():
    users = set()
    for name, tree in modules().items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(found.startswith("paho") for found in names):
                users.add(name)
    assert users == {"distree.transport.dialling", "distree.transport.lean_client"}


def test_only_who_connects_loads_paho_and_only_who_computes_a_runtime():
    script = (
        "import sys, distree.transport.connect_errors, distree.client.subscription, device_agent.agent, orchestrator.cli\n"
        "late = {'paho', 'distree.transport.mqtt', 'distree.bundle.runtimes.tflite'}\n"
        "print(' '.join(late & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not done.stdout.split()


BASE = {"numpy", "msgpack", "yaml", "paho", "ai_edge_litert", "tflite_runtime", "google", "flatbuffers"}
OF_TESTS = {"socks"}
"""What paho loads if it is there, and is there because selenium brings it."""


def test_an_agent_loads_nothing_beyond_the_base_install():
    script = (
        "import sys; before = set(sys.modules); import device_agent.agent, device_agent.cli, distree.apps.cli\n"
        "import importlib.metadata as m\n"
        "tops = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(' '.join(sorted(tops & set(m.packages_distributions()))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    strangers = set(done.stdout.split()) - BASE - OF_TESTS - {"distree", "device_agent", "_yaml", "typing_extensions"}
    assert not strangers
