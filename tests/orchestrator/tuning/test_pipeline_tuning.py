"""Tuning as the service does it: from audit rows on the broker to plans, over restarts and against bad rows."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

import numpy as np
import pytest
from audit_samples import COSTS, SHUT, stream, tuned, tuned_wide
from orchestrator_samples import HASH, SITE, meta, origin, pipeline, state, telemetry
from orchestrator_site import OrchestratorSite

from distree import topics
from distree.messages.audit import AuditRow
from distree.messages.codec import encode
from distree.messages.site import Label
from distree.messages.telemetry import PipelineTelemetry
from distree.signing import SigningKey
from distree.strict_yaml import Share
from distree.thresholds import NEVER
from distree.topics import Kind
from orchestrator.pipeline_controller import SAMPLES_UNSAVED
from orchestrator.signing import Signing
from orchestrator.store.connection import StoreError
from orchestrator.store.database import Store
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.pipeline_tuning import PipelineTuning
from orchestrator.tuning.samples import AuditedInput
from orchestrator.tuning.tuners import Certified

AUDITS = topics.of_origin(SITE, "fashion", Kind.AUDIT, "a")


class Tuned(OrchestratorSite):
    """A site whose origin `a` sends rows."""

    def __init__(self, path, make=tuned, **content):
        super().__init__(path, make=make, **content)
        self.sequence = 0
        self.peer.say(state(), meta())
        self.pass_time(1.0)
        self.peer.say(self.report())

    def report(self, sequence=1, drawn=100_000, boot="b1"):
        """A report by which `a` has accepted so many inputs that any number of rows is believed."""
        of_origin = replace(origin(), accepted=100_000, audits_drawn=drawn)
        part = PipelineTelemetry(
            pipeline="fashion", epoch=1, plan_hash=HASH, revision="r1", stages=(), origin=of_origin
        )
        return telemetry(sequence=sequence, boot=boot, pipelines=(part,))

    def row(self, audit: AuditedInput, **changes) -> AuditRow:
        self.sequence += 1
        base = AuditRow(
            request=f"r-{self.sequence}", origin="a", boot="b1", sequence=self.sequence, revision="r1", epoch=1,
            criterion="max_softmax", scores=audit.scores, predictions=audit.predictions,
        )  # fmt: skip
        return replace(base, **changes)

    def say_rows(self, rows) -> None:
        for row in rows:
            self.peer.raw(AUDITS, encode(row))
        self.pass_time(0.5)

    def learn(self, audits, **changes) -> None:
        self.say_rows([self.row(audit, **changes) for audit in audits])

    @property
    def tuning(self) -> PipelineTuning:
        return self.service.controllers.of("fashion").tuning


@pytest.fixture
def site(tmp_path):
    with contextlib.closing(Tuned(tmp_path / "orchestrator.db")) as made:
        yield made


def test_at_first_nobody_leaves_early_and_every_input_is_audited(site):
    assert (site.published.thresholds, site.published.audit_rate) == (SHUT, 1.0)
    assert site.store.latest_plan("fashion").plan.epoch == 1


def test_the_plan_follows_what_the_audits_prove(site):
    audits = stream(2500, seed=3)
    site.learn(audits)
    site.pass_time(2.0)
    offline = Certified(COSTS, 0.05, 1 - 0.95)
    for audit in audits:
        offline.observe(audit)
    assert site.published.thresholds == tuple(min(NEVER, value) for value in offline.thresholds)
    assert site.published.thresholds != SHUT
    assert site.published.audit_rate == pytest.approx(0.1)
    assert site.published == site.store.latest_plan("fashion").plan


def test_plans_that_let_more_leave_come_at_most_once_a_second(site):
    epochs = [site.published.epoch]
    for audit in stream(2500, seed=3):
        site.peer.raw(AUDITS, encode(site.row(audit)))
        if site.sequence % 25 == 0:
            site.pass_time(0.25)
            epochs.append(site.published.epoch)
    rises = len(set(epochs)) - 1
    assert 2 <= rises <= 25 + 1


def test_a_shift_closes_the_exits_within_a_turn(site, caplog):
    site.learn(stream(2500, seed=3))
    site.pass_time(2.0)
    assert site.published.thresholds != SHUT
    wrong = [AuditedInput(scores=audit.scores, predictions=(1, 2, 3)) for audit in stream(400, seed=5)]
    for audit in wrong:
        site.peer.raw(AUDITS, encode(site.row(audit)))
        site.clock.now += 0.01
        site.service.turn(0.0)
        if site.tuning.tuners[()].alarms:
            break
    assert site.published.thresholds == SHUT
    assert site.published.audit_rate == 1.0


def test_a_restart_loses_no_certificate_and_grants_none(site):
    site.learn(stream(2500, seed=3))
    site.pass_time(2.0)
    before, state_before = site.published, site.tuning.tuners[()].snapshot()
    site.stop()
    site.start()
    site.pass_time(2.0)
    assert site.tuning.tuners[()].snapshot() == state_before
    assert site.published == before


def test_a_crash_at_any_time_leaves_a_plan_that_the_store_can_prove(tmp_path):
    """The broker's plan may be older than what was learned, never riskier."""
    path = tmp_path / "x.db"
    site = Tuned(path)
    audits = stream(2500, seed=3)
    for start in range(0, len(audits), 50):
        site.learn(audits[start : start + 50])
        site.pass_time(0.25)
        with Store(path, read_only=True) as store:
            state_saved, later = store.tuning("fashion")
        restored = PipelineTuning(tuned().tuned)
        if state_saved is not None:
            restored.restore(state_saved)
        for sample in later:
            restored.apply(sample.sample)
        certified = set(restored.tuners[()].choices)
        assert site.published.thresholds in certified
    assert site.published.thresholds != SHUT
    site.stop()


