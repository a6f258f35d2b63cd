"""A change of what users rely on shows in a diff, and what is loaded on demand stays so."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from distree.apps import cli
from tools import surface

ROOT = Path(__file__).parents[2]

HEAVY = {"numpy", "yaml", "msgpack", "paho", "ai_edge_litert", "tflite_runtime", "asyncio"}


def test_the_public_surface_is_written_down():
    written, found = surface.PATH.read_text(encoding="utf-8").splitlines(), surface.surface().splitlines()
    gone, new = set(written) - set(found), set(found) - set(written)
    assert written == found, f"run: python -m tools.surface; gone: {sorted(gone)[:5]}, new: {sorted(new)[:5]}"


@pytest.mark.parametrize("package", surface.PACKAGES)
def test_what_a_package_exports_is_there_and_nothing_else_is(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def loaded(code: str) -> set[str]:
    """Return the names of the modules that are loaded after some code has run in a program of its own."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split("\n")[-2].split())


@pytest.mark.parametrize("code", ["import distree", "import device_agent", "import distree, device_agent"])
def test_a_package_by_itself_loads_nothing(code):
    found = loaded(code)
    assert not {name.partition(".")[0] for name in found} & HEAVY
    assert {name for name in found if name.startswith(("distree", "device_agent"))} <= {"distree", "device_agent"}


def test_a_result_needs_no_broker_client_and_an_origin_no_interpreter():
    found = loaded("from distree import Result")
    assert "distree.messages.result" in found
    assert not {name for name in found if name.startswith(("paho", "distree.transport", "distree.client"))}
    found = loaded("from device_agent import Origin")
    assert "device_agent.origin" in found
    assert not {name for name in found if name.startswith(("paho", "distree.transport.mqtt", "ai_edge_litert"))}


def test_help_loads_no_command():
    packages = {path.partition(".")[0] for path, _ in cli.COMMANDS.values()} - {"distree"}
    found = loaded("from distree.apps import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass")
    assert not {name.partition(".")[0] for name in found} & (packages | HEAVY)


def test_a_command_loads_no_other_one():
    found = loaded("from distree.apps import cli\ntry: cli.main(['broker', '--help'])\nexcept SystemExit: pass")
    assert "broker_config.cli" in found
    assert not {name.partition(".")[0] for name in found} & {"device_agent", "orchestrator", "model_zoo", "paho"}
