"""The import rules of docs/architecture.md, held by reading the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("distree", "device_agent", "orchestrator", "model_zoo", "broker_config")

# These may import the other packages, inside functions: they start the parts.
LAZY = {"distree.cli", "distree.demo", "distree.demo.samples"}

LAYERS = {
    "distree.types": set(),
    "distree.errors": set(),
    "distree.topics": {"distree.errors", "distree.types"},
    "distree.messages.limits": set(),
    "distree.messages.packing": {"distree.errors", "distree.messages.layout", "distree.messages.limits"},
    "distree.messages.layout": {"distree.errors", "distree.messages.forms"},
    "distree.messages.forms": {"distree.messages", "distree.topics"},
    "distree.messages.fields": {"distree.messages.forms", "distree.messages.layout", "distree.messages.limits"},
    "distree.messages.codec": {"distree.messages.forms", "distree.messages.layout", "distree.messages.packing"},
    "distree.protocols": {"distree.messages", "distree.types"},
    "distree.tensors": {"distree.errors", "distree.messages", "distree.protocols"},
    # Parts of a node know no other part: an origin no fuser, a worker no inbox.
    "distree.node.agenda": set(),
    "distree.node.settings": {"distree.errors", "distree.messages", "distree.protocols"},
    "distree.node.job": {"distree.messages"},
    "distree.node.effects": {"distree.messages", "distree.node.job", "distree.topics"},
    "distree.node.round_trip": set(),
    "distree.node.members": {"distree.errors", "distree.messages"},
    "distree.node.peers": {"distree.messages"},
    "distree.node.answers": {"distree.messages", "distree.node.effects", "distree.node.settings"},
    "distree.node.routing": {
        "distree.messages", "distree.node.effects", "distree.node.members", "distree.node.peers",
        "distree.node.settings",
    },
    "distree.node.announcer": {"distree.messages", "distree.node.effects", "distree.node.settings"},
    "distree.node.probes": {
        "distree.messages", "distree.node.attempts", "distree.node.effects", "distree.node.job",
        "distree.node.settings", "distree.tensors",
    },
    "distree.node.dispatch": {
        "distree.messages", "distree.node.attempts", "distree.node.custody", "distree.node.effects",
        "distree.node.routing", "distree.node.settings",
    },
    "distree.node.unasked": {
        "distree.errors", "distree.messages", "distree.node.attempts", "distree.node.audits", "distree.node.custody",
        "distree.node.effects", "distree.node.exits", "distree.node.job", "distree.node.probes",
        "distree.node.routing", "distree.node.settings",
    },
    "distree.node.inbox": {"distree.node.effects", "distree.node.job"},
    "distree.node.counters": {"distree.messages", "distree.node.job"},
    "distree.node.attempts": {"distree.messages", "distree.node.routing", "distree.node.settings"},
    "distree.node.custody": {"distree.messages", "distree.node.agenda", "distree.node.job", "distree.node.round_trip"},
    "distree.node.audits": {"distree.errors", "distree.messages", "distree.node.settings"},
    "distree.node.exits": {
        "distree.errors", "distree.messages", "distree.node.settings", "distree.policies", "distree.protocols",
    },
    "distree.node.deliveries": {
        "distree.errors", "distree.messages", "distree.node.effects", "distree.node.job", "distree.node.settings",
        "distree.tensors",
    },
    "distree.node.gathering": {"distree.messages", "distree.node.effects", "distree.node.exits"},
    "distree.node.origin": {
        "distree.errors", "distree.messages", "distree.node.answers", "distree.node.attempts", "distree.node.counters",
        "distree.node.custody", "distree.node.dispatch", "distree.node.effects", "distree.node.exits",
        "distree.node.job", "distree.node.members", "distree.node.round_trip", "distree.node.routing",
        "distree.node.settings", "distree.node.unasked",
    },
    "distree.node.worker": {
        "distree.messages", "distree.node.counters", "distree.node.deliveries", "distree.node.effects",
        "distree.node.exits", "distree.node.job", "distree.node.settings", "distree.policies", "distree.protocols",
        "distree.tensors",
    },
    "distree.node.branch": {
        "distree.errors", "distree.messages", "distree.node.agenda", "distree.node.counters", "distree.node.deliveries",
        "distree.node.effects", "distree.node.inbox", "distree.node.job", "distree.node.settings", "distree.protocols",
        "distree.tensors",
    },
    "distree.node.fuser": {
        "distree.errors", "distree.messages", "distree.node.agenda", "distree.node.effects", "distree.node.exits",
        "distree.node.gathering", "distree.node.round_trip", "distree.node.settings", "distree.policies",
        "distree.protocols", "distree.tensors",
    },
    "distree.transport.packets": set(),
    "distree.transport.outbox": {"distree.types"},
    "distree.transport.blame": {"distree.transport", "distree.types"},
    "distree.transport.greeting": set(),
    "distree.transport.limits": set(),
    "distree.transport.poller": set(),
    "distree.transport.connection": {"distree.errors", "distree.transport", "distree.types"},
    "distree.transport.sending": {"distree.errors", "distree.transport", "distree.types"},
    "distree.transport.receiving": {"distree.protocols", "distree.transport"},
    "distree.transport.lean_client": {"distree.errors", "distree.transport"},
    "distree.transport.dialling": {"distree.transport", "distree.types"},
    "distree.transport.paho": {"distree.errors", "distree.protocols", "distree.transport", "distree.types"},
    "distree.transport.memory": {"distree.errors", "distree.protocols", "distree.transport", "distree.types"},
}  # fmt: skip


def modules():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), ast.parse(path.read_text())


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module in PACKAGES}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def test_packages_import_distree_and_themselves_alone():
    for name, tree in modules():
        own = name.split(".")[0]
        allowed = {own, "distree"} if name not in LAZY else set(PACKAGES)
        strangers = {found for found in imported(tree) if found.split(".")[0] not in allowed}
        assert not strangers, f"{name} imports {strangers}"


def test_lazy_imports_are_inside_functions():
    for name, tree in modules():
        if name in LAZY:
            top = ast.Module(
                body=[node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)],
                type_ignores=[],
            )
            assert {found.split(".")[0] for found in imported(top)} <= {"distree"}, name


@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer):
    tree = dict(modules())[layer]
    # What all records are made with is below every layer.
    found = {name for name in imported(tree) if name != "distree" and not name.startswith("distree.record")}
    strangers = {name for name in found if not any(name == a or name.startswith(a + ".") for a in LAYERS[layer])}
    assert not strangers


def test_only_the_transport_imports_paho():
    users = set()
    for name, tree in modules():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(found.startswith("paho") for found in names):
                users.add(name)
    assert users == {"distree.transport.dialling", "distree.transport.lean_client"}


def test_only_who_connects_loads_paho_and_only_who_computes_a_runtime():
    script = (
        "import sys, distree.transport.explain, distree.subscription, device_agent.agent, orchestrator.cli\n"
        "late = {'paho', 'distree.transport.paho', 'distree.runtimes.tflite'}\n"
        "print(' '.join(late & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not done.stdout.split()


BASE = {"numpy", "msgpack", "yaml", "paho", "ai_edge_litert", "tflite_runtime", "google", "flatbuffers"}
OF_TESTS = {"socks"}
"""What paho loads if it is there, and is there because selenium brings it."""


def test_an_agent_loads_nothing_beyond_the_base_install():
    script = (
        "import sys; before = set(sys.modules); import device_agent.agent, device_agent.cli, distree.cli\n"
        "import importlib.metadata as m\n"
        "tops = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(' '.join(sorted(tops & set(m.packages_distributions()))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    strangers = set(done.stdout.split()) - BASE - OF_TESTS - {"distree", "device_agent", "_yaml", "typing_extensions"}
    assert not strangers
