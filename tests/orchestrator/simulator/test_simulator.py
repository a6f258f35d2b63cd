"""A simulated fleet: the same answers as recorded, each once, whatever happens; the same thresholds as a replay."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thoroughness import often

from distree.apps.cli import main
from distree.errors import ConfigError
from distree.exits_taken import exits_taken
from distree.strict_yaml import Share
from distree.thresholds import NEVER
from distree.transport.dialling import RESUME_S
from orchestrator.simulator.books import Books
from orchestrator.simulator.config import (
    AgentsConfig,
    BoardsConfig,
    BoardsFailure,
    BrokerConfig,
    BrokerFailure,
    BurstsConfig,
    ClassesDrift,
    FleetConfig,
    HarderDrift,
    LinksConfig,
    OrchestratorFailure,
    PredictionsDrift,
    ScoresDrift,
    SyntheticConfig,
    TrafficConfig,
)
from orchestrator.simulator.report import report
from orchestrator.simulator.site import SimulatedSite
from orchestrator.simulator.traffic import Table, Traffic, load_table
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.pipeline_tuning import PipelineTuning
from orchestrator.tuning.replay import AuditRecording, replay
from orchestrator.tuning.tuners import Certified

STEADY = {"spread": Share(0.0), "jitter": Share(0.0)}
PROMPT = LinksConfig(latency_ms=2, jitter_ms=0)
SMALL = SyntheticConfig(inputs=300)


def chain(origins=2, middle=2, last=1, **more):
    return (
        BoardsConfig(name="cam", count=origins, origin=True, stages=(0,), stage_ms=(10,), **more),
        BoardsConfig(name="mid", count=middle, stages=(1,), stage_ms=(20,), **more),
        BoardsConfig(name="end", count=last, stages=(2,), stage_ms=(30,), **more),
    )


def fleet(**changes):
    given = {
        "duration_s": 5.0,
        "traffic": TrafficConfig(rate_hz=5.0, synthetic=SMALL),
        "boards": chain(),
        "thresholds": (0.9, 0.8),
    }
    if "goal" in changes:
        del given["thresholds"]
    return FleetConfig(**{**given, **changes})


def simulated(**changes):
    config = fleet(**changes)
    site = SimulatedSite(config, load_table(config.traffic, config.seed))
    site.run()
    return site, report(site)


# ------------------------------------------------------------ answers


def test_answers_are_those_of_the_recording(monkeypatch):
    answers = []
    write = Books.answered

    def note(books, now, result, deadline_s):
        answers.append((books.open[result.request], result.class_id, result.exit))
        write(books, now, result, deadline_s)

    monkeypatch.setattr(Books, "answered", note)
    site, told = simulated(
        agents=AgentsConfig(deadline_ms=60_000), traffic=TrafficConfig(rate_hz=20.0, synthetic=SMALL)
    )
    taken = exits_taken(site.table.scores, (0.9, 0.8))
    assert len(answers) > 100
    assert {exit for _, _, exit in answers} == {0, 1, 2}
    for row, label, exit in answers:
        assert (label, exit) == (site.table.predictions[row, taken[row]], taken[row])
    assert told["accuracy"]["differs_from_last_exit"] == pytest.approx(
        np.mean([label != site.table.predictions[row, -1] for row, label, _ in answers])
    )


def test_a_recording_is_played_in_its_order(tmp_path):
    table = load_table(TrafficConfig(rate_hz=1, synthetic=SMALL), 0)
    path = tmp_path / "audits.npz"
    np.savez(path, score=np.hstack([table.scores, table.scores[:, :1]]), prediction=table.predictions, mac=table.costs)
    traffic = TrafficConfig(rate_hz=1, recorded=path, order="recorded")
    read = load_table(traffic, 0)
    assert np.array_equal(read.scores, table.scores)
    assert read.labels is None
    source = Traffic(read, fleet(traffic=traffic))
    assert [source.draw() for _ in range(301)] == [*range(300), 0]


def test_a_link_takes_its_latency_and_the_time_of_the_bytes():
    """One input at a time through three boards: three runs, six legs, each of them with its bytes."""
    link = LinksConfig(latency_ms=2, jitter_ms=0, kbit_per_s=80)
    traffic = TrafficConfig(rate_hz=0.05, synthetic=SMALL, tensor_bytes=(0, 700, 1700))
    boards = chain(1, 1, 1, **STEADY)
    agents = AgentsConfig(deadline_ms=5000)
    told = simulated(
        duration_s=100, traffic=traffic, boards=boards, agents=agents, links=link, thresholds=(NEVER, NEVER)
    )[1]
    ms_of = {nbytes: nbytes * 8 / 80 for nbytes in (300, 1000, 2000)}
    expected = 10 + 20 + 30 + 6 * 2 + 2 * (ms_of[1000] + ms_of[2000] + ms_of[300])
    assert told["latency_ms"]["p50"] == pytest.approx(expected)
    assert told["messages"]["stage"] == 2 * told["inputs"]["accepted"]


def test_lost_messages_come_late_and_are_answered():
    clean = simulated(links=PROMPT)[1]
    lossy = simulated(links=LinksConfig(latency_ms=2, jitter_ms=0, loss=Share(0.2), retry_ms=50))[1]
    assert clean["inputs"]["accepted"] == lossy["inputs"]["accepted"] == lossy["inputs"]["answered"]
    assert lossy["latency_ms"]["p95"] > clean["latency_ms"]["p95"] + 50


def test_bursts_bring_more_inputs():
    site, told = simulated(
        duration_s=40.0, traffic=TrafficConfig(rate_hz=4, synthetic=SMALL, bursts=BurstsConfig(every_s=10, for_s=2, times=5))
    )  # fmt: skip
    # 4 Hz at 2 origins for 40 s, 5 times as many in a fifth of it, give or take four standard deviations.
    assert told["inputs"]["accepted"] == pytest.approx(576, abs=4 * 576**0.5)
    in_bursts = Counter(math.floor(at_s % 10 / 2) for at_s in site.books.answered_at)
    assert in_bursts[0] > 2 * max(in_bursts[part] for part in (2, 3, 4))


def test_boards_of_a_kind_may_have_a_rate_of_their_own():
    boards = (
        BoardsConfig(name="calm", origin=True, stages=(0,), stage_ms=(1,)),
        BoardsConfig(name="busy", origin=True, stages=(0,), stage_ms=(1,), rate_hz=50.0),
        *chain()[1:],
    )
    told = simulated(duration_s=20.0, boards=boards, traffic=TrafficConfig(rate_hz=1.0, synthetic=SMALL))[1]
    # 20 and 1000 of them, give or take four standard deviations.
    assert told["inputs"]["accepted"] == pytest.approx(1020, abs=4 * 1020**0.5)
    with pytest.raises(ConfigError):
        BoardsConfig(name="mid", stages=(1,), stage_ms=(1,), rate_hz=1.0)


# ------------------------------------------------------------ each answered once


@st.composite
def troubled(draw):
    moment = st.floats(0.0, 4.0)
    lasting = st.one_of(st.floats(0.05, 3.0), st.just(math.inf))
    name = st.sampled_from(["cam", "mid", "end", "cam-0", "mid-1"])
    dying = st.builds(
        BoardsFailure, kind=st.just("boards"), at_s=moment, for_s=lasting, boards=name,
        share=st.sampled_from([Share(0.5), Share(1.0)]), notice_s=st.sampled_from([0.0, 1.0]),
    )  # fmt: skip
    stopping = st.builds(
        BoardsFailure, kind=st.just("boards"), how=st.just("stop"), at_s=moment, for_s=lasting, boards=name
    )
    # Of boards without inputs: an origin that does nothing keeps no deadline.
    breaking = st.builds(BrokerFailure, kind=st.just("broker"), at_s=moment, for_s=st.floats(0.05, 2.0))
    pausing = st.builds(
        BoardsFailure, kind=st.just("boards"), how=st.just("pause"), at_s=moment, for_s=st.floats(0.05, 3.0),
        boards=st.sampled_from(["mid", "end", "mid-1"]),
    )  # fmt: skip
    failing = st.one_of(dying, stopping, pausing, breaking)
    orchestrator = st.builds(OrchestratorFailure, kind=st.just("orchestrator"), at_s=moment, for_s=lasting)
    drift = st.one_of(
        st.builds(HarderDrift, kind=st.just("harder"), at_s=moment, share=st.just(Share(0.2)), for_s=lasting),
        st.builds(ScoresDrift, kind=st.just("scores"), at_s=moment, by=st.just(0.1), for_s=lasting),
        st.builds(PredictionsDrift, kind=st.just("predictions"), at_s=moment, share=st.just(Share(0.3))),
    )
    tuned = draw(st.booleans())
    rule = {"goal": Goal(accuracy_drop=Share(0.05))} if tuned else {}
    links = LinksConfig(loss=Share(draw(st.sampled_from([0.0, 0.1]))), kbit_per_s=draw(st.sampled_from([None, 100.0])))
    agents = AgentsConfig(
        deadline_ms=draw(st.sampled_from([60, 300, 1000])),
        max_pending=draw(st.sampled_from([1, 3, 64])),
        inbox_max_messages=draw(st.sampled_from([1, 64])),
        receive_maximum=draw(st.sampled_from([1, 16])),
        spool=draw(st.booleans()),
    )
    return fleet(
        duration_s=4.0,
        seed=draw(st.integers(0, 3)),
        traffic=TrafficConfig(
            rate_hz=draw(st.sampled_from([2.0, 30.0])), synthetic=SMALL, tensor_bytes=(100, 200, 300)
        ),
        links=links,
        agents=agents,
        broker=BrokerConfig(
            reports_no_subscribers=draw(st.booleans()),
            session_expiry_s=draw(st.sampled_from([0.0, 30.0])),
            retains=draw(st.booleans()),
        ),
        failures=tuple(draw(st.lists(st.one_of(failing, orchestrator) if tuned else failing, max_size=4))),
        drift=tuple(draw(st.lists(drift, max_size=2))),
        **rule,
    )


@settings(max_examples=often(25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=troubled())
def test_every_accepted_input_is_answered_once_by_its_deadline(config):
    site = SimulatedSite(config, load_table(config.traffic, config.seed))
    site.run()
    inputs = report(site)["inputs"]
    assert inputs["accepted"] == inputs["answered"] + inputs["lost_with_their_origin"] + inputs["in_spools"]
    assert inputs["answered_twice"] == 0
    assert inputs["in_time"] == inputs["answered"]
    if not any(board.life for board in site.boards["cam"]):
        # What an origin had answered or audited in an earlier life it does not know: a spool keeps what is pending.
        assert not site.books.refused
    if config.agents.spool:
        assert inputs["lost_with_their_origin"] == 0
    if all(board.is_alive for board in site.boards["cam"]):
        assert inputs["in_spools"] == 0


def test_a_spool_saves_what_an_origin_had_when_it_died():
    dying = (BoardsFailure(kind="boards", boards="cam", at_s=2.0, for_s=1.0),)
    busy = TrafficConfig(rate_hz=40.0, synthetic=SMALL)
    without = simulated(traffic=busy, failures=dying)[1]["inputs"]
    spooled = simulated(traffic=busy, failures=dying, agents=AgentsConfig(spool=True))[1]["inputs"]
    assert without["lost_with_their_origin"] > 0
    assert spooled["lost_with_their_origin"] == spooled["in_spools"] == 0
    assert spooled["answered"] == spooled["accepted"] == without["accepted"]


def test_a_board_that_the_broker_misses_late_costs_a_repetition():
    dying = BoardsFailure(kind="boards", boards="mid-0", at_s=1.0, notice_s=2.0)
    told = simulated(failures=(dying,), thresholds=(NEVER, NEVER), links=PROMPT)[1]
    assert told["inputs"]["sent_once_more"] > 0
    assert told["reasons"]["last"] + told["reasons"]["fallback"] == told["inputs"]["accepted"]


# ------------------------------------------------------------ members

ALWAYS_ON = (math.inf, math.inf)
"""Thresholds at which no early exit is taken."""


def failing(boards, at_s=2.0, **more):
    return BoardsFailure(kind="boards", boards=boards, at_s=at_s, **more)


def test_a_dead_twin_is_missed_for_a_second_at_most(monkeypatch):
    """The broker has not noticed: origins find out by themselves, and choose the other from then on."""
    late = []
    write = Books.answered

    def note(books, now, result, deadline_s):
        late.append((now, result.reason, result.latency_s))
        write(books, now, result, deadline_s)

    monkeypatch.setattr(Books, "answered", note)
    told = simulated(
        duration_s=10.0, boards=chain(4, 2, 1, **STEADY), thresholds=ALWAYS_ON, failures=(failing("mid-0", notice_s=20),),
        links=PROMPT, agents=AgentsConfig(deadline_ms=2000),
    )[1]  # fmt: skip
    assert told["inputs"]["sent_once_more"] > 0
    assert told["reasons"]["last"] == told["inputs"]["accepted"]
    after = [latency_s for now, _, latency_s in late if now > 3.0]
    assert len(after) > 80
    assert max(after) < 0.5


@pytest.mark.parametrize("tells", [True, False])
def test_a_broker_tells_what_nobody_reads(tells):
    """What is on its way when a board goes, and is passed on to it, is for nobody: the board before hears of it."""
    told = simulated(
        boards=chain(2, 2, 1, **STEADY),
        thresholds=ALWAYS_ON,
        traffic=TrafficConfig(rate_hz=15.0, synthetic=SMALL),
        broker=BrokerConfig(session_expiry_s=0.0, reports_no_subscribers=tells),
        failures=tuple(failing("end", at_s=at_s, for_s=0.2) for at_s in (1.0, 2.0, 3.0, 4.0)),
    )[1]
    assert (told["unread"] > 0) == tells
    assert told["inputs"]["answered"] == told["inputs"]["accepted"]


def test_sessions_are_kept_as_agents_ask_for_it():
    assert BrokerConfig().session_expiry_s == RESUME_S


def test_a_board_that_is_stopped_takes_nothing_with_it():
    told = simulated(
        boards=chain(4, 2, 2, **STEADY), thresholds=ALWAYS_ON, links=PROMPT,
        traffic=TrafficConfig(rate_hz=10.0, synthetic=SMALL), agents=AgentsConfig(deadline_ms=5000),
        failures=(failing("mid-0", how="stop", for_s=1.0), failing("end-1", how="stop", for_s=1.5)),
    )[1]  # fmt: skip
    assert told["failures"]["stopped"] == 2
    assert told["failures"]["boards"] == 0
    assert told["reasons"]["last"] == told["inputs"]["accepted"]
    assert told["latency_ms"]["max"] < 1000


def test_an_origin_that_is_stopped_answers_what_it_has():
    told = simulated(
        traffic=TrafficConfig(rate_hz=40.0, synthetic=SMALL), failures=(failing("cam", how="stop", for_s=1.0),)
    )[1]
    inputs = told["inputs"]
    assert inputs["came_to_dead_origins"] > 20
    assert inputs["lost_with_their_origin"] == inputs["in_spools"] == 0
    assert inputs["answered"] == inputs["accepted"]


def test_what_waits_for_a_board_that_is_paused_is_done_elsewhere():
    told = simulated(
        duration_s=8.0, boards=chain(2, 2, 2, **STEADY), thresholds=ALWAYS_ON, links=PROMPT,
        failures=(failing("mid-0", how="pause", for_s=3.0),),
    )[1]  # fmt: skip
    assert told["failures"]["paused"] == 1
    assert told["inputs"]["sent_once_more"] > 0
    # It does what it had when it goes on, which is too late.
    assert told["inputs"]["late_duplicates"] > 0
    assert told["reasons"]["last"] == told["inputs"]["accepted"] == told["inputs"]["in_time"]


def test_what_waits_for_the_broker_is_done_when_it_is_back():
    """All boards announce themselves once more. Those that connect later than others seem to be silent for a while."""
    broken = BrokerFailure(kind="broker", at_s=2.0, for_s=0.5)
    told = simulated(thresholds=ALWAYS_ON, agents=AgentsConfig(deadline_ms=5000), failures=(broken,), links=PROMPT)[1]
    assert told["reasons"]["last"] >= told["inputs"]["accepted"] - 3
    assert told["inputs"]["sent_once_more"] < 10
    assert told["latency_ms"]["max"] > 500
    assert told["messages"]["member"] == told["messages"]["state"] == 2 * 5
    # From the start, from what is retained, and from boards as they connect again.
    assert told["members"]["deliveries"] == {"member": 3 * 2 * 3, "state": 3 * 2 * 3}


@pytest.mark.parametrize(
    "failure",
    [
        {"how": "pause"},
        {"how": "pause", "for_s": 1.0, "notice_s": 1.0},
        {"how": "stop", "notice_s": 1.0},
    ],
)
def test_a_failure_that_makes_no_sense_is_refused(failure):
    with pytest.raises(ConfigError):
        failing("mid", **failure)


def test_what_boards_say_of_themselves_is_counted():
    """Two origins need three members, each on one stage: all hear each of them, and listen to its state."""
    told = simulated()[1]
    assert told["messages"]["member"] == told["messages"]["state"] == 5
    assert told["members"]["deliveries"] == {"member": 2 * 3, "state": 2 * 3}
    assert told["members"]["subscriptions"] == 2 * 3
    again = simulated(failures=(failing("mid-0", for_s=1.0),))[1]
    # One announcement, one will and one state more; the state of a will is the broker's to send.
    assert again["messages"]["member"] == again["messages"]["state"] == 6
    assert again["members"]["deliveries"] == {"member": 2 * 4, "state": 2 * 3 + 2 * 2}


def test_narrow_links_are_held_up_by_what_boards_say():
    narrow = LinksConfig(latency_ms=2, jitter_ms=0, kbit_per_s=20)
    traffic = TrafficConfig(rate_hz=2.0, synthetic=SMALL, tensor_bytes=(0, 0, 0))
    given = {"links": narrow, "traffic": traffic, "agents": AgentsConfig(deadline_ms=5000), "thresholds": ALWAYS_ON}
    calm = simulated(boards=chain(1, 1, 1, **STEADY), **given)[1]
    crowd = (*chain(1, 1, 1, **STEADY), BoardsConfig(name="more", count=40, stages=(1,), stage_ms=(20,), **STEADY))
    restless = simulated(boards=crowd, failures=(failing("more", for_s=1.0),), **given)[1]
    assert restless["latency_ms"]["max"] > calm["latency_ms"]["max"] + 300


def test_where_nothing_is_retained_origins_ask():
    site, told = simulated(broker=BrokerConfig(retains=False), thresholds=ALWAYS_ON)
    assert told["messages"]["call"] >= 1
    assert told["members"]["deliveries"]["call"] == 5 * told["messages"]["call"]
    # What came before the boards had answered was answered by its origin alone.
    assert told["reasons"]["fallback"] > 0
    assert told["reasons"]["last"] > told["reasons"]["fallback"]
    assert all(board.node.telemetry().origin.members == 3 for board in site.boards["cam"])


def test_books_of_their_own_say_what_the_shared_book_says():
    """An origin that hears all itself knows in the end what all know from the book that they share."""
    failures = (failing("mid-0", for_s=1.0), failing("end", at_s=3.0))
    members = [
        {board.node.telemetry().origin.members for board in simulated(
            broker=BrokerConfig(retains=retains), failures=failures, boards=chain(3, 3, 2))[0].boards["cam"]}
        for retains in (True, False)
    ]  # fmt: skip
    assert members == [{3}, {3}]


# ------------------------------------------------------------ wide networks


def wide(mode, **changes):
    boards = [BoardsConfig(name="cam", count=2, origin=True)]
    boards += [
        BoardsConfig(name=f"b{branch}", count=2, stages=(0, 1, 2), branch=branch, stage_ms=(5, 5, 5))
        for branch in range(2)
    ]
    return simulated(boards=tuple(boards), agents=AgentsConfig(mode=mode), **changes)[1]


@pytest.mark.parametrize("mode", ["gated", "eager"])
def test_branches_answer_together(mode):
    told = wide(mode)
    inputs = told["inputs"]
    assert inputs["accepted"] == inputs["answered"] > 20
    assert inputs["answered_without_a_branch"] == 0
    assert (told["wasted_runs"] > 0) == (mode == "eager")


def test_a_dead_branch_is_done_without():
    told = wide("gated", failures=(BoardsFailure(kind="boards", boards="b1", at_s=1.0, notice_s=0.0),))
    inputs = told["inputs"]
    assert inputs["accepted"] == inputs["answered"]
    assert inputs["answered_without_a_branch"] > 0


# ------------------------------------------------------------ tuning

GOAL = Goal(accuracy_drop=Share(0.03), audit_rate=Share(0.3))


@pytest.fixture
def heard(monkeypatch):
    """What tunings learned from, in order."""
    audits = []
    learn = PipelineTuning.apply

    def note(tuning, sample):
        audits.append(sample.audit)
        learn(tuning, sample)

    monkeypatch.setattr(PipelineTuning, "apply", note)
    return audits


def test_tuning_comes_to_the_thresholds_of_a_replay(heard, tmp_path):
    traffic = TrafficConfig(rate_hz=25, synthetic=SyntheticConfig(inputs=5000))
    site, told = simulated(
        duration_s=40, traffic=traffic, boards=chain(4, 8, 8), goal=GOAL, agents=AgentsConfig(deadline_ms=5000)
    )
    assert not any(audit.lost for audit in heard)
    assert told["audits"]["drawn"] == pytest.approx(len(heard), abs=50)
    replayed = replay(Certified(site.traffic.costs, 0.03, 0.05), AuditRecording(tuple(heard), site.traffic.costs))
    assert len(replayed.steps) > 2
    assert site.host.service.controllers.of("fleet").tuning.thresholds() == replayed.steps[-1].thresholds
    steps = {step.thresholds for step in replayed.steps}
    plans = [plan.thresholds for _, plan in site.books.plans]
    assert len(set(plans)) > 2
    assert set(plans) <= steps
    # The command line comes to the same.
    path, written = tmp_path / "heard.npz", tmp_path / "replay.json"
    np.savez(
        path,
        score=[(*audit.scores, 0.0) for audit in heard],
        prediction=[audit.predictions for audit in heard],
        mac=site.traffic.costs,
    )
    assert main(["tune", "--replay", str(path), "--accuracy-drop", "3%", "--json", str(written)]) == 0
    last = json.loads(written.read_text())["steps"][-1]["thresholds"]
    assert tuple(math.inf if value is None else value for value in last) == replayed.steps[-1].thresholds


def test_an_orchestrator_that_died_goes_on_from_its_store():
    traffic = TrafficConfig(rate_hz=25, synthetic=SyntheticConfig(inputs=5000))
    site, told = simulated(
        duration_s=40,
        traffic=traffic,
        boards=chain(4, 8, 8),
        goal=GOAL,
        failures=(OrchestratorFailure(kind="orchestrator", at_s=20, for_s=4),),
    )
    assert told["failures"]["orchestrator"] == 1
    before = [plan for at_s, plan in site.books.plans if at_s < 20]
    after = [plan for at_s, plan in site.books.plans if at_s >= 20]
    assert all(at_s < 20 or at_s > 24 for at_s, _ in site.books.plans)
    assert before[-1].thresholds[0] < NEVER
    assert after[0].epoch >= before[-1].epoch
    assert all(new <= old for new, old in zip(after[0].thresholds, before[-1].thresholds, strict=True))


def test_a_drift_raises_an_alarm_and_shuts_the_exits():
    traffic = TrafficConfig(rate_hz=25, synthetic=SyntheticConfig(inputs=5000))
    drift = PredictionsDrift(kind="predictions", at_s=20.0, share=Share(0.4))
    site, told = simulated(duration_s=30, traffic=traffic, boards=chain(4, 8, 8), goal=GOAL, drift=(drift,))
    assert told["alarms_at_s"]
    assert all(20 < at_s < 30 for at_s in told["alarms_at_s"])
    shut = [plan for at_s, plan in site.books.plans if at_s >= told["alarms_at_s"][0]]
    assert shut[0].thresholds == (NEVER, NEVER)


# ------------------------------------------------------------ drift


def drifted(*drifts):
    table = Table(
        scores=np.linspace(0, 1, 100)[:, None].repeat(2, axis=1),
        predictions=np.arange(300).reshape(100, 3) % 10,
        costs=(1.0, 2.0, 3.0),
        labels=np.arange(100) % 10,
    )
    traffic = Traffic(table, fleet(drift=drifts, duration_s=10.0))
    return table, traffic


def test_a_drift_ends_when_its_time_is_over():
    _, traffic = drifted(HarderDrift(kind="harder", at_s=1, for_s=2, share=Share(0.1)))
    assert traffic.phases == (0.0, 1.0, 3.0)
    traffic.begin(1.0)
    assert {traffic.draw() for _ in range(300)} == set(range(10))
    traffic.begin(3.0)
    assert max(traffic.draw() for _ in range(300)) > 50


def test_a_mix_of_classes_leaves_other_classes_out():
    _, traffic = drifted(ClassesDrift(kind="classes", at_s=1, classes=(3, 7)))
    traffic.begin(1.0)
    assert {traffic.label(traffic.draw()) for _ in range(200)} == {3, 7}


def test_surer_scores_are_what_exits_say():
    table, traffic = drifted(ScoresDrift(kind="scores", at_s=1, by=0.5))
    traffic.begin(1.0)
    for _ in range(50):
        ident = traffic.draw()
        logits = traffic.ran(0, traffic.tensor(ident)).logits
        assert max(logits) == table.scores[ident - 100, 0] + 0.5
        assert logits.index(max(logits)) == table.predictions[ident - 100, 0]


def test_early_exits_are_wrong_about_a_share():
    table, traffic = drifted(PredictionsDrift(kind="predictions", at_s=1, share=Share(0.4)))
    traffic.begin(1.0)
    idents = {traffic.draw() for _ in range(2000)}
    assert len(idents) == 100
    wrong = [traffic.prediction(ident, 0) != table.predictions[ident - 100, 0] for ident in idents]
    assert 0.2 < np.mean(wrong) < 0.6
    assert all(traffic.prediction(ident, 2) == table.predictions[ident - 100, 2] for ident in idents)
