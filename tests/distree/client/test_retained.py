"""What brokers retain is found and removed, however many messages that are."""

from __future__ import annotations

import pytest

from broker_config.managed import ManagedBroker, find_mosquitto
from distree.broker_settings import BrokerSettings, Session
from distree.client import confirmations, retained
from distree.client.confirmations import Confirmations
from distree.client.retained import find_retained
from distree.errors import BrokerError
from distree.transport import make_transport

COUNT = 5000
"""More than a transport has room for at once."""


@pytest.fixture(scope="module")
def broker():
    if find_mosquitto() is None:
        # The embedded broker hands out a hundred retained messages at most.
        pytest.skip("mosquitto is not installed")
    with ManagedBroker(engine="mosquitto") as running:
        yield running


@pytest.fixture
def settings(broker):
    """After the test nothing is retained there."""
    yield BrokerSettings(port=broker.port)
    find_retained(BrokerSettings(port=broker.port), "clean", ["#"], remove=True)


def retain(settings, count, payload=b"x"):
    heard = Confirmations()
    transport = make_transport(settings, client_id="retains", session=Session.NONE)
    try:
        transport.open(heard, [])
        transport.connect_now(30)
        heard.publish(transport, [(f"many/{number}", payload) for number in range(count)], retain=True)
    finally:
        transport.close()
    return heard


def test_thousands_of_messages_are_published_found_and_removed(settings):
    assert retain(settings, COUNT).confirmed == COUNT
    assert len(find_retained(settings, "sees", ["many/#"])) == COUNT
    wanted = {f"many/{number}" for number in range(COUNT - 1)}
    assert set(find_retained(settings, "removes", ["many/#"], wanted.__contains__, remove=True)) == wanted
    assert find_retained(settings, "sees", ["many/#"]) == {f"many/{COUNT - 1}": b"x"}


def test_more_than_is_taken_in_is_said_and_removed_by_and_by(settings, monkeypatch):
    monkeypatch.setattr(retained, "MAX_BYTES", 2 << 20)
    retain(settings, 6, bytes(500_000))
    with pytest.raises(BrokerError, match=r"retains more than 2 MiB in many/#; see who publishes there"):
        find_retained(settings, "sees", ["many/#"])
    with pytest.raises(
        BrokerError, match=r"retains more than 2 MiB in many/#; 4 messages removed; run this command again"
    ):
        find_retained(settings, "removes", ["many/#"], remove=True)
    assert len(find_retained(settings, "removes", ["many/#"], remove=True)) == 2
    assert find_retained(settings, "sees", ["many/#"]) == {}


def test_a_broker_that_falls_silent_is_waited_for_no_longer_than_is_said(settings, monkeypatch):
    monkeypatch.setattr(confirmations, "CONFIRM_S", 0.3)
    monkeypatch.setattr(Confirmations, "published", lambda self, token: None)
    with pytest.raises(
        BrokerError, match=r"confirmed no message for 0\.3 s \(0 of 5,000 are confirmed\); check the broker"
    ):
        retain(settings, COUNT)
