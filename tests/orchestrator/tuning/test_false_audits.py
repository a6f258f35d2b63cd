"""Forged audits, as somebody sends them who may publish on the broker: they loosen nothing beyond the forger's share."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from audit_samples import SHUT, stream, tuned
from orchestrator_samples import HASH, SITE, meta, origin, state, telemetry
from orchestrator_site import OrchestratorSite
from thoroughness import some

from distree import topics
from distree.messages.audit import AuditRow
from distree.messages.codec import encode
from distree.messages.telemetry import PipelineTelemetry
from distree.strict_yaml import Share
from distree.topics import Kind
from orchestrator.tuning.audit_shares import HOLD_S, SHARE_SLACK
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.samples import AuditedInput, losses_of

DROP = 0.05
AGREED = AuditedInput(scores=(0.02, 0.05), predictions=(1, 1, 1))
"""What a forger says of an input: all exits agree, however unsure they are, so any threshold seems safe."""


class Attacked(OrchestratorSite):
    """A site with boards that say what a test lets them say."""

    def __init__(self, path, **limits):
        def make():
            return replace(tuned(Goal(accuracy_drop=Share(DROP), audit_rate=Share(0.1))), **limits)

        super().__init__(path, make=make)
        self.sequences: dict[str, int] = {}
        self.pass_time(1.0)

    def announce(self, *names: str) -> None:
        for name in names:
            self.peer.say(state(device=name), meta(device=name))

    def report(self, name: str, sequence: int, accepted: int, drawn: int) -> None:
        of_origin = replace(origin(), accepted=accepted, audits_drawn=drawn)
        part = PipelineTelemetry(
            pipeline="fashion", epoch=1, plan_hash=HASH, revision="r1", stages=(), origin=of_origin
        )
        self.peer.say(telemetry(device=name, sequence=sequence, pipelines=(part,)))

    def rows(self, name: str, audits) -> None:
        for audit in audits:
            number = self.sequences[name] = self.sequences.get(name, 0) + 1
            row = AuditRow(
                request=f"{name}-{number}", origin=name, boot="b1", sequence=number, revision="r1", epoch=1,
                criterion="max_softmax", scores=audit.scores, predictions=audit.predictions,
            )  # fmt: skip
            self.peer.raw(topics.of_origin(SITE, "fashion", Kind.AUDIT, name), encode(row))

    @property
    def tuning(self):
        return self.service.controllers.of("fashion").tuning

    def refusals(self, reason: str) -> list[str]:
        self.service._write(self.clock.now)
        return [row.event.what for row in self.store.events(100) if f": {reason}: " in row.event.what]


@pytest.fixture
def attacked(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda **limits: stack.enter_context(contextlib.closing(Attacked(tmp_path / "x.db", **limits)))


def test_one_that_is_not_listed_counts_for_nothing_whatever_it_says_of_itself(attacked):
    site = attacked(origins=("cam1",))
    site.announce("cam1", "dashboard")
    site.report("dashboard", 1, 100_000, 100_000)
    site.rows("dashboard", [AGREED] * 3000)
    site.pass_time(3.0)
    assert (site.tuning.audits, site.published.thresholds) == (0, SHUT)
    assert site.service.refused == {"origin": 3000}
    (told,) = site.refusals("origin")
    assert "dashboard is not among the origins of fashion" in told


def test_rows_without_inputs_count_for_nothing_where_no_origins_are_listed(attacked):
    site = attacked()
    site.announce("dashboard")
    site.rows("dashboard", [AGREED] * 3000)
    site.pass_time(HOLD_S + 2.0)
    assert (site.tuning.audits, site.published.thresholds) == (0, SHUT)
    assert site.service.refused == {"traffic": 3000}
    (told,) = site.refusals("traffic")
    assert "more audits of dashboard than the inputs that it reports explain" in told


def test_an_origin_cannot_send_more_rows_than_its_inputs_explain(attacked):
    site = attacked(origins=("cam1",))
    site.announce("cam1")
    site.report("cam1", 1, 200, 1 << 40)
    site.rows("cam1", [AGREED] * 3000)
    site.pass_time(HOLD_S + 2.0)
    # All inputs are drawn while exits are shut, and 220 rows are too few to open any.
    assert (site.tuning.audits, site.published.thresholds) == (220, SHUT)
    assert site.service.refused == {"traffic": 2780}


@pytest.mark.parametrize("share", some([0.5, 0.8], 2))
def test_a_listed_origin_that_lies_costs_the_others_no_more_than_its_share_allows(attacked, share):
    """It claims a hundred times the traffic that the honest one has, and that all exits always agree."""
    site = attacked(origins=("cam1", "liar"), largest_share=share)
    site.announce("cam1", "liar")
    honest = stream(6000, seed=3, confusion=0.06)
    for k in range(120):
        accepted = 50 * (k + 1)
        site.report("cam1", k + 1, accepted, accepted)
        site.report("liar", k + 1, 100 * accepted, 100 * accepted)
        site.rows("liar", [AGREED] * 250)
        site.rows("cam1", honest[50 * k : 50 * (k + 1)])
        site.pass_time(0.5)
    by_origin = [row.sample.origin for row in site.store.samples("fashion")]
    assert by_origin.count("liar") <= share * len(by_origin) + SHARE_SLACK
    assert site.published.thresholds != SHUT
    thresholds = np.asarray([site.tuning.thresholds()])
    loss = np.mean([losses_of(audit, thresholds)[0] for audit in stream(20_000, seed=9, confusion=0.06)])
    assert loss <= DROP / (1.0 - share)


@pytest.mark.parametrize("count", [300, 1500])
def test_origins_that_are_listed_later_undo_what_others_had_proved(tmp_path, caplog, count):
    """With few audits none of it is in the saved state yet, with many all of it is."""
    site = Attacked(tmp_path / "x.db")
    site.announce("dashboard")
    site.report("dashboard", 1, 100_000, 100_000)
    site.rows("dashboard", [AGREED] * count)
    site.pass_time(3.0)
    assert (site.tuning.audits, site.published.thresholds == SHUT) == (count, count == 300)
    site.stop()
    limited = site.make
    site.make = lambda: replace(limited(), origins=("cam1",))
    site.start()
    site.pass_time(3.0)
    assert (site.tuning.audits, site.published.thresholds) == (0, SHUT)
    assert "it was tuned on audits of dashboard, which is not among the origins" in caplog.text
    site.stop()
