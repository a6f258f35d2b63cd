"""Addresses of brokers: all the ways in which people write them, and one parser."""

from __future__ import annotations

import pytest

from distree.apps.dashboard.page import check_broker
from distree.broker_address import host_fault, parse_address
from distree.broker_settings import BrokerSettings
from distree.client.broker_options import broker_at
from distree.errors import ConfigError

RIGHT = {
    "hub:1883": ("", "hub", 1883),
    " hub:1883 ": ("", "hub", 1883),
    "hub.local:65535": ("", "hub.local", 65535),
    "192.168.1.10:1": ("", "192.168.1.10", 1),
    "[::1]:1883": ("", "::1", 1883),
    "[fe80::1%eth0]:1883": ("", "fe80::1%eth0", 1883),
    "[fe80::1%25eth0]:1883": ("", "fe80::1%eth0", 1883),
    "hub:1883/": ("", "hub", 1883),
    "mqtt://hub": ("mqtt", "hub", 1883),
    "MQTTS://hub/": ("mqtts", "hub", 8883),
    "mqtt://[::1]": ("mqtt", "::1", 1883),
    "mqtts://[2001:db8::7]:8884/": ("mqtts", "2001:db8::7", 8884),
    "bücher.example:1883": ("", "bücher.example", 1883),
}

WRONG = {
    "": "write, for example",
    "hub": "add the port, as in hub:1883",
    "[::1]": "add the port",
    "hub:": "add the port",
    "hub:0": "choose a port",
    "hub:65536": "choose a port",
    "hub:-1": "choose a port",
    "hub:+1883": "choose a port",
    "hub:1_883": "choose a port",
    "hub:99999999999999999999": "choose a port",
    "hub:١٨٨٣": "choose a port",
    "hub:mqtt": "choose a port",
    ":1883": "write, for example",
    "::1": "as in [::1]:1883",
    "fe80::1%eth0": "as in [fe80::1%eth0]:1883",
    "mqtts://fe80::1": "as in [fe80::1]:8883",
    "::1:1883": "in brackets",
    "[::1:1883": "write, for example",
    "[hub]:1883": "write, for example",
    "[::1]1883": "write, for example",
    "[::1%]:1883": "write, for example",
    "a b:1883": "write, for example",
    "mqtt://": "add the name or address",
    "mqtt:///": "add the name or address",
    "://hub": "begin it with mqtt:// or mqtts://",
    "http://hub:1883": "begin it with mqtt:// or mqtts://",
    "tcp://hub:1883": "begin it with mqtt:// or mqtts://",
    "mqtt://mqtt://hub": "begin it with",
    "mqtt://hub:1883/topic": "remove what follows the port",
    "mqtt://hub//": "remove what follows the port",
    "hub:1883?x": "remove what follows the port",
    "mqtt://ann:secret@hub": "the login goes into username and password_file",
    "ann:secret@hub:1883": "the login goes into username and password_file",
}


@pytest.mark.parametrize("text", RIGHT)
def test_what_an_address_says(text):
    address = parse_address(text, "--broker")
    assert (address.scheme, address.host, address.port) == RIGHT[text]
    again = parse_address(str(address), "--broker")
    assert (again.host, again.port) == (address.host, address.port)
    settings = broker_at(text)
    assert (settings.host, settings.port, settings.tls is not None) == (
        address.host, address.port, address.scheme == "mqtts",
    )  # fmt: skip
    assert settings.address == str(address)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_address_is_refused_with_what_to_do(text):
    with pytest.raises(ConfigError) as caught:
        parse_address(text, "--broker")
    assert caught.value.what.startswith("--broker: expected ")
    assert WRONG[text] in caught.value.remedy
    assert "secret" not in str(caught.value)


def test_where_no_scheme_is_allowed():
    assert parse_address("hub:1", "--broker", {}).host == "hub"
    with pytest.raises(ConfigError, match="expected HOST:PORT, received 'mqtt://hub:1'; remove what precedes the host"):
        parse_address("mqtt://hub:1", "--broker", {})


HOSTS = {
    "[::1]": "remove the brackets",
    "hub:1883": "write host: hub and port: 1883",
    "mqtt://hub": "remove the scheme",
    "": "write a name",
    "a b": "write a name",
    "fe80::1%": "write a name",
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_in_a_file_is_only_that(host):
    assert HOSTS[host] in host_fault(host)
    with pytest.raises(ConfigError, match="is neither a name nor an address"):
        BrokerSettings(host=host)


@pytest.mark.parametrize("host", ["hub", "hub.local.", "10.0.0.1", "::1", "fe80::1%wlan0", "my_broker"])
def test_a_host_that_is_one(host):
    assert BrokerSettings(host=host).host == host


def test_addresses_of_websockets():
    assert check_broker(" wss://hub:9001/mqtt ") == "wss://hub:9001/mqtt"
    assert check_broker("ws://[::1]:9001") == "ws://[::1]:9001"
    for wrong in ("ws://hub", "hub:9001", "ws://::1", "ws://hub:9001/a;b", "ws://bücher:1", "ws://ann:secret@hub:1"):
        with pytest.raises(ConfigError) as caught:
            check_broker(wrong)
        assert "secret" not in str(caught.value)
