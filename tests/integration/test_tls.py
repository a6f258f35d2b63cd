"""TLS to a real mosquitto, with certificates made here: what works, and one line for each way in which it does not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import pytest
import yaml
from setup_broker import PATIENCE_S, Certificates, Mosquitto

from device_agent.config import load_agent_config
from distree.broker_settings import BrokerSettings, Session, TlsSettings
from distree.errors import BrokerError, ConfigError, Problem
from distree.transport import make_transport
from distree.transport.base import Received, Transport

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def broker(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker"), *certificates.listener()) as running:
        yield running


class Listener:
    def __init__(self) -> None:
        self.messages: list[Received] = []
        self.transport: Transport

    def connected(self) -> None: ...

    def disconnected(self, why: Problem) -> None: ...

    def received(self, message: Received) -> None:
        self.messages.append(message)
        self.transport.acknowledge(message.token)

    def published(self, token: str) -> None: ...

    def given_up(self, token: str) -> None:
        pass

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        pass


Connect = Callable[..., Listener]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:

        def make(
            port: int,
            tls: TlsSettings | None,
            host: str = "127.0.0.1",
            topic: str | None = None,
            patience_s: float = PATIENCE_S,
        ) -> Listener:
            listener = Listener()
            settings = BrokerSettings(host=host, port=port, tls=tls)
            listener.transport = make_transport(settings, client_id=f"tls-{os.urandom(4).hex()}", session=Session.NONE)
            stack.callback(listener.transport.close)
            listener.transport.open(listener, [(topic, 1)] if topic else [])
            listener.transport.connect_now(patience_s)
            return listener

        yield make


def test_messages_of_all_sizes_travel_in_order(broker: Mosquitto, certificates: Certificates, connect: Connect) -> None:
    """TLS hands over records of at most 16 KiB, and holds bytes that the socket does not announce."""
    one = connect(broker.port, TlsSettings(ca_file=certificates.ca), topic="sizes")
    sent = [
        bytes([index]) * size for index, size in enumerate((0, 1, 127, 128, 16_383, 16_385, 65_536, 300_000, 3) * 5)
    ]
    for payload in sent:
        one.transport.publish("sizes", payload, qos=1)
    for _ in range(3000):
        if len(one.messages) == len(sent):
            break
        one.transport.poll(0.02)
    assert [message.payload for message in one.messages] == sent


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_names_and_addresses_are_verified(
    broker: Mosquitto, certificates: Certificates, connect: Connect, host: str
) -> None:
    assert connect(broker.port, TlsSettings(ca_file=certificates.ca), host=host).transport.online


def test_an_unknown_authority(broker: Mosquitto, tmp_path: Path, connect: Connect) -> None:
    with pytest.raises(BrokerError, match=r"an authority that this system does not trust; set broker\.tls\.ca_file"):
        connect(broker.port, TlsSettings())
    other = Certificates(tmp_path / "other")
    with pytest.raises(
        BrokerError, match=r"not issued by the authority in .*other/ca\.crt; correct broker\.tls\.ca_file"
    ):
        connect(broker.port, TlsSettings(ca_file=other.ca))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            {"start": "20200101000000Z", "end": "20210101000000Z"},
            r"has expired; renew it \(`distree broker renew`, if distree made the broker\), or correct this machine's clock",
        ),
        ({"start": "20990101000000Z", "end": "21000101000000Z"}, "is not valid yet; correct this machine's clock"),
        ({"alt": "DNS:elsewhere.example"}, "is not valid for the name '127.0.0.1'; set broker.host"),
    ],
)
def test_a_certificate_that_is_no_good(
    certificates: Certificates, tmp_path: Path, connect: Connect, how: dict[str, str], words: str
) -> None:
    with (
        Mosquitto(tmp_path, *certificates.listener("bad", **how)) as broker,
        pytest.raises(BrokerError, match=words),
    ):
        connect(broker.port, TlsSettings(ca_file=certificates.ca))


def test_a_port_without_tls_and_one_with(
    broker: Mosquitto, certificates: Certificates, tmp_path: Path, connect: Connect
) -> None:
    with (
        Mosquitto(tmp_path) as plain,
        pytest.raises(BrokerError, match=rf"127.0.0.1:{plain.port} does not speak TLS; correct broker.port \(8883"),
    ):
        connect(plain.port, TlsSettings(ca_file=certificates.ca), patience_s=3.0)
    transport = make_transport(BrokerSettings(port=broker.port), client_id="tls-none", session=Session.NONE)
    transport.open(Listener(), [])
    try:
        with pytest.raises(BrokerError, match=r"set broker\.tls .*if it requires TLS"):
            transport.connect_now(3)
    finally:
        transport.close()


def test_client_certificates(certificates: Certificates, tmp_path: Path, connect: Connect) -> None:
    cert, key = certificates.sign("cam1")
    others = {
        "stranger": Certificates(tmp_path / "other").sign("stranger"),
        "late": certificates.sign("late", start="20200101000000Z", end="20210101000000Z"),
    }
    pairs = {name: {"cert_file": cert, "key_file": key} for name, (cert, key) in others.items()} | {"": {}}
    with Mosquitto(tmp_path, *certificates.listener(), "require_certificate true") as broker:
        assert connect(broker.port, TlsSettings(ca_file=certificates.ca, cert_file=cert, key_file=key)).transport.online
        # With TLS 1.3, which both ends prefer, a broker objects when the client has begun to speak.
        for name, words in (
            ("", r"requires a client certificate; set broker\.tls\.cert_file and broker\.tls\.key_file"),
            ("stranger", r"rejects the certificate in .*stranger\.crt \(unknown ca\); correct broker\.tls\.cert_file"),
            ("late", r"rejects the certificate in .*late\.crt \(certificate expired\); correct broker\.tls\.cert_file"),
        ):
            for _ in range(3):
                began = time.monotonic()
                with pytest.raises(BrokerError, match=words):
                    connect(broker.port, TlsSettings(ca_file=certificates.ca, **pairs[name]))
                assert time.monotonic() - began < PATIENCE_S / 2, "it does not wait for what waiting cannot mend"


def test_the_name_in_a_board_s_certificate_may_be_its_user_name(
    certificates: Certificates, tmp_path: Path, connect: Connect
) -> None:
    cert, key = certificates.sign("cam1")
    acl = tmp_path / "acl"
    acl.write_text("pattern readwrite own/%u\n")
    acl.chmod(0o600)
    named = ("require_certificate true", "use_identity_as_username true", f"acl_file {acl}")
    with Mosquitto(tmp_path, *certificates.listener(), *named) as broker:
        listener = connect(
            broker.port, TlsSettings(ca_file=certificates.ca, cert_file=cert, key_file=key), topic="own/+"
        )
        for name in ("cam2", "cam1"):
            listener.transport.publish(f"own/{name}", name.encode(), qos=1)
        ends_at = time.monotonic() + PATIENCE_S
        while not listener.messages and time.monotonic() < ends_at:
            listener.transport.poll(0.1)
    assert [message.payload for message in listener.messages] == [b"cam1"]


def test_files_that_are_no_good(certificates: Certificates, tmp_path: Path, connect: Connect) -> None:
    cert, key = certificates.sign("cam2")
    _, other = certificates.sign("cam3")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("no certificate\n")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(locked)], check=True
    )
    for tls, words in (
        (TlsSettings(ca_file=tmp_path / "none"), "ca_file .*none: no such file"),
        (TlsSettings(ca_file=rubbish), "ca_file .*rubbish: contains no PEM certificate; name a file that contains one"),
        (TlsSettings(cert_file=cert, key_file=tmp_path / "none"), "key_file .*none: no such file"),
        (TlsSettings(cert_file=rubbish, key_file=key), "is not PEM"),
        (TlsSettings(cert_file=cert, key_file=other), "does not match the key in .*cam3.key"),
        (TlsSettings(cert_file=cert, key_file=locked), "has a passphrase"),
    ):
        with pytest.raises(ConfigError, match=rf"broker\.tls\..*{words}") as caught:
            connect(1, tls)
        assert "\n" not in str(caught.value)


def test_a_renewed_certificate_is_taken_without_a_restart(
    certificates: Certificates, tmp_path: Path, connect: Connect
) -> None:
    """Files are read for each connection: an authority that comes later mends what runs."""
    ca = tmp_path / "ca.crt"
    ca.write_text(Certificates(tmp_path / "old").ca.read_text())
    with Mosquitto(tmp_path, *certificates.listener()) as broker:
        settings = BrokerSettings(port=broker.port, tls=TlsSettings(ca_file=ca))
        transport = make_transport(settings, client_id="renewed", session=Session.NONE)
        transport.open(Listener(), [])
        try:
            with pytest.raises(BrokerError, match="not issued by the authority in"):
                transport.connect_now(PATIENCE_S)
            ca.write_text(certificates.ca.read_text())
            for _ in range(2000):
                if transport.online:
                    break
                transport.poll(0.02)
            assert transport.online
        finally:
            transport.close()


def test_settings_in_yaml(tmp_path: Path) -> None:
    def read(**tls: str) -> TlsSettings | None:
        path = tmp_path / "agent.yaml"
        broker = {"port": 8883, "tls": tls}
        pipelines = [{"name": "p", "bundle": "fashion", "stages": [0]}]
        path.write_text(yaml.safe_dump({"site": "lab", "device": "cam1", "broker": broker, "pipelines": pipelines}))
        return load_agent_config(path).broker.tls

    assert read() == TlsSettings()
    assert read(ca_file="ca.crt") == TlsSettings(ca_file=tmp_path / "ca.crt")
    with pytest.raises(
        ConfigError, match=r"agent.yaml:\d+: broker.tls.cert_file: a client certificate needs its key; give both"
    ):
        read(cert_file="a.crt")
    with pytest.raises(ConfigError, match="unknown key"):
        read(insecure="yes")


def distree(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run(arguments)


def test_commands_take_mqtts(broker: Mosquitto, certificates: Certificates, connect: Connect) -> None:
    sender = connect(broker.port, TlsSettings(ca_file=certificates.ca))
    payload = (ROOT / "tests" / "compat" / "0.1.0" / "result.bin").read_bytes()
    sender.transport.publish("distree/1/lab/pipeline/p/result/cam1", payload, qos=1, retain=True)
    for _ in range(10):
        sender.transport.poll(0.05)
    where = ["--broker", f"mqtts://localhost:{broker.port}", "--site", "lab"]
    done = distree("results", *where, "--ca-file", str(certificates.ca), "--count", "1", "--timeout", "20")
    assert (done.returncode, done.stdout) == (0, payload.decode() + "\n"), done.stderr
    done = distree("results", *where)
    assert done.returncode == 1
    assert "set broker.tls.ca_file to the CA certificate" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--broker", "http://a:1"], "expected mqtt://HOST:PORT or mqtts://HOST:PORT"),
        (["--broker", "a:1", "--ca-file", "x"], "write mqtts://HOST:PORT"),
        (
            ["--broker", "mqtts://a", "--cert-file", "x"],
            "--cert-file and --key-file: only one is given; give both or none",
        ),
        (["--broker", "mqtts://a", "--ca-file", "/none"], "/none: no such file"),
    ],
)
def test_options_that_do_not_fit(options: list[str], words: str) -> None:
    done = distree("results", "--site", "lab", *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