def test_a_store_that_cannot_be_written_holds_looser_plans_back(site, monkeypatch):
    site.pass_time(2.0)
    before = site.published

    def fail(batch):
        raise StoreError("no room", "make some")

    with monkeypatch.context() as patch:
        patch.setattr(site.store, "save", fail)
        site.learn(stream(2500, seed=3))
        site.pass_time(4.0)
        assert site.published == before
    site.pass_time(4.0)
    assert site.published.thresholds != SHUT
    assert len(site.store.samples("fashion")) == 2500


def test_another_goal_or_bundle_begins_anew(site, caplog):
    site.learn(stream(2500, seed=3))
    site.pass_time(2.0)
    site.stop()
    site.start(goal=Goal(accuracy_drop=Share(0.01)))
    site.pass_time(2.0)
    assert site.published.thresholds == SHUT
    assert "tuning starts from scratch" in caplog.text


def test_without_the_goal_the_configured_thresholds_hold_again(site):
    site.learn(stream(2500, seed=3))
    site.pass_time(2.0)
    site.stop()
    site.make = pipeline
    site.start()
    site.pass_time(2.0)
    assert site.published.thresholds == (0.9, 0.8)
    assert site.published.audit_rate == 0.0


def test_samples_are_kept_and_the_state_is_saved_now_and_then(site):
    site.learn(stream(100, seed=3))
    site.pass_time(2.0)
    assert len(site.store.samples("fashion")) == 100
    assert len(site.store.tuning("fashion")[1]) == 100
    site.learn(stream(SAMPLES_UNSAVED, seed=4))
    site.pass_time(2.0)
    state_saved, later = site.store.tuning("fashion")
    assert state_saved["audits"] + len(later) == 100 + SAMPLES_UNSAVED
    assert len(later) < SAMPLES_UNSAVED


def test_old_samples_go_but_never_those_that_a_restart_needs(site, monkeypatch):
    monkeypatch.setattr("orchestrator.store.retention.SAMPLES_KEPT", 50)
    site.learn(stream(100, seed=3))
    site.pass_time(2.0)
    site.store.prune(now=site.clock.now, telemetry_days=7, max_bytes=1 << 30)
    assert len(site.store.samples("fashion")) == 100
    site.learn(stream(SAMPLES_UNSAVED, seed=4))
    site.pass_time(2.0)
    site.store.prune(now=site.clock.now, telemetry_days=7, max_bytes=1 << 30)
    later = site.store.tuning("fashion")[1]
    assert len(site.store.samples("fashion")) == max(50, len(later))


# ---------------------------------------------------------------- what must not loosen anything


def test_lost_audits_and_gaps_count_as_losses(site):
    site.learn(stream(500, seed=3))
    site.sequence += 7
    site.learn([AuditedInput()], scores=(), predictions=())
    assert (site.tuning.audits, site.tuning.lost) == (508, 8)
    site.pass_time(2.0)
    assert [row.sample.audit.lost for row in site.store.samples("fashion")][-9:] == [False] + [True] * 8


def test_what_died_with_an_agent_is_lost(site):
    site.learn(stream(10, seed=3))
    site.peer.say(site.report(2, drawn=13))
    site.peer.say(state(boot="b2"), site.report(boot="b2", drawn=0))
    site.pass_time()
    assert (site.tuning.audits, site.tuning.lost) == (13, 3)


