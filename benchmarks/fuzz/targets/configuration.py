"""Files that people write: YAML of every kind, and the small ones beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.fuzz.target import Form, Target, constant, from_file
from broker_config.site.config import SiteConfig
from device_agent.config import AgentConfig
from device_agent.plan_seals import PlanSeals
from distree import strict_yaml
from distree.broker_settings import BrokerSettings, TlsSettings
from distree.signing import load_signing_key, new_signing_key
from distree.transport.credentials import read_password, tls_context
from model_zoo.split.cli import labels_of
from model_zoo.split.declared import DeclaredInput
from orchestrator.config import OrchestratorConfig
from orchestrator.simulator.config import FleetConfig

_EXAMPLES = Path(__file__).parents[3] / "examples"

_SITE = b"""\
site: lab
host: 192.168.1.10
port: 8883
tls: true
login: passwords
users:
  - {name: cam1, roles: [origin, stage]}
  - {name: hub, roles: [orchestrator, administrator]}
"""
_DECLARED = b"""\
input: {dtype: int16, shape: [8000], rate_hz: 8000}
preprocess:
  layout: nhwc
  window: {hop: 4000, short: pad}
  frontend: {kind: logmel, frame: 256, step: 128, bands: 40, low_hz: 20, high_hz: 4000, power: 2}
"""
_ALIASES = b"""\
site: &name lab
device: *name
broker: {host: hub, port: 1883}
pipelines:
  - {name: p, bundle: fashion, stages: &all [0, 1, 2]}
  - {name: q, bundle: fashion, stages: *all}
"""


def _yaml(folder: Path) -> Sequence[Form]:
    given: tuple[tuple[str, type, bytes], ...] = (
        ("agent.yaml", AgentConfig, (_EXAMPLES / "agent.yaml").read_bytes()),
        ("agent.yaml of a stage", AgentConfig, (_EXAMPLES / "stage.yaml").read_bytes()),
        ("orchestrator.yaml", OrchestratorConfig, (_EXAMPLES / "orchestrator.yaml").read_bytes()),
        ("fleet.yaml", FleetConfig, (_EXAMPLES / "fleet.yaml").read_bytes()),
        ("site.yaml", SiteConfig, _SITE),
        ("input.yaml", DeclaredInput, _DECLARED),
        ("aliases", AgentConfig, _ALIASES),
    )
    forms = []
    for name, cls, content in given:
        path = folder / "file.yaml"

        def read(path: Path = path, cls: type = cls) -> object:
            return strict_yaml.load(path, cls)

        forms.append(Form(name, constant(content), from_file(path, read), "text"))
    return forms


def _secrets(folder: Path) -> Sequence[Form]:
    from broker_config.site.certificates import Authority

    key = folder / "key"
    new_signing_key(key)
    password, labels, pem, plans = folder / "secret", folder / "labels.txt", folder / "ca.crt", folder / "plans.json"
    authority = Authority(folder / "authority")
    authority.create("lab")
    told: list[str] = []

    def read_plans() -> object:
        told.clear()
        seals = PlanSeals([], plans, lambda problem: told.append(str(problem)))
        assert all(len(text) < 500 for text in told)
        return seals

    def tls() -> object:
        return tls_context(TlsSettings(ca_file=pem))

    settings = BrokerSettings(host="hub", username="cam1", password_file=password)
    seals = b'{"a1b2c3d4e5f60718": [17, "%s"]}' % (b"ab" * 64)
    files: tuple[tuple[str, Path, bytes, Callable[[], object]], ...] = (
        ("private key", key, key.read_bytes(), lambda: load_signing_key(key)),
        ("password", password, b"s3cret\n", lambda: read_password(settings)),
        ("labels", labels, b"left\nright\nstill\n", lambda: labels_of(str(labels))),
        ("certificate", pem, authority.certificate.read_bytes(), tls),
        ("numbers of plans", plans, seals, read_plans),
    )
    return [Form(name, constant(content), from_file(path, read), "text") for name, path, content, read in files]


YAML = Target("yaml", "files", 18, _yaml, 32)
SECRETS = Target("secrets", "files", 4, _secrets, 8)
