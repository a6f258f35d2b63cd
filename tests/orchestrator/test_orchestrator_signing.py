"""Plans and claims that an orchestrator signs, and what it makes of those that it finds on their topics."""

from __future__ import annotations

import contextlib

import pytest
from memory_transport import MemoryBroker
from orchestrator_samples import SITE, plan
from orchestrator_site import PLAN, OrchestratorSite

from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.codec import encode
from distree.messages.site import Claim, Label
from distree.signing import PublicKeys, SigningKey
from orchestrator.addresses import will_of
from orchestrator.signing import MAX_CLAIMS, Signing
from orchestrator.store.database import Store

pytest.importorskip("cryptography")

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
    return Signing(SITE, KEY, store, lambda: now)


def test_numbers_grow_over_restarts_and_by_the_clock(store):
    first = number(signing(store).plan(plan(epoch=1)).payload)
    assert first == 1_000_000
    assert number(signing(store, now=-5.0).plan(plan(epoch=1)).payload) == first + 1
    assert number(signing(store, now=2000.0).plan(plan(epoch=1)).payload) == 2_000_000


def test_a_plan_that_is_published_again_keeps_its_number(store):
    one = signing(store)
    first = one.plan(plan(epoch=1)).payload
    assert one.plan(plan(epoch=1)).payload == first
    assert number(one.plan(plan(epoch=2)).payload) > number(first)


def test_an_orchestrator_that_shares_the_key_is_outnumbered(store, tmp_path):
    one = signing(store)
    mine = one.plan(plan(epoch=1)).payload
    theirs = KEY.sign(PLAN, plan(epoch=1), 5_000_000)
    assert one.read_plan("fashion", theirs) == plan(epoch=1)
    again = one.plan(plan(epoch=1)).payload
    assert number(again) == 5_000_001
    with pytest.raises(RemoteProtocolError, match="replay"):
        one.read_plan("fashion", mine)


@pytest.mark.parametrize("payload", [encode(plan(epoch=1)), SigningKey(bytes([1]) * 32).sign(PLAN, plan(epoch=1), 9)])
def test_what_it_did_not_sign_is_no_plan_of_its_own(store, payload):
    with pytest.raises(RemoteProtocolError, match="signature"):
        signing(store).read_plan("fashion", payload)
    # Without a key there is nothing to tell by.
    assert Signing(SITE, None, store, lambda: 0.0).read_plan("fashion", payload) == plan(epoch=1)


class Signed(OrchestratorSite):
    key: SigningKey | None = KEY

    def service_options(self):
        return {"signing": Signing(SITE, self.key, self.store, self.clock)}


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


# ---------------------------------------------------------------- claims


def said(store, running=True, now=1000.0, identity="other"):
    return signing(store, now).claim(identity, running=running).payload


def read(one, payload, *, own="me", retained=False):
    return one.read_claim(payload, own=own, retained=retained)


def test_a_claim_is_believed_once_and_only_with_a_signature(store):
    one = signing(store)
    claim = said(store)
    assert read(one, claim).orchestrator == "other"
    for refused in (claim, said(store, now=999.0), encode(Claim(orchestrator="-", running=True))):
        with pytest.raises(RemoteProtocolError, match=r"replay|signature"):
            read(one, refused)
    # At the next connect the broker repeats it, and an own one comes back.
    assert read(one, claim, retained=True).running
    assert read(one, claim, own="other").running
    assert read(one, said(store, now=1005.0)).running
    plain = Signing(SITE, None, store, lambda: 0.0)
    assert read(plain, encode(Claim(orchestrator="-", running=True))).running


def test_a_will_takes_back_the_claims_that_followed_it_once(store):
    one = signing(store)
    _, will = will_of(SITE, "other", KEY, 5)
    read(one, said(store))
    assert not read(one, will).running
    with pytest.raises(RemoteProtocolError, match="replay"):
        read(one, will)
    assert not read(one, said(store, running=False, now=1001.0)).running


def test_what_is_remembered_of_claims_is_bounded(store):
    one = signing(store)
    for k in range(200):
        read(one, said(store, identity=f"o{k}"))
    assert len(one._claims) <= MAX_CLAIMS


def test_forged_claims_hold_up_no_orchestrator_that_has_a_key(tmp_path):
    with contextlib.closing(Signed(tmp_path / "x.db")) as site:
        for k in range(20):
            forged = encode(Claim(orchestrator="-" if k % 2 else f"-{k}", running=True))
            site.peer.raw(topics.orchestrator(SITE), forged, retain=True)
            site.pass_time(0.5)
        assert site.service.leadership.leads
        assert site.published is not None
        assert site.service.refused["signature"] == 20


def test_two_orchestrators_that_share_a_key_stand_in_for_each_other(tmp_path):
    first = Signed(tmp_path / "a.db", client_id="a")
    first.pass_time(2.0)
    second = Signed(tmp_path / "b.db", broker=first.broker, client_id="b")
    second.pass_time(5.0)
    assert (first.service.leadership.leads, second.service.leadership.leads) == (True, False)
    before = number(first.broker.retained(PLAN))
    first.stop()
    second.pass_time(3.0)
    assert second.service.leadership.leads
    assert number(first.broker.retained(PLAN)) > before
    second.stop()


# ---------------------------------------------------------------- labels

LABEL = topics.label(SITE, "fashion")
SIGNED = Label(request="r-1", label="class 5")


def label_reader(store, *keys):
    return Signing(SITE, None, store, lambda: 0.0, label_keys=[key.public for key in keys])


def test_a_label_counts_only_with_a_signature_and_none_from_before(store):
    one = label_reader(store, KEY)
    payload = KEY.sign(LABEL, SIGNED, 7)
    assert one.read_label("fashion", payload).label == "class 5"
    assert one.read_label("fashion", payload) is None  # the broker may deliver it again
    assert one.read_label("fashion", KEY.sign(LABEL, SIGNED, 8)).label == "class 5"
    with pytest.raises(RemoteProtocolError, match="replay"):
        one.read_label("fashion", payload)
    others = SigningKey(bytes([1]) * 32)
    for refused in (encode(SIGNED), others.sign(LABEL, SIGNED, 9), payload.replace(b"class 5", b"class 6")):
        with pytest.raises(RemoteProtocolError, match="signature"):
            one.read_label("fashion", refused)
    with pytest.raises(RemoteProtocolError, match="signature"):
        one.read_label("another", KEY.sign(LABEL, SIGNED, 9))


def test_each_labeller_counts_for_itself(store):
    second = SigningKey(bytes([1]) * 32)
    one = label_reader(store, KEY, second)
    assert one.read_label("fashion", KEY.sign(LABEL, SIGNED, 900)) is not None
    assert one.read_label("fashion", second.sign(LABEL, SIGNED, 5)) is not None


def test_without_keys_labels_count_with_and_without_a_signature(store):
    one = label_reader(store)
    for payload in (encode(SIGNED), KEY.sign(LABEL, SIGNED, 7)):
        assert one.read_label("fashion", payload).request == "r-1"