GOOD = stream(1, seed=1)[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"origin": "b"}, "origin"),
        ({"boot": "other"}, "boot"),
        ({"revision": "r2"}, "revision"),
        ({"criterion": "margin"}, "criterion"),
        ({"scores": (0.5,), "predictions": (0, 1)}, "exits"),
        ({"predictions": (0, 0, 100)}, "exits"),
        ({"missing": (1,)}, "missing"),
        ({"scores": (float("nan"), 0.5)}, "field"),
        ({"scores": (float("inf"), 0.5)}, "field"),
    ],
)
def test_rows_that_do_not_belong_here_are_counted_and_loosen_nothing(site, change, reason):
    site.learn([GOOD] * 1500, **change)
    site.pass_time(2.0)
    assert site.service.refused == {reason: 1500}
    assert (site.tuning.audits, site.published.thresholds) == (0, SHUT)


def test_one_row_repeated_for_ever_counts_once(site):
    site.say_rows([site.row(GOOD)] * 2000)
    site.pass_time(2.0)
    assert (site.tuning.audits, site.service.refused["old-sequence"]) == (1, 1999)


def test_rows_of_unknown_boards_and_pipelines_are_refused(tmp_path):
    with contextlib.closing(OrchestratorSite(tmp_path / "x.db", make=tuned)) as site:
        row = AuditRow(
            request="r", origin="a", boot="b1", sequence=1, revision="r1", epoch=1, criterion="max_softmax",
            scores=(0.5, 0.5), predictions=(1, 1, 1),
        )  # fmt: skip
        site.pass_time()
        site.peer.raw(AUDITS, encode(row))
        site.pass_time()
        assert site.service.refused == {"device": 1}


def test_whatever_bytes_come_on_the_audit_topic_loosen_nothing(site):
    noise = np.random.default_rng(0)
    whole = encode(site.row(GOOD))
    for _ in range(2000):
        spoiled = bytearray(whole)
        for at in noise.integers(0, len(whole), 3):
            spoiled[at] = noise.integers(0, 256)
        site.peer.raw(AUDITS, bytes(spoiled))
    site.pass_time(2.0)
    assert site.published.thresholds == SHUT
    assert sum(site.service.refused.values()) + site.tuning.audits - site.tuning.lost == 2000


def test_a_jumping_clock_loosens_nothing(site):
    site.learn(stream(450, seed=3))
    before = site.published.thresholds
    site.service._wall = lambda: -1e9
    site.pass_time(2.0)
    site.service._wall = lambda: 1e12
    site.pass_time(2.0)
    assert site.published.thresholds == before


# ---------------------------------------------------------------- missing branches


def test_each_set_of_missing_branches_is_proved_for_itself(tmp_path):
    with contextlib.closing(Tuned(tmp_path / "x.db", make=tuned_wide)) as site:
        assert site.published.masked == ()
        site.learn(stream(2500, seed=3))
        site.pass_time(2.0)
        assert site.published.masked == ()
        site.learn(stream(200, seed=4), missing=(1,))
        site.pass_time(2.0)
        (row,) = site.published.masked
        assert (row.missing, row.thresholds) == ((1,), SHUT)
        site.learn(stream(2500, seed=5), missing=(1,))
        site.pass_time(2.0)
        (row,) = site.published.masked
        assert row.thresholds != SHUT
        before = site.published
        site.stop()
        site.start()
        site.pass_time(2.0)
        assert site.published == before


def test_the_log_says_nothing_of_rows(site, caplog):
    with caplog.at_level(logging.INFO):
        site.learn(stream(100, seed=3))
    assert "r-1" not in caplog.text


# ---------------------------------------------------------------- labels

LABELLED = Goal(accuracy_drop=Share(0.05), labels_wait_s=10.0)
LABEL = topics.label(SITE, "fashion")


@pytest.fixture
def labelled(tmp_path):
    with contextlib.closing(Tuned(tmp_path / "x.db", goal=LABELLED)) as made:
        yield made


def kept(site):
    return [row.sample.audit for row in site.store.samples("fashion")]


def tell(site, request: str, label: str) -> None:
    site.peer.raw(LABEL, encode(Label(request=request, label=label)))


def test_a_label_that_comes_in_time_decides_the_loss(labelled):
    both_wrong = AuditedInput(scores=(0.9, 0.9), predictions=(1, 2, 3))
    labelled.learn([both_wrong, both_wrong])
    tell(labelled, "r-1", "class 5")
    labelled.pass_time(2.0)
    # The last exit was as wrong as the first: leaving early cost nothing.
    (audit,) = kept(labelled)
    assert (audit.label, audit.losses()) == (5, (0.0, 0.0, 0.0))
    labelled.pass_time(12.0)
    assert [audit.label for audit in kept(labelled)] == [5, None]
    assert kept(labelled)[1].losses() == (1.0, 1.0, 0.0)


