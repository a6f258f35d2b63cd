"""The configuration reader: what fits is read, and each mistake is told in exactly one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distree import strict_yaml
from distree.errors import ConfigError, DistreeError
from distree.strict_yaml import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    host: str = "127.0.0.1"
    port: int = 1883
    username: str | None = None
    password_file: Path | None = None
    tls: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError(f"port: {self.port} is out of range", "choose 1 to 65535")
        if self.tls and self.username is None:
            raise ConfigError("tls needs a username", "give one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    kind: Literal["camera"]
    device: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    kind: Literal["folder", "directory"]
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    deadline_ms: int
    source: Camera | Folder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    bundle: Path
    origin: Origin | None = None
    stages: tuple[int, ...] = ()
    thresholds: tuple[float, ...] = ()
    codec: Literal["raw", "zlib", "off"] = "raw"
    level: Literal[0, 1, 9] = 1
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    device: str = "board"
    ratio: float = 0.5
    broker: Broker = Broker()
    pipelines: tuple[Pipeline, ...] = ()
    brokers: dict[str, Broker] = field(default_factory=dict)
    computed: int = field(default=3, init=False)


@dataclass(frozen=True)
class Needy:
    first: str
    second: int


@dataclass(frozen=True)
class Unreadable:
    when: bytes = b""


@dataclass(frozen=True)
class Tree:
    child: Tree | None = None


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(text, cls=Agent):
        data = text if isinstance(text, bytes) else text.encode()
        Path("agent.yaml").write_bytes(data)
        return load(Path("agent.yaml"), cls)

    return read


@pytest.fixture
def problems(read):
    def problems(text, cls=Agent):
        with pytest.raises(ConfigError) as caught:
            read(text, cls)
        return str(caught.value).split("\n")

    return problems


def test_reads_every_type(read, tmp_path):
    agent = read(
        """
device: cam-1
ratio: 1
broker: &broker {host: example, port: 8883, username: null, password_file: secrets/pw}
brokers: {spare: *broker}
pipelines:
  - bundle: bundles/fashion
    origin: {deadline_ms: 1_500, source: {kind: folder, path: /data}}
    stages: [0, 1]
    thresholds: [0.9, 1, .5, 1e3, -2.5e-1, .inf]
    codec: zlib
    level: 9
    labels: {"0": shirt, b: "2"}
  - bundle: ../other
    origin: {deadline_ms: 5, source: {kind: camera}}
