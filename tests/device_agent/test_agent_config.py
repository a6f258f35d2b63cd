"""agent.yaml: what may be left out, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from device_agent.config import AgentConfig, AgentPipelineConfig, load_agent_config
from device_agent.sources.directory import DirectorySourceConfig
from device_agent.sources.mqtt import MqttSourceConfig
from device_agent.sources.python import PythonSourceConfig
from device_agent.sources.replay import ReplaySourceConfig
from distree.broker_settings import BrokerSettings
from distree.bundle.loading import find_bundle
from distree.errors import ConfigError
from distree.signing import SigningKey

LEAST = {"site": "lab", "device": "cam", "pipelines": [{"name": "p", "bundle": "fashion", "stages": [0]}]}


@pytest.fixture
def load(tmp_path):
    def load(**changes):
        path = tmp_path / "agent.yaml"
        path.write_text(yaml.safe_dump({**LEAST, **changes}))
        return load_agent_config(path)

    return load


def origin(**changes):
    return {"pipelines": [{"name": "p", "bundle": "fashion", "origin": {"source": {"kind": "mqtt"}, **changes}}]}


def source(**changes):
    return origin(source=changes)


def test_three_keys_are_enough(load, tmp_path):
    config = load()
    assert (config.site, config.device, config.client_id) == ("lab", "cam", "distree_lab_cam")
    (pipeline,) = config.pipelines
    assert (pipeline.branch, pipeline.fuse, pipeline.branch_timeout_ms) == (None, False, 200)
    assert (pipeline.name, pipeline.bundle, pipeline.stages, pipeline.origin) == (
        "p",
        str(find_bundle("fashion")),
        (0,),
        None,
    )
    assert config.broker == BrokerSettings(host="127.0.0.1", port=1883, username=None, password_file=None)
    assert (config.num_threads, config.codec, config.self_test) == (1, "raw", True)
    assert (config.inbox.max_messages, config.inbox.max_kib) == (64, 4096)
    assert (
        config.receive_maximum,
        config.telemetry_interval_s,
        config.inference_timeout_s,
        config.shutdown_timeout_s,
    ) == (16, 2.0, 30.0, 10.0)


def test_an_origin_has_a_deadline_of_a_second_and_no_spool(load):
    made = load(**origin()).pipelines[0].origin
    assert (made.deadline_ms, made.max_pending, made.min_retry_ms, made.spool) == (1000, 64, 100, False)
    assert (made.fuser, made.mode) == (None, "gated")
    assert isinstance(made.source, MqttSourceConfig)


def test_a_board_may_only_fuse(load):
    (made,) = load(pipelines=[{"name": "p", "bundle": "fashion", "fuse": True, "branch_timeout_ms": 50}]).pipelines
    assert (made.stages, made.origin, made.fuse, made.branch_timeout_ms) == ((), None, True, 50.0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kind": "python"}, PythonSourceConfig(kind="python")),
        ({"kind": "replay", "path": "/x.npz"}, ReplaySourceConfig(kind="replay", path=Path("/x.npz"))),
        (
            {"kind": "replay", "path": "/x.npz", "rate_hz": 2, "max_inputs": 3, "repeat": True},
            ReplaySourceConfig(kind="replay", path=Path("/x.npz"), rate_hz=2.0, max_inputs=3, repeat=True),
        ),
        ({"kind": "directory", "path": "/in"}, DirectorySourceConfig(kind="directory", path=Path("/in"))),
        (
            {"kind": "directory", "path": "/in", "after": "delete", "poll_interval_ms": 50},
            DirectorySourceConfig(kind="directory", path=Path("/in"), after="delete", poll_interval_ms=50.0),
        ),
    ],
)
def test_each_source_is_read_by_its_kind(load, given, expected):
    assert load(**source(**given)).pipelines[0].origin.source == expected


def test_paths_are_taken_from_the_folder_of_the_file(load, tmp_path):
    config = load(state_dir="here", broker={"password_file": "secret"}, **source(kind="replay", path="in/x.npz"))
    assert config.state_dir == tmp_path / "here"
    assert config.broker.password_file == tmp_path / "secret"
    assert config.pipelines[0].origin.source.path == tmp_path / "in" / "x.npz"


def test_defaults_and_bundles_are_taken_from_the_folder_of_the_file_too(load, tmp_path, monkeypatch):
    away = tmp_path / "away"
    for folder in (tmp_path / "mine", away / "mine", away / "other", away / "fashion"):
        folder.mkdir(parents=True)
        (folder / "bundle.yaml").touch()
    monkeypatch.chdir(away)

    def bundle(name):
        return Path(load(pipelines=[{**PIPELINE, "bundle": name}]).pipelines[0].bundle)

    assert load().state_dir == tmp_path / "state"
    assert bundle("mine") == bundle("./mine") == tmp_path / "mine"
    assert bundle(str(away / "mine")) == away / "mine"
    assert bundle("fashion") == find_bundle("cifar10-wide").parent / "fashion", "of the zoo, not of where it is started"
    assert bundle("other") == tmp_path / "other", "not there, and not looked for where it is started"


@pytest.mark.parametrize(("one", "other", "is_well"), [("move", "move", 0), ("move", "keep", 0), ("keep", "keep", 1)])
def test_no_pipeline_takes_files_away_from_another(load, one, other, is_well):
    pipelines = [
        {**PIPELINE, "name": name, "origin": {"source": {"kind": "directory", "path": path, "after": after}}}
        for name, path, after in (("a", "in", one), ("b", "in", other), ("c", "elsewhere", "move"))
    ]
    if is_well:
        assert len(load(pipelines=pipelines).pipelines) == 3
        return
    with pytest.raises(
        ConfigError, match=r"two take files from .*/in; give each a folder of its own, or set after: keep"
    ):
        load(pipelines=pipelines)


PIPELINE = LEAST["pipelines"][0]
WRONG = [
    ({"site": "Lab"}, "site: 'Lab' is not an id"),
    ({"device": "a/b"}, "device: 'a/b' is not an id"),
    ({"device": "x" * 33}, "is not an id"),
    ({"device": ""}, "is not an id"),
    ({"device": "all"}, "device: 'all' is reserved for topics that address all boards of a stage; use another id"),
    ({"pipelines": []}, "pipelines: none given; give at least one"),
    ({"pipelines": [PIPELINE, PIPELINE]}, "pipelines: two have the same name"),
    ({"pipelines": [{**PIPELINE, "name": "+"}]}, r"pipelines\[0\].name: '\+' is not an id"),
    (
        {"pipelines": [{**PIPELINE, "stages": []}]},
        "stages: this board has nothing to do; give stages, an origin, or fuse: true",
    ),
    ({"pipelines": [{**PIPELINE, "stages": [1, 1]}]}, r"stages: \[1, 1\] lists a stage twice"),
    ({"pipelines": [{**PIPELINE, "stages": [-1]}]}, "stages: -1 is negative; count stages from 0"),
    ({"pipelines": [{**PIPELINE, "stages": 0}]}, "stages: expected a list"),
    ({"pipelines": [{**PIPELINE, "stages": ["0"]}]}, r"stages\[0\]: expected a whole number"),
    ({"pipelines": [{**PIPELINE, "branch": -1}]}, r"pipelines\[0\].branch: -1 is negative"),
    ({"pipelines": [{**PIPELINE, "stages": [], "fuse": True, "branch": 0}]}, "branch: there are no stages"),
    ({"pipelines": [{**PIPELINE, "fuse": "hub"}]}, "fuse: expected true or false"),
    (
        {"pipelines": [{**PIPELINE, "branch_timeout_ms": 0}]},
        "branch_timeout_ms: 0 is out of range; choose a finite value above 0",
    ),
    (origin(fuser="Hub"), "fuser: 'Hub' is not an id"),
    (origin(fuser="all"), "fuser: 'all' is reserved"),
    (origin(mode="eagre"), "mode: expected one of gated, eager, received 'eagre'; write eager"),
    *(({name: 0}, f"{name}: 0 is out of range") for name in ("num_threads", "receive_maximum")),
    *(
        ({name: -1.5}, f"{name}: -1.5 is out of range")
        for name in ("telemetry_interval_s", "inference_timeout_s", "shutdown_timeout_s")
    ),
    *(({"inbox": {name: 0}}, f"inbox.{name}: 0 is out of range") for name in ("max_messages", "max_kib")),
    *((origin(**{name: 0}), f"{name}: 0 is out of range") for name in ("deadline_ms", "max_pending", "min_retry_ms")),
    (origin(max_pending=1.5), "max_pending: expected a whole number, received 1.5"),
    (origin(spool="yes"), "spool: expected true or false"),
    (
        source(kind="telepathy"),
        "source.kind: expected one of directory, camera, microphone, stream, mqtt, replay, python",
    ),
    (source(path="x"), "missing key pipelines[0].origin.source.kind"),
    (source(kind="replay"), "missing key pipelines[0].origin.source.path"),
    (source(kind="replay", path="x", rate_hz=0), "rate_hz: 0 is out of range"),
    (source(kind="replay", path="x", max_inputs=0), "max_inputs: 0 is out of range"),
    (source(kind="directory", path="x", poll_interval_ms=0), "poll_interval_ms: 0 is out of range"),
    (source(kind="directory", path="x", quiet_ms=0), "quiet_ms: 0 is out of range"),
    (source(kind="directory", path="x", keep_files=0), "keep_files: 0 is out of range"),
    (source(kind="directory", path="x", keep_mib=-1), "keep_mib: -1 is out of range"),
    (source(kind="directory", path="x", after="burn"), "after: expected one of move, delete, keep, received 'burn'"),
    (source(kind="mqtt", colour="x"), "colour: unknown key"),
    (source(kind="mqtt", topic="distree/#"), "topic: 'distree/#' covers topics of DistrEE"),
    (source(kind="mqtt", topic="a/#/b"), "topic: 'a/#/b' is not a topic filter; let + stand for a whole level"),
    (source(kind="mqtt", json_field="a..b"), "json_field: 'a..b' is not a field"),
    (source(kind="mqtt", retained="always"), "retained: expected one of ignore, take, received 'always'"),
    ({"codec": "lz4"}, "codec: expected one of raw, zlib"),
    ({"telemetry_interval_s": None}, "telemetry_interval_s: expected a number, received nothing"),
    ({"num_threads": True}, "num_threads: expected a whole number"),
]


@pytest.mark.parametrize(
    ("changes", "message"), WRONG, ids=[f"{n}-{message[:30]}" for n, (_, message) in enumerate(WRONG)]
)
def test_what_makes_no_sense_is_refused_with_file_and_key(load, changes, message):
    with pytest.raises(ConfigError) as caught:
        load(**changes)
    assert "agent.yaml:" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert message.replace("\\", "") in str(caught.value)


def test_a_configuration_made_by_a_program_is_checked_alike():
    with pytest.raises(ConfigError, match="pipelines: none given; give at least one"):
        AgentConfig(site="lab", device="cam", pipelines=())


def test_a_folder_of_bundles_makes_its_bundles_known_by_name(load, tmp_path):
    for name in ("clothes", "fashion"):
        (tmp_path / "shelf" / name).mkdir(parents=True)
        (tmp_path / "shelf" / name / "bundle.yaml").touch()
    bundles = {
        name: load(bundles_dir="shelf", pipelines=[{**PIPELINE, "bundle": name}]).pipelines[0].bundle
        for name in ("clothes", "fashion", "unknown")
    }
    assert bundles == {
        "clothes": str(tmp_path / "shelf" / "clothes"),
        "fashion": str(find_bundle("fashion")),  # names of shipped bundles are not taken
        "unknown": str(tmp_path / "unknown"),
    }


def test_no_two_agents_share_a_client_id():
    def ident(site, device):
        return AgentConfig(
            site=site, device=device, pipelines=(AgentPipelineConfig(name="p", bundle="fashion", stages=(0,)),)
        ).client_id

    assert len({ident(*pair) for pair in (("a-b", "c"), ("a", "b-c"), ("a", "b"), ("b", "a"))}) == 4


def test_keys_of_the_orchestrator_are_checked_and_need_a_place_to_remember_its_plans(load, monkeypatch):
    key = SigningKey(bytes(32)).public
    assert not load().keeps_state
    config = load(plan_keys=[key])
    assert (config.plan_keys, config.keeps_state) == ((key,), True)
    with pytest.raises(ConfigError, match=r"agent\.yaml.*plan_keys: 'ed25519:x' is no public key; copy what"):
        load(plan_keys=["ed25519:x"])
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(ConfigError, match=r"plan_keys: signatures need the package cryptography; run: pip install"):
        load(plan_keys=[key])
    assert load().plan_keys == ()
