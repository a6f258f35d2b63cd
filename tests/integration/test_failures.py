"""Things die in mid-stream: every accepted input is answered all the same."""

from __future__ import annotations

import time

import pytest
import yaml

from broker_config.managed import ManagedBroker, find_mosquitto
from distree.thresholds import NEVER

pytestmark = pytest.mark.any_broker

FALLEN_BACK = {"deadline", "fallback"}


def replay(samples_path, limit, rate_hz, **changes):
    source = {"kind": "replay", "path": str(samples_path), "max_inputs": limit, "rate_hz": rate_hz}
    return {"deadline_ms": 1000, "min_retry_ms": 100, "source": source, **changes}


def names(count):
    return {str(index) for index in range(count)}


@pytest.mark.parametrize("victim", ["b1", "b2"])
def test_a_killed_agent_costs_no_answer(site, bundle, samples_path, victim):
    site.plan(bundle, 1, (NEVER, NEVER))
    for device, stage in (("b1", 1), ("b2", 2)):
        site.agent(device, [stage])
    site.agent("cam", [0], origin=replay(samples_path, 300, 100))
    site.watch.until(lambda: len(site.watch.final()) > 60, "the first results")
    site.kill(victim)
    site.watch.until(lambda: site.watch.states.get(victim) == "lost", "the will")
    site.watch.until(lambda: any(r.reason in FALLEN_BACK for r in site.watch.results), "a fallback")
    site.agent(victim, [{"b1": 1, "b2": 2}[victim]], ready=False)
    site.watch.until(lambda: site.watch.final().keys() == names(300), "300 results")
    finals = [result for result in site.watch.results if result.final]
    assert len(finals) == 300
    reasons = {result.reason for result in finals}
    assert "last" in reasons
    assert reasons & FALLEN_BACK
    assert all(result.label for result in finals)
    # By the deadline of a second, and what a busy machine adds.
    assert all(result.latency_s < 5.0 for result in finals)
    # The board is back in the stream.
    site.watch.until(lambda: site.watch.states.get(victim) == "ready", "the board's return")


def test_a_killed_origin_answers_its_spool_when_it_is_back(site, images):
    origin = {"deadline_ms": 1000, "spool": True, "source": {"kind": "mqtt"}}
    # Nobody serves the stages beyond, so that inputs wait in custody when the origin dies.
    site.agent("cam", [0], origin=origin)
    accepted = 30
    for index in range(accepted):
        site.submit(f"req-{index}", str(index), images[index])
    site.watch.until(
        lambda: "cam" in site.watch.telemetry and site.watch.telemetry["cam"].pipelines[0].origin.accepted == accepted,
        "all to be accepted",
    )
    answered_before = len(site.watch.final())
    site.kill("cam")
    site.watch.until(lambda: site.watch.states.get("cam") == "lost", "the will")
    site.agent("cam", [0], origin=origin)
    site.watch.until(lambda: site.watch.final().keys() == names(accepted), "all results")
    restored = [result for result in site.watch.results if result.attempt == 2 and result.hops]
    assert answered_before == accepted or restored


def test_an_origin_killed_again_and_again_says_one_thing_of_each_request(site, bundle, images):
    # Near the middle of what exits say, so that who answers what, and in which attempt, is a matter of luck.
    site.plan(bundle, 1, (0.9, 0.9))
    for device, stage in (("b1", 1), ("b2", 2)):
        site.agent(device, [stage])
    origin = {"deadline_ms": 300, "min_retry_ms": 50, "max_pending": 256, "spool": True, "source": {"kind": "mqtt"}}
    inbox, sent = {"max_messages": 256}, 0
    for life in range(10):
        process = site.agent("cam", [0], origin=origin, inbox=inbox)
        # All together not more than may wait to be decoded.
        for _ in range(25):
            site.submit(f"req-{sent}", str(sent), images[sent % len(images)])
            sent += 1
        heard = len(site.watch.results)
        site.watch.until(lambda: len(site.watch.results) >= heard + 2 * life, "a few results")  # noqa: B023
        process.kill()
        process.wait()
    site.agent("cam", [0], origin=origin, inbox=inbox)
    site.watch.until(lambda: site.watch.final().keys() == names(sent), "all results")
    # What is said again has been said before the origin reports an empty book.
    site.watch.until(
        lambda: (
            (report := site.watch.telemetry.get("cam")) is not None
            and site.watch.states["cam"] == "ready"
            and report.pipelines[0].origin.pending == 0
        ),
        "empty books",
    )
    site.watch.until_reported("cam")
    said = {}
    for raw in site.watch.raw_results:
        if raw["final"]:
            said.setdefault(raw["request"], []).append(raw)
    differing = {request: finals for request, finals in said.items() if any(one != finals[0] for one in finals)}
    assert not differing
    assert len(said) == sent
    assert not site.watch.dead


def test_a_killed_orchestrator_changes_nothing_but_tuning(site, bundle, samples_path):
    config = site.folder / "orchestrator.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "site": "test",
                "broker": {"port": site.broker.port},
                "store": {"path": str(site.folder / "orchestrator.db")},
                "pipelines": [{"name": "fashion", "bundle": "fashion", "thresholds": ["never", 0.0]}],
            }
        )
    )
    site.start("orchestrator", "orchestrator", "run", "-c", str(config))
    for device, stage in (("b1", 1), ("b2", 2)):
        site.agent(device, [stage])
    origin = replay(samples_path, 1000, 100, deadline_ms=20000)
    origin["source"]["repeat"] = True
    site.agent("cam", [0], origin=origin)
    site.watch.until(lambda: len(site.watch.final()) > 50, "the first results")
    site.kill("orchestrator")
    # A board that starts while the orchestrator is gone finds the retained plan.
    site.kill("b1")
    site.agent("b1", [1])
    before = len(site.watch.results)
    site.watch.until(
        lambda: any(
            (result.epoch, result.exit, result.reason) == (1, 1, "confident") for result in site.watch.results[before:]
        ),
        "an answer of the board that is back",
    )


