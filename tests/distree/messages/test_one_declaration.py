"""A field of a report is declared in one place: what it is needed for elsewhere follows by itself."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

INVENTED = '    throttled: int = count("Runs while the processor was throttled.", metric=COUNTER, default=0)\n'
AFTER = '    audited: int = count("Runs for audits and probes, which no other counter includes.", metric=COUNTER, default=0)\n'

USE = """
import json, sys
from dataclasses import asdict, replace
from pathlib import Path
sys.path.append(sys.argv[2])
from message_samples import TELEMETRY
from tools import dashboard_messages
from distree.messages.codec import decode, encode
from tools.json_schema import schema_of
from distree.messages.telemetry import Telemetry
from distree.topics import Kind
from orchestrator import metrics
from orchestrator.fleet import Device
from orchestrator.site_view import device_row
from orchestrator.store.records import Batch
from orchestrator.store.database import Store
from tools import reference

pipeline = TELEMETRY.pipelines[0]
stage = replace(pipeline.stages[0], throttled=7)
report = replace(TELEMETRY, pipelines=(replace(pipeline, stages=(stage,)),))
read = decode(Telemetry, encode(report))
device = Device(device="cam1", boot="b0", telemetry=read, period_s=2.0)
with Store(Path(sys.argv[1])) as store:
    store.save(Batch(reported=(device_row(device, heard_at=1.0, seen_at=1.0),)))
families = metrics._Families()
metrics._add_device(families, device, 0.0)
told = {sample.name: sample.value for family in families.all() for sample in family.samples}
help = {family.name: family.documentation for family in families.all()}
stages = schema_of(Kind.TELEMETRY)["properties"]["pipelines"]["items"]["properties"]["stages"]["items"]["properties"]
print(json.dumps({
    "read": read.pipelines[0].stages[0].throttled,
    "metric": told["distree_stage_throttled_total"],
    "help": help["distree_stage_throttled"],
    "schema": stages["throttled"]["description"],
    "page": "`throttled`" in reference._payloads(),
    "dashboard": "throttled" in dashboard_messages.text(),
    "status": asdict(read)["pipelines"][0]["stages"][0]["throttled"],
}))
"""


@pytest.fixture
def copy(tmp_path):
    """The product with one line more."""
    for package in ("distree", "device_agent", "orchestrator", "tools"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "vendor"))
    path = tmp_path / "distree" / "messages" / "telemetry.py"
    text = path.read_text(encoding="utf-8")
    assert text.count(AFTER) == 1
    path.write_text(text.replace(AFTER, AFTER + INVENTED), encoding="utf-8")
    return tmp_path


def test_an_invented_counter_is_everywhere(copy, tmp_path):
    store = tmp_path / "store.db"
    before = "from pathlib import Path; import sys; from orchestrator.store.database import Store; Store(Path(sys.argv[1])).open()"
    subprocess.run([sys.executable, "-c", before, str(store)], cwd=ROOT, check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", USE, str(store), str(ROOT / "tests" / "helpers")],
        cwd=copy,
        env={"PYTHONPATH": str(copy), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    what = "Runs while the processor was throttled."
    assert json.loads(done.stdout) == {
        "read": 7, "metric": 7, "help": what, "schema": what, "page": True, "dashboard": True, "status": 7,
    }  # fmt: skip
    with sqlite3.connect(store) as raw:
        # The table was there, without the column.
        assert raw.execute("SELECT throttled FROM stage_report").fetchall() == [(7,)]
    raw.close()
