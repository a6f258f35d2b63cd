"""Every command's and every agent's reader of files, given what is no file or never ends: refused at once, in a line."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from broker_config.site.config import SiteConfig
from device_agent.config import AgentConfig
from device_agent.plan_seals import PlanSeals
from device_agent.sources.directory.journal import Journal
from device_agent.sources.replay import ReplaySource, ReplaySourceConfig
from device_agent.spool import Spool
from distree import strict_yaml
from distree.apps.submit.files import GivenFile, read_file
from distree.broker_settings import BrokerSettings, TlsSettings
from distree.bundle.loading import load_bundle, read_verified
from distree.bundle.manifest import MANIFEST
from distree.bundle.preprocessing import Preprocessor
from distree.errors import DistreeError
from distree.signing import load_signing_key
from distree.transport.credentials import read_password, tls_context
from model_zoo.data import load_examples
from model_zoo.packing import unpack
from model_zoo.split.cli import labels_of
from model_zoo.split.network import _read as read_network
from orchestrator.store.database import Store
from orchestrator.tuning.replay import load_recording

FASHION = load_bundle("fashion", verify=())
SPEC, RULES = FASHION.manifest.input, FASHION.manifest.preprocess


def _beside(path: Path) -> Path:
    """Put an array of inputs beside a file of labels."""
    import numpy as np

    inputs = path.with_name("x.npy")
    np.save(inputs, np.zeros((3, *SPEC.shape), np.uint8))
    return inputs


def _told(path: Path, read) -> None:
    """Read what an agent goes on without, but tells of; raise what it tells as if it were an error."""
    told: list[str] = []
    read(path, told)
    assert told, "nobody was told"
    raise DistreeError(told[0], "")


def _spool(path: Path, told: list[str]) -> None:
    spool = Spool(path)
    spool.recover()
    told += [notice.what for notice in spool.notices]
    spool.close()


def _journal(path: Path, told: list[str]) -> None:
    journal = Journal(path, lambda _kind, what, *_, **__: told.append(what))
    journal.load(lambda _file: True)
    journal.close()


def _seals(path: Path, told: list[str]) -> None:
    PlanSeals([], path, lambda problem: told.append(str(problem)))


READERS = {
    "agent.yaml": lambda path: strict_yaml.load(path, AgentConfig),
    "site.yaml": lambda path: strict_yaml.load(path, SiteConfig),
    MANIFEST: lambda path: load_bundle(path.parent),
    "stage0.tflite": lambda path: read_verified(path, "0" * 64),
    "network.tflite": read_network,
    "mine.distree": lambda path: unpack(path, path.with_name("out")),
    "password": lambda path: read_password(BrokerSettings(host="hub", username="a", password_file=path)),
    "ca.crt": lambda path: tls_context(TlsSettings(ca_file=path)),
    "cam1.key": lambda path: tls_context(TlsSettings(cert_file=path, key_file=path)),
    "signing.key": load_signing_key,
    "picture.png": lambda path: read_file(GivenFile(name="it", path=path)),
    "audits.npz": load_recording,
    "inputs.npz": lambda path: ReplaySource(
        ReplaySourceConfig(kind="replay", path=path), Preprocessor(FASHION.manifest)
    ),
    "x.npz": lambda path: load_examples(path, spec=SPEC, preprocess=RULES),
    "set.csv": lambda path: load_examples(path, spec=SPEC, preprocess=RULES),
    "y.npy": lambda path: load_examples(_beside(path), spec=SPEC, preprocess=RULES),
    "t10k-images-idx3-ubyte.gz": lambda path: load_examples(path.parent, spec=SPEC, preprocess=RULES),
    "p.spool": lambda path: _told(path, _spool),
    "p.files": lambda path: _told(path, _journal),
    "p.plans": lambda path: _told(path, _seals),
    "store.db": lambda path: Store(path, read_only=True).__enter__().plans("p"),
    "labels.txt": lambda path: labels_of(str(path)),
}


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 30)


@pytest.mark.parametrize("make", [os.mkfifo, _device, Path.mkdir, _sparse], ids=["pipe", "device", "folder", "10 GB"])
@pytest.mark.parametrize("name", READERS)
def test_it_is_refused_at_once(tmp_path, name, make):
    path = tmp_path / name
    if name in ("y.npy", "labels.txt") and make is not _sparse:
        pytest.skip("what is no file is not taken for labels")
    make(path)
    tracemalloc.start()
    try:
        with pytest.raises(DistreeError) as caught:
            READERS[name](path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)