def test_a_broker_restart_in_mid_stream_costs_no_answer(tmp_path, site_on, bundle, samples_path):
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: the embedded broker keeps no sessions over a restart")
    with ManagedBroker(engine="mosquitto", persistence=tmp_path / "broker") as broker:
        site = site_on(broker)
        site.plan(bundle, 1, (NEVER, NEVER))
        for device, stage in (("b1", 1), ("b2", 2)):
            site.agent(device, [stage])
        origin = replay(samples_path, 1000, 100, max_pending=32)
        origin["source"]["repeat"] = True
        process = site.agent("cam", [0], origin=origin)
        site.watch.until(lambda: len(site.watch.final()) > 60, "the first results")
        broker.stop()
        ends_at = time.monotonic() + 2.0
        site.watch.until(lambda: time.monotonic() > ends_at, "two seconds without a broker")
        broker.start()
        before = len(site.watch.results)
        # The stream flows again, all the way.
        site.watch.until(lambda: any(r.reason == "last" for r in site.watch.results[before + 100 :]), "the last exit")
        site.watch.until(lambda: set(site.watch.states.values()) == {"ready"}, "all boards to be ready again")
        process.terminate()
        assert process.wait(30) == 0
        site.watch.until(lambda: site.watch.states["cam"] == "disconnected", "goodbye")
        books = site.watch.telemetry["cam"].pipelines[0].origin
        assert books.answered == books.accepted
        site.watch.until(
            lambda: len({r.request for r in site.watch.results if r.final}) >= books.accepted, "every result"
        )
        # The broker may have gone between taking a result and saying so: then the same result comes twice.
        finals = {result for result in site.watch.results if result.final}
        assert len(finals) == len({result.request for result in finals}) == books.accepted
        assert all(result.label for result in finals)


def test_a_state_that_is_not_ours_is_healed(site):
    site.agent("cam", [0, 1, 2])
    site.watch.publish(
        "distree/1/test/device/cam/state",
        b'{"schema":"distree.state/1","device":"cam","boot":"old","state":"lost"}',
        retain=True,
    )
    site.watch.until(lambda: ("cam", "lost") in site.watch.history, "the old will")
    site.watch.until(lambda: site.watch.states["cam"] == "ready", "the healed state")


def test_inputs_published_while_the_origin_restarts_are_answered(site, images):
    origin = {"deadline_ms": 2000, "source": {"kind": "mqtt"}}
    process = site.agent("cam", [0, 1, 2], origin=origin)
    for index in range(50):
        site.submit(f"before-{index}", f"before-{index}", images[index])
    process.terminate()
    assert process.wait(30) == 0
    for index in range(150):
        site.submit(f"away-{index}", f"away-{index}", images[index])
    site.watch.settle()
    site.agent("cam", [0, 1, 2], origin=origin, ready=False)
    for index in range(50):
        site.submit(f"after-{index}", f"after-{index}", images[index])
    wanted = {
        f"{when}-{index}" for when, count in (("before", 50), ("away", 150), ("after", 50)) for index in range(count)
    }
    site.watch.until(lambda: site.watch.final().keys() == wanted, "all results")
    assert all(result.label for result in site.watch.final().values())
    requests = [result.request for result in site.watch.results if result.final]
    assert len(set(requests)) == len(requests)


def test_nothing_is_delivered_under_the_configuration_of_an_earlier_run(site, bundle, samples_path, images):
    """An agent with all stages is started anew with one: what others serve now does not come to it."""
    site.plan(bundle, 1, (NEVER, NEVER))
    # A second attempt is to mean that the first was lost, not that this machine is busy.
    origin = {"deadline_ms": 30_000, "min_retry_ms": 20_000, "source": {"kind": "mqtt"}}
    process = site.agent("cam", [0, 1, 2], origin=origin)
    site.submit("first", "first", images[0])
    site.watch.until(lambda: "first" in site.watch.final(), "the first answer")
    process.terminate()
    assert process.wait(30) == 0
    site.agent("far", [1, 2])
    site.agent("cam", [0], origin=origin)
    for index in range(100):
        site.submit(f"r{index}", f"r{index}", images[index])
    site.watch.until(lambda: len(site.watch.final()) == 101, "all results")
    later = [result for result in site.watch.results if result.request != "first"]
    assert {(result.reason, result.attempt) for result in later} == {("last", 1)}
    assert not site.watch.dead


def test_a_dead_board_leaves_no_input_without_a_label_however_far_the_deadline(site, bundle, samples_path):
    site.plan(bundle, 1, (NEVER, NEVER))
    for device, stage in (("b1", 1), ("b2", 2)):
        site.agent(device, [stage])
    origin = replay(samples_path, 1000, 60, deadline_ms=8000, max_pending=32)
    site.agent("cam", [0], origin=origin)
    site.watch.until(lambda: len(site.watch.final()) > 60, "the first results")
    site.kill("b1")
    before = len(site.watch.results)
    site.watch.until(lambda: len(site.watch.results) > before + 300, "300 answers without the board")
    site.agent("b1", [1])
    before = len(site.watch.results)
    site.watch.until(lambda: any(r.reason == "last" for r in site.watch.results[before:]), "the last exit again")
    assert all(result.label for result in site.watch.results)
    # Most are answered at once, not at their deadline.
    slow = [result for result in site.watch.results if result.latency_s > 4.0]
    assert len(slow) <= 32
