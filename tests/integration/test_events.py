"""Nothing is silent: each fault is one line at the board, at the orchestrator, in its status, and one event."""

from __future__ import annotations

import time

import pytest
from test_tuning_live import start_orchestrator

from broker_config.managed import find_mosquitto
from distree import topics
from distree.messages.codec import decode, encode
from distree.messages.events import Event, EventKind, Severity
from distree.messages.request import InputMessage
from distree.thresholds import NEVER
from distree.topics import Kind
from orchestrator.config import load_config
from orchestrator.status.text import render
from orchestrator.status.view import read_status

pytestmark = pytest.mark.any_broker


class Events:
    """What boards and the orchestrator tell of a site, gathered by its watcher."""

    def __init__(self, site):
        self.site, self.heard = site, []
        received = site.watch.received

        def keep(message):
            if topics.parse(message.topic).kind in (Kind.EVENT, Kind.SITE_EVENT):
                self.heard.append(decode(Event, message.payload))
                site.watch.transport.acknowledge(message.token)
            else:
                received(message)

        site.watch.received = keep
        with site.watch.transport.lock:
            site.watch.transport.subscribe([(topics.site_event("test"), 1)])

    def until(self, *words):
        """Wait for an event with all of these words; return it."""
        found = []

        def has_come():
            found[:] = [one for one in self.heard if all(word in f"{one.device} {one.what}" for word in words)]
            return bool(found)

        self.site.watch.until(has_come, f"an event with {words}")
        return found[0]


@pytest.fixture
def events(site):
    return Events(site)


def replay(samples_path, rate_hz, **changes):
    source = {"kind": "replay", "path": str(samples_path), "rate_hz": rate_hz, "repeat": True}
    return {"deadline_ms": 1000, "min_retry_ms": 100, "source": source, **changes}


def status_of(config):
    return render(read_status(load_config(config)))


def test_a_killed_board_is_told_by_the_orchestrator_the_origin_and_in_status_and_so_is_its_return(
    site, events, bundle, samples_path
):
    config = start_orchestrator(site)
    site.plan(bundle, 1, (NEVER, NEVER))
    site.agent("b1", [1])
    site.agent("b2", [2])
    site.agent("cam", [0], origin=replay(samples_path, 50))
    site.watch.until(lambda: len(site.watch.final()) > 30, "the first results")
    site.kill("b1")
    lost = events.until("b1", "lost: its connection to the broker ended without a goodbye")
    assert (lost.kind, lost.severity) == (EventKind.BOARD, Severity.WARNING)
    assert lost.remedy
    fallback = events.until("cam", "inputs are answered with the best guess so far")
    assert (fallback.kind, fallback.pipeline) == (EventKind.FALLBACK, "fashion")
    site.agent("b1", [1], ready=False)
    assert events.until("b1", "is back after").severity is Severity.INFO
    over = events.until("cam", "inputs are answered in full again")
    assert over.severity is Severity.INFO
    # One line each, with its reason.
    for name, words in (
        ("cam", "inputs are answered with the best guess so far"),
        ("cam", "inputs are answered in full again"),
        ("orchestrator", "board b1: lost: its connection"),
        ("orchestrator", "board b1: is back after"),
    ):
        assert site.log(name).count(words) == 1, site.log(name)
    site.watch.until(lambda: "in full again" in status_of(config), "the store")
    shown = status_of(config)
    for words in ("WARNING b1: lost: its connection", "b1: is back after", "cam fashion: inputs are answered in full"):
        assert words in shown


def test_a_burst_without_room_is_told_when_it_begins_and_when_it_is_over(site, events, images):
    if find_mosquitto() is None:
        pytest.skip("the embedded broker delivers at QoS 1 what was published at QoS 0, so that it waits for room")
    # No stage is served by anybody, so that what is accepted stays in custody until its deadline.
    site.agent("cam", [], origin={"deadline_ms": 1500, "max_pending": 2, "source": {"kind": "mqtt"}})
    for index in range(40):
        payload = InputMessage(request=f"burst-{index}", name=str(index), payload=images[index].tobytes())
        with site.watch.transport.lock:
            # At QoS 0 they cannot wait with the broker.
            site.watch.transport.publish(topics.of_origin("test", "fashion", Kind.INPUT, "cam"), encode(payload), qos=0)
    assert events.until("cam", "inputs are turned away because there is no room").kind is EventKind.SHED
    assert "inputs in" in events.until("cam", "there is room for inputs again").what
    assert site.log("cam").count("inputs are turned away") == 1


def test_a_spool_that_cannot_be_written_is_told_at_the_board_and_as_an_event(site, events, images, tmp_path):
    state = tmp_path / "state-file"
    state.write_text("not a folder")
    site.agent(
        "cam", [0, 1, 2], origin={"deadline_ms": 1000, "spool": True, "source": {"kind": "mqtt"}}, state_dir=str(state)
    )
    told = events.until("cam", "cannot be written")
    assert (told.kind, told.severity) == (EventKind.DISK, Severity.ERROR)
    assert "correct state_dir" in told.remedy
    state.unlink()
    site.submit("r-1", "one", images[0])
    assert "works again" in events.until("cam", "works again").what


def test_a_lost_broker_is_told_when_it_is_back(site, samples_path):
    site.agent("cam", [0, 1, 2], origin=replay(samples_path, 20))
    site.watch.until(lambda: len(site.watch.final()) > 5, "results")
    site.broker.stop()
    time.sleep(1.0)
    site.broker.start()
    # The event itself may come before the watcher is connected again.
    site.watch.until(lambda: "connected to the broker again after" in site.log("cam"), "the line")
    assert site.log("cam").count("connected to the broker again after") == 1
