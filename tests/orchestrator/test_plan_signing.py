"""Plans that an orchestrator signs, and what it makes of those that it finds on their topic."""

from __future__ import annotations

import contextlib

import pytest
from memory_transport import MemoryBroker
from orchestrator_samples import SITE, plan
from orchestrator_site import PLAN, OrchestratorSite

from distree.errors import RemoteProtocolError
from distree.messages.codec import encode
from distree.signing import PublicKeys, SigningKey
from orchestrator.plan_signing import PlanSigning
from orchestrator.store.database import Store

KEY = SigningKey(bytes(32))
KEYS = PublicKeys([KEY.public])


def number(payload: bytes) -> int:
    return KEYS.check(PLAN, payload).sequence


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "x.db") as opened:
        opened.open()
        yield opened


def signing(store, now=1000.0):
    return PlanSigning(SITE, KEY, store, lambda: now)


def test_numbers_grow_over_restarts_and_by_the_clock(store):
    first = number(signing(store).outgoing(plan(epoch=1)).payload)
    assert first == 1_000_000
    assert number(signing(store, now=-5.0).outgoing(plan(epoch=1)).payload) == first + 1
    assert number(signing(store, now=2000.0).outgoing(plan(epoch=1)).payload) == 2_000_000


def test_a_plan_that_is_published_again_keeps_its_number(store):
    one = signing(store)
    first = one.outgoing(plan(epoch=1)).payload
    assert one.outgoing(plan(epoch=1)).payload == first
    assert number(one.outgoing(plan(epoch=2)).payload) > number(first)


def test_an_orchestrator_that_shares_the_key_is_outnumbered(store, tmp_path):
    one = signing(store)
    mine = one.outgoing(plan(epoch=1)).payload
    theirs = KEY.sign(PLAN, plan(epoch=1), 5_000_000)
    assert one.read("fashion", theirs) == plan(epoch=1)
    again = one.outgoing(plan(epoch=1)).payload
    assert number(again) == 5_000_001
    with pytest.raises(RemoteProtocolError, match="replay"):
        one.read("fashion", mine)


@pytest.mark.parametrize("payload", [encode(plan(epoch=1)), SigningKey(bytes([1]) * 32).sign(PLAN, plan(epoch=1), 9)])
def test_what_it_did_not_sign_is_no_plan_of_its_own(store, payload):
    with pytest.raises(RemoteProtocolError, match="signature"):
        signing(store).read("fashion", payload)
    # Without a key there is nothing to tell by.
    assert PlanSigning(SITE, None, store, lambda: 0.0).read("fashion", payload) == plan(epoch=1)


class Signed(OrchestratorSite):
    key: SigningKey | None = KEY

    def service_options(self):
        return {"signing_key": self.key}


def test_a_service_signs_its_plans_and_puts_them_back_in_the_place_of_copies(tmp_path):
    with contextlib.closing(Signed(tmp_path / "x.db")) as site:
        site.pass_time(2.0)
        first = site.broker.retained(PLAN)
        assert site.published.signed
        for forged in (encode(plan(epoch=1)), encode(plan(epoch=2, thresholds=(0.0, 0.0)))):
            site.peer.raw(PLAN, forged, retain=True)
            site.pass_time(2.0)
            assert site.broker.retained(PLAN) == first
        assert site.service.refused == {"signature": 2}


def test_a_key_may_be_given_and_taken_away(tmp_path):
    broker = MemoryBroker()
    site = Signed(tmp_path / "x.db", broker=broker)
    site.pass_time(2.0)
    numbers = [number(broker.retained(PLAN))]
    for key in (None, SigningKey(bytes([7]) * 32), KEY):
        site.stop()
        site.key = key
        site.start()
        site.pass_time(2.0)
        if key is KEY:
            numbers.append(number(broker.retained(PLAN)))
        assert bool(site.published.signed) == (key is not None)
    assert numbers[1] > numbers[0]
    site.stop()