def test_a_label_may_come_before_its_audit(labelled):
    tell(labelled, "r-1", "class 3")
    labelled.pass_time(1.0)
    labelled.learn([AuditedInput(scores=(0.9, 0.9), predictions=(1, 3, 3))])
    labelled.pass_time(2.0)
    assert [audit.label for audit in kept(labelled)] == [3]


def test_lost_audits_wait_for_nothing_and_the_end_waits_for_nothing(labelled):
    labelled.learn([AuditedInput()], scores=(), predictions=())
    labelled.pass_time(2.0)
    assert [audit.lost for audit in kept(labelled)] == [True]
    labelled.learn(stream(5, seed=1))
    labelled.stop()
    labelled.start(goal=LABELLED)
    assert [audit.label for audit in kept(labelled)[1:]] == [None] * 5


def test_what_waits_is_bounded(labelled, monkeypatch):
    monkeypatch.setattr("orchestrator.tuning.pipeline_tuning.MAX_WAITING", 20)
    labelled.learn(stream(50, seed=1))
    for n in range(100):
        tell(labelled, f"other-{n}", "class 1")
    labelled.pass_time(2.0)
    assert len(kept(labelled)) == 30
    assert len(labelled.tuning._labels) == 20


def test_a_label_that_there_is_not_is_refused(labelled):
    labelled.learn(stream(1, seed=1))
    tell(labelled, "r-1", "nonsense")
    labelled.peer.raw(LABEL, b"{")
    labelled.pass_time(2.0)
    assert labelled.service.refused == {"label": 1, "encoding": 1}
    assert kept(labelled) == []


def test_labels_are_in_what_a_restart_learns_from(labelled):
    labelled.learn(stream(1500, seed=3))
    for n in range(1, 1501):
        tell(labelled, f"r-{n}", "class 0")
    labelled.pass_time(15.0)
    before = labelled.tuning.tuners[()].snapshot()
    labelled.stop()
    labelled.start(goal=LABELLED)
    assert labelled.tuning.tuners[()].snapshot() == before
    assert before["recent"][-1][2] == 0


LABELLER = bytes(32)


class Checked(Tuned):
    """A site whose labels have to be signed."""

    def service_options(self):
        labellers = [SigningKey(LABELLER).public]
        return {"signing": Signing(SITE, None, self.store, self.clock, label_keys=labellers)}


def signed(request: str, label: str, number: int) -> bytes:
    return SigningKey(LABELLER).sign(LABEL, Label(request=request, label=label), number)


BOTH_WRONG = AuditedInput(scores=(0.9, 0.9), predictions=(1, 2, 3))


def test_labels_that_are_not_signed_do_not_count_where_they_have_to_be(tmp_path):
    pytest.importorskip("cryptography")
    with contextlib.closing(Checked(tmp_path / "x.db", goal=LABELLED)) as site:
        site.learn([BOTH_WRONG] * 2)
        tell(site, "r-1", "class 3")
        site.peer.raw(LABEL, signed("r-2", "class 5", 1))
        site.pass_time(12.0)
        assert sorted(str(audit.label) for audit in kept(site)) == ["5", "None"]
        assert site.service.refused == {"signature": 1}


@pytest.mark.parametrize("restarts", [False, True])
def test_a_signed_label_counts_once_even_if_its_input_and_itself_are_published_again(tmp_path, restarts):
    pytest.importorskip("cryptography")
    labels = [signed("r-1", "class 5", 7), signed("r-2", "class 5", 8)]
    with contextlib.closing(Checked(tmp_path / "x.db", goal=LABELLED)) as site:
        site.learn([BOTH_WRONG] * 2)
        for label in labels:
            site.peer.raw(LABEL, label)
        site.pass_time(2.0)
        assert [audit.label for audit in kept(site)] == [5, 5]
        if restarts:
            site.stop()
            site.start(goal=LABELLED)
            site.pass_time(2.0)
        site.peer.say(site.report(2))
        for label in labels:
            site.peer.raw(LABEL, label)
        site.pass_time(1.0)
        site.learn([BOTH_WRONG], request="r-1")
        site.learn([BOTH_WRONG], request="r-2")
        site.pass_time(15.0)
        assert [audit.label for audit in kept(site)] == [5, 5, None, None]
        assert site.service.refused == {"replay": 1}  # the last one is what a broker may deliver again