"""
    )
    broker = Broker(host="example", port=8883, password_file=tmp_path / "secrets/pw")
    assert agent == Agent(
        device="cam-1",
        ratio=1.0,
        broker=broker,
        brokers={"spare": broker},
        pipelines=(
            Pipeline(
                bundle=tmp_path / "bundles/fashion",
                origin=Origin(deadline_ms=1500, source=Folder(kind="folder", path=Path("/data"))),
                stages=(0, 1),
                thresholds=(0.9, 1.0, 0.5, 1000.0, -0.25, float("inf")),
                codec="zlib",
                level=9,
                labels={"0": "shirt", "b": "2"},
            ),
            Pipeline(bundle=tmp_path / "../other", origin=Origin(deadline_ms=5, source=Camera(kind="camera"))),
        ),
    )
    assert type(agent.ratio) is float
    assert all(type(value) is float for value in agent.pipelines[0].thresholds)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "\ufeff{}"])
def test_an_empty_file_is_all_defaults(read, text):
    assert read(text) == Agent()


@pytest.mark.parametrize(
    ("word", "value"), [("yes", True), ("no", False), ("on", True), ("Off", False), ("TRUE", True)]
)
def test_booleans_of_yaml_1_1_are_booleans(read, word, value):
    assert read(f"{{username: x, tls: {word}}}", Broker).tls is value


ONE_PROBLEM = [
    # unknown and duplicate keys
    (
        "pipelines:\n- bundle: x\n  origin:\n    deadline: 500\n    deadline_ms: 5",
        "agent.yaml:4: pipelines[0].origin.deadline: unknown key (received 500); rename it to deadline_ms, or remove it",
    ),
    (
        "broker:\n  zzz: [1]",
        "agent.yaml:2: broker.zzz: unknown key (received a list); remove it, or use one of host, port, username, password_file, tls",
    ),
    (
        "computed: 4",
        "agent.yaml:1: computed: unknown key (received 4); remove it, or use one of device, ratio, broker, pipelines, brokers",
    ),
    (
        "broker:\n  password: hunter2",
        "agent.yaml:2: broker.password: unknown key (received a value that is not shown); rename it to password_file, or remove it",
    ),
    (
        "broker:\n  host: a\n  port: 1\n  host: b",
        "agent.yaml:4: broker.host: duplicate key, first on line 2; remove one of the two",
    ),
    ("brokers:\n  a: {}\n  a: {}", "agent.yaml:3: brokers.a: duplicate key, first on line 2; remove one of the two"),
    ("? [1]\n: 2", "agent.yaml:1: expected text as key, received a list; write a word, or text in quotes"),
    ("brokers: {5: {}}", "agent.yaml:1: brokers: expected text as key, received 5; quote it"),
    ("brokers:\n  no: {}", "agent.yaml:2: brokers: expected text as key, received no; quote it"),
    (
        "broker: &b {host: a}\nbrokers:\n  x:\n    <<: *b",
        "agent.yaml:4: brokers.x.<<: unknown key (received a mapping); remove it, or use one of host, port, username, password_file, tls",
    ),
    # scalars
    (
        "\n\nbroker: {port: abc}",
        "agent.yaml:3: broker.port: expected a whole number, received 'abc'; write one, such as 8",
    ),
    (
        "broker: {port: '1883'}",
        "agent.yaml:1: broker.port: expected a whole number, received '1883'; remove the quotes",
    ),
    ("broker: {port: 1.0}", "agent.yaml:1: broker.port: expected a whole number, received 1.0; write one, such as 8"),
    ("broker: {port: true}", "agent.yaml:1: broker.port: expected a whole number, received true; write one, such as 8"),
    (
        "broker: {port: 18:33}",
        "agent.yaml:1: broker.port: expected a whole number, received 18:33; write one, such as 8",
    ),
    (
        "broker: {port: 01883}",
        "agent.yaml:1: broker.port: expected a whole number, received '01883'; write one, such as 8",
    ),
    ("broker: {port: 017}", "agent.yaml:1: broker.port: expected a whole number, received 017; write one, such as 8"),
    ("broker: {port: 0x1F}", "agent.yaml:1: broker.port: expected a whole number, received 0x1F; write one, such as 8"),
    ("broker: {port: }", "agent.yaml:1: broker.port: expected a whole number, received nothing; write one, such as 8"),
    ("broker: {port: ~}", "agent.yaml:1: broker.port: expected a whole number, received nothing; write one, such as 8"),
    (
        "broker: {port: {}}",
        "agent.yaml:1: broker.port: expected a whole number, received a mapping; write one, such as 8",
    ),
    (
        "broker: {port: " + "9" * 90 + "}",
        f"agent.yaml:1: broker.port: expected a whole number, received {'9' * 60}…; write one, such as 8",
    ),
    ("device: 17", "agent.yaml:1: device: expected text, received 17; quote it"),
    ("device: no", "agent.yaml:1: device: expected text, received no; quote it"),
    ("device: 1:30", "agent.yaml:1: device: expected text, received 1:30; quote it"),
    ("device: 2024-01-01", "agent.yaml:1: device: expected text, received 2024-01-01; quote it"),
    ("device:", "agent.yaml:1: device: expected text, received nothing; write a word, or text in quotes"),
    ("device: [a]", "agent.yaml:1: device: expected text, received a list; write a word, or text in quotes"),
    ("device: !!binary aGk=", "agent.yaml:1: device: expected text, received aGk=; quote it"),
    ("device: !mine x", "agent.yaml:1: device: expected text, received x; write a word, or text in quotes"),
    ("ratio: half", "agent.yaml:1: ratio: expected a number, received 'half'; write one, such as 0.5"),
    ('ratio: "0.5"', "agent.yaml:1: ratio: expected a number, received '0.5'; remove the quotes"),
    ("ratio: .nan", "agent.yaml:1: ratio: expected a number, received .nan; write one, such as 0.5"),
    ("ratio: 1e999", "agent.yaml:1: ratio: expected a number, received '1e999'; write one, such as 0.5"),
    ("ratio: 1:30.5", "agent.yaml:1: ratio: expected a number, received 1:30.5; write one, such as 0.5"),
    ("ratio: false", "agent.yaml:1: ratio: expected a number, received false; write one, such as 0.5"),
    ("ratio: 0.5\n  s", "agent.yaml:1: ratio: expected a number, received '0.5 s'; write one, such as 0.5"),
    ("broker: {tls: 1}", "agent.yaml:1: broker.tls: expected true or false, received 1; write one of these"),
    ("broker: {tls: 'yes'}", "agent.yaml:1: broker.tls: expected true or false, received 'yes'; remove the quotes"),
    ("broker: {username: 5}", "agent.yaml:1: broker.username: expected text, received 5; quote it"),
    ("pipelines: [{bundle: 5}]", "agent.yaml:1: pipelines[0].bundle: expected a path, received 5; quote it"),
    # lists, mappings, literals, unions
    ("broker: x", "agent.yaml:1: broker: expected a mapping, received 'x'; write its keys below it, indented"),
    ("brokers: x", "agent.yaml:1: brokers: expected a mapping, received 'x'; write its keys below it, indented"),
    ("pipelines: {}", "agent.yaml:1: pipelines: expected a list, received a mapping; write a list, such as [a, b]"),
    ("[1]", "agent.yaml:1: expected a mapping, received a list; write its keys below it, indented"),
    ("---\n", "agent.yaml:2: expected a mapping, received nothing; write its keys below it, indented"),
    (
        "pipelines:\n- bundle: x\n  stages:\n  - 0\n  - one",
        "agent.yaml:5: pipelines[0].stages[1]: expected a whole number, received 'one'; write one, such as 8",
    ),
    (
        "pipelines:\n- {bundle: x, codec: zlip}",
        "agent.yaml:2: pipelines[0].codec: expected one of raw, zlib, off, received 'zlip'; write zlib",
    ),
    (
        "pipelines:\n- {bundle: x, codec: off}",
        "agent.yaml:2: pipelines[0].codec: expected one of raw, zlib, off, received off; quote it",
    ),
    (
        "pipelines:\n- {bundle: x, level: true}",
        "agent.yaml:2: pipelines[0].level: expected one of 0, 1, 9, received true; write one of these",
    ),
    (
        "pipelines:\n- {bundle: x, codec: [raw]}",
        "agent.yaml:2: pipelines[0].codec: expected one of raw, zlib, off, received a list; write one of these",
    ),
    (
        "pipelines:\n- {bundle: x, labels: {a: 1}}",
        "agent.yaml:2: pipelines[0].labels.a: expected text, received 1; quote it",
    ),
    (
        "pipelines:\n- bundle: x\n  origin:\n    deadline_ms: 5\n    source: {kind: camra}",
        "agent.yaml:5: pipelines[0].origin.source.kind: expected one of camera, folder, directory, "
        "received 'camra'; write camera",
    ),
    (
        "pipelines:\n- bundle: x\n  origin:\n    deadline_ms: 5\n    source: camera",
        "agent.yaml:5: pipelines[0].origin.source: expected a mapping, received 'camera'; write its keys below it, indented",
    ),
    (
        "pipelines:\n- bundle: x\n  origin:\n    deadline_ms: 5\n    source: {device: 0}",
        "agent.yaml: missing key pipelines[0].origin.source.kind; add it, with one of camera, folder, directory",
    ),
    (
        "pipelines:\n- bundle: x\n  origin:\n    deadline_ms: 5\n    source: {kind: folder}",
        "agent.yaml: missing key pipelines[0].origin.source.path; add it",
    ),
    ("pipelines:\n- {}", "agent.yaml: missing key pipelines[0].bundle; add it"),
    # checks of the dataclasses themselves
    ("broker:\n  host: a\n  port: 70000", "agent.yaml:3: broker.port: 70000 is out of range; choose 1 to 65535"),
    ("\nbroker:\n  host: a\n  tls: yes", "agent.yaml:3: broker: tls needs a username; give one"),
    # aliases are told at the text that is wrong
    (
        "broker: &b {port: abc}",
        "agent.yaml:1: broker.port: expected a whole number, received 'abc'; write one, such as 8",
    ),
    # not YAML
    (
        "device: [",
        "agent.yaml:1: not YAML: expected the node content, but found '<stream end>'; check the indentation, colons and quotes there",
    ),
    (
        "a: b\n c: d",
        "agent.yaml:2: not YAML: mapping values are not allowed here; check the indentation, colons and quotes there",
    ),
    (
        "device: *who",
        "agent.yaml:1: not YAML: found undefined alias 'who'; check the indentation, colons and quotes there",
    ),
    (
        "a: 1\n---\nb: 2",
        "agent.yaml:2: not YAML: but found another document; check the indentation, colons and quotes there",
    ),
    ("device: a\nratio: \x07", "agent.yaml:2: not YAML: special characters are not allowed; remove the character"),
    (b"device: a\nratio: \xff\n", "agent.yaml:2: not UTF-8 (byte 0xff); save the file as UTF-8"),
    ("a: " + "[" * 800, "agent.yaml: nested too deeply; check that it is the right file"),
]


@pytest.mark.parametrize(("text", "line"), ONE_PROBLEM, ids=range(len(ONE_PROBLEM)))
def test_one_problem_is_one_exact_line(problems, text, line):
    assert problems(text) == [line]


def test_all_problems_are_told_at_once(problems):
    text = "device: 5\nbroker:\n  port: abc\n  hots: x\n  tls: 1\n"
    text += "pipelines:\n- bundel: x\n  stages: [a, 1, b]\n"
    assert problems(text) == [
        "agent.yaml:1: device: expected text, received 5; quote it",
        "agent.yaml:3: broker.port: expected a whole number, received 'abc'; write one, such as 8",
        "agent.yaml:4: broker.hots: unknown key (received 'x'); rename it to host, or remove it",
        "agent.yaml:5: broker.tls: expected true or false, received 1; write one of these",
        "agent.yaml:7: pipelines[0].bundel: unknown key (received 'x'); rename it to bundle, or remove it",
        "agent.yaml:8: pipelines[0].stages[0]: expected a whole number, received 'a'; write one, such as 8",
        "agent.yaml:8: pipelines[0].stages[2]: expected a whole number, received 'b'; write one, such as 8",
        "agent.yaml: missing key pipelines[0].bundle; add it",
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    drop: strict_yaml.Share


@dataclass(frozen=True)
class Store:
    path: Path = Path("state/store.db")
    days: int = 7


@dataclass(frozen=True)
class Places:
    folder: Path = Path("state")
    elsewhere: Path = Path("/var/lib")
    store: Store = field(default_factory=Store)
    key: Path | None = None


@pytest.mark.parametrize("text", ["{}", "store: {}", "store: {days: 7}", "folder: state"])
def test_defaults_are_taken_from_the_folder_of_the_file_as_what_is_given_is(tmp_path, text):
    path = tmp_path / "sub" / "places.yaml"
    path.parent.mkdir()
    path.write_text(text)
    here = path.parent
    assert load(path, Places) == Places(folder=here / "state", store=Store(path=here / "state" / "store.db"))


@pytest.mark.parametrize(
    ("text", "value"), [("1%", 0.01), ("0.5 %", 0.005), ("0.25", 0.25), ("0", 0.0), ("100%", 1.0), ("1", 1.0)]
)
def test_a_share_is_a_percentage_or_a_number(tmp_path, text, value):
    path = tmp_path / "goal.yaml"
    path.write_text(f"drop: {text}")
    assert load(path, Goal).drop == pytest.approx(value)


@pytest.mark.parametrize("text", ["101%", "-1%", "2", "1%%", "1 % %", "'1%'", "x", "[1]", ".inf", "1e-1000%x"])
def test_what_is_no_share_is_refused(tmp_path, text):
    path = tmp_path / "goal.yaml"
    path.write_text(f"drop: {text}")
    with pytest.raises(ConfigError, match=r"drop: expected a share from 0% to 100%, received"):
        load(path, Goal)


def test_an_empty_file_misses_every_required_key(problems):
    assert problems("", Needy) == ["agent.yaml: missing key first; add it", "agent.yaml: missing key second; add it"]


def test_a_mapping_with_problems_is_not_also_checked_as_a_whole(problems):
    text = "broker: {port: 70000, tls: 3}"
    assert problems(text) == ["agent.yaml:1: broker.tls: expected true or false, received 3; write one of these"]


def test_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as caught:
        load(path, Agent)
    assert (
        str(caught.value) == f"{path}: cannot be read (No such file or directory); check the path and its permissions"
    )


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, Agent)
    assert (
        str(caught.value)
        == f"{tmp_path}: cannot be read (it is a folder, not a file); check the path and its permissions"
    )


def test_a_file_that_is_too_large(problems):
    assert problems("#" * (strict_yaml.MAX_BYTES + 1)) == [
        "agent.yaml: cannot be read (longer than 1,048,576 bytes); check that it is the right file"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),
        "a: &a [*a]",
        "a: &a {b: *a}",
        f"a: [{'x,' * 10_000}]",
    ],
    ids=["laughs", "list in itself", "mapping in itself", "wide"],
)
def test_the_nodes_are_bounded_with_aliases_expanded(problems, text):
    assert problems(text) == [
        "agent.yaml: more than 10000 nodes once aliases are expanded; check that it is the right file"
    ]


def test_recursive_dataclasses_are_read(read):
    assert read("child: {child: {}}", Tree) == Tree(Tree(Tree()))


def test_a_type_that_is_not_understood_is_the_programmers_fault(read):
    with pytest.raises(TypeError, match="bytes"):
        read("when: x", Unreadable)


def test_a_long_or_unprintable_key_stays_on_one_line(problems):
    [line] = problems(f'"a\\n{"b" * 99}": 1')
    assert line.startswith("agent.yaml:1: 'a\\nbbb")
    assert len(line) < 200


YAML_ISH = st.text(alphabet="ab:-[]{}&*!|>'\"#%@,? \n0159.", max_size=60)


@given(st.one_of(st.text(max_size=80), YAML_ISH.map("broker: ".__add__)))
def test_any_text_is_read_or_refused_in_plain_lines(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode())
    lines = []
    try:
        load(path, Agent)
    except DistreeError as error:
        lines = str(error).split("\n")
    assert all(line.startswith(str(path)) for line in lines)
