"""The life of a connection, event by event, without a socket."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest

from distree.broker_settings import BrokerSettings, TlsSettings
from distree.errors import ConfigError
from distree.transport.connect_errors import no_mqtt
from distree.transport.connection import CONNECTION_TRANSITIONS, Connection, Step, transition_table
from distree.transport.negotiation import MAX_FILTERS_PER_SUBSCRIBE

FILTERS = [("a/#", 1), ("b/#", 2)]


def made(*, has_will: bool = False, version: str | int = "auto") -> Connection:
    settings = BrokerSettings(mqtt_version=version, connect_timeout_s=5.0)  # type: ignore[arg-type]
    return Connection(settings, "cam1", has_will=has_will, notices=deque())


def dialled(connection: Connection, now: float) -> None:
    if connection.state == "closed":
        connection.open(FILTERS)
    assert connection.dial(max(now, connection.retry_at))
    connection.connect_sent(now)


def online(connection: Connection, now: float, limits: object = None) -> None:
    dialled(connection, now)
    step: Step = connection.on_connack(limits)[0]
    while step == "subscribe":
        step, why = connection.on_suback([None] * len(connection.filters.asked))
        assert why is None
    assert step == "go online"
    assert connection.go_online(now)


def end(connection: Connection, now: float, *, soon: bool = False, diagnosing: bool = False) -> float:
    """End the connection; return how long the next attempt is waited for, in seconds."""
    assert connection.ended(now, soon=soon, diagnosing=diagnosing)
    assert connection.state == "waiting"
    return connection.retry_at - now


def test_every_state_is_reached_ends_and_can_be_closed() -> None:
    reached, before = {"closed"}, set()
    while reached != before:
        before = set(reached)
        reached |= {after for (state, _), after in CONNECTION_TRANSITIONS.items() if state in reached}
    states = {state for state, _ in CONNECTION_TRANSITIONS}
    assert reached == states == set(CONNECTION_TRANSITIONS.values())
    assert all(CONNECTION_TRANSITIONS[state, "close"] == "closed" for state in states)
    ending = {state for state, event in CONNECTION_TRANSITIONS if event == "end"}
    assert ending == states - {"closed", "waiting"}


def test_an_end_between_the_last_subscription_and_being_online_is_reported() -> None:
    connection = made()
    dialled(connection, 0.0)
    connection.on_connack(None)
    assert connection.on_suback([None, None]) == ("go online", None)
    assert "closed the connection" in str(connection.why_lost(None, None, 0.1))


def test_why_this_side_ended_a_connection_is_reported() -> None:
    connection = made()
    dialled(connection, 0.0)
    assert "something other than MQTT" in str(connection.why_lost(None, "malformed", 0.1))
    end(connection, 0.1)
    online(connection, 10.0)
    assert "not valid MQTT" in str(connection.why_lost(None, "malformed", 20.0))
    assert "has stopped answering" in str(connection.why_lost(None, "silent", 20.0))


def test_the_table_can_be_printed() -> None:
    text = transition_table()
    assert len(text.splitlines()) == 1 + len(CONNECTION_TRANSITIONS)
    assert "waiting     dial      -> dialling" in text


def test_a_life() -> None:
    connection = made()
    seen = [connection.state]
    connection.open(FILTERS)
    seen.append(connection.state)
    assert connection.dial(0.0)
    assert not connection.dial(0.0), "one attempt at a time"
    seen.append(connection.state)
    assert not connection.has_socket
    connection.connect_sent(0.1)
    seen.append(connection.state)
    assert connection.has_socket
    assert connection.on_connack(None) == ("subscribe", None)
    seen.append(connection.state)
    assert connection.filters.asked == [("a/#", 1), ("b/#", 1)]
    assert connection.on_suback([None, None]) == ("go online", None)
    assert connection.go_online(0.2)
    seen.append(connection.state)
    end(connection, 0.3)
    assert not connection.close()
    assert seen == ["closed", "waiting", "dialling", "connecting", "subscribing", "online"]


def test_the_end_is_told_once() -> None:
    connection = made()
    assert not connection.ended(0.0, soon=False, diagnosing=False)
    online(connection, 0.0)
    assert connection.ended(1.0, soon=False, diagnosing=False)
    due = connection.retry_at
    assert not connection.ended(2.0, soon=True, diagnosing=False)
    assert connection.retry_at == due


def test_the_wait_grows_and_what_lasted_resets_it() -> None:
    connection, now, waits = made(version=5), 0.0, []
    for _ in range(8):
        online(connection, now)
        waits.append(end(connection, now + 1.0))
        now += 10.0
    for wait, most in zip(waits, [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0], strict=True):
        assert most / 2 <= wait <= most
    online(connection, now)
    assert 0.1 <= end(connection, now + 5.0) <= 0.2


def test_what_is_judged_or_asked_for_soon_does_not_lengthen_the_wait() -> None:
    connection, now = made(version=5), 0.0
    for _ in range(10):
        online(connection, now)
        assert 0.1 <= end(connection, now + 1.0, diagnosing=True) <= 0.2
        online(connection, now + 5.0)
        assert end(connection, now + 6.0, soon=True) == 0.0
        now += 10.0
    online(connection, now)
    assert 0.1 <= end(connection, now + 1.0) <= 0.2


def test_answers_that_nobody_asked_for_change_nothing() -> None:
    connection = made()
    online(connection, 0.0)
    assert connection.on_connack(None) == ("wait", None)
    assert connection.on_refusal("Not authorized") == ("wait", None)
    assert connection.on_suback(["Not authorized"]) == ("wait", None)
    assert not connection.go_online(1.0)
    assert connection.state == "online"
    assert not connection.is_hopeless
    end(connection, 2.0)
    assert not connection.go_online(3.0), "it has ended meanwhile"


def test_another_version_is_tried_at_once_and_no_other_is_not() -> None:
    connection = made()
    dialled(connection, 0.0)
    assert connection.handshake.version == "5"
    assert connection.on_refusal("Unsupported protocol version") == ("reconnect", None)
    assert connection.handshake.version == "3.1.1"
    end(connection, 0.0, soon=True)
    connection = made(version=5)
    dialled(connection, 0.0)
    step, why = connection.on_refusal("Unsupported protocol version")
    assert step == "wait"
    assert why is not None
    assert "unsupported protocol version" in why.what


@pytest.mark.parametrize(
    ("reason", "hopeless"), [("Not authorized", True), ("Bad user name or password", True), ("Server busy", False)]
)
def test_time_does_not_heal_a_refused_login(reason: str, hopeless: bool) -> None:
    connection = made()
    dialled(connection, 0.0)
    step, why = connection.on_refusal(reason)
    assert step == "wait"
    assert why
    assert connection.is_hopeless is hopeless
    assert connection.why_lost(None, None, 1.0) is None, "that was said"
    end(connection, 1.0)
    dialled(connection, 10.0)
    assert not connection.is_hopeless


@pytest.mark.parametrize(
    ("reason", "limit"), [("Retain not supported", "retains"), ("QoS not supported", "takes_qos_1")]
)
def test_a_connect_that_asks_for_too_much_is_changed_once(reason: str, limit: str) -> None:
    connection = made(has_will=True)
    dialled(connection, 0.0)
    assert connection.on_refusal(reason) == ("reconnect", None)
    assert not getattr(connection.limits, limit)
    end(connection, 0.0, soon=True)
    dialled(connection, 1.0)
    step, why = connection.on_refusal(reason)
    assert step == "wait"
    assert why is not None


def test_limits_are_learned_at_each_connection_and_said_while_they_last() -> None:
    connection = made(has_will=True)
    notices = connection._notices
    poor = SimpleNamespace(MaximumPacketSize=1000, ReceiveMaximum=2, RetainAvailable=0, MaximumQoS=0)
    for now in (0.0, 10.0):
        online(connection, now, poor)
        end(connection, now + 1.0)
    limits = connection.limits
    assert (limits.max_packet_bytes, limits.window, limits.retains, limits.takes_qos_1) == (1000, 2, False, False)
    assert len(notices) == 2, "each once"
    online(connection, 20.0)
    assert (limits.window, limits.retains, limits.takes_qos_1) == (64, True, True)
    end(connection, 21.0)
    online(connection, 30.0, poor)
    assert len(notices) == 4, "it was mended in between"


def test_who_only_reads_is_not_told_what_the_broker_does_not_take() -> None:
    connection = made()
    dialled(connection, 0.0)
    connection.on_connack(SimpleNamespace(RetainAvailable=0, MaximumQoS=0))
    assert not connection.limits.retains
    assert not connection._notices


def test_a_refused_filter_is_named_and_time_does_not_heal_it() -> None:
    connection = made()
    dialled(connection, 0.0)
    connection.on_connack(None)
    step, why = connection.on_suback([None, "Not authorized"])
    assert step == "hang up"
    assert why is not None
    assert "subscription to b/# (Not authorized)" in why.what
    assert connection.is_hopeless


def test_a_filter_on_which_the_broker_hangs_up_is_done_without() -> None:
    connection, now = made(version=5), 0.0
    for _ in range(10):
        dialled(connection, now)
        step = connection.on_connack(None)[0]
        while step == "subscribe" and ("a/#", 1) not in connection.filters.asked:
            step = connection.on_suback([None])[0]
        if step == "go online":
            break
        lost = connection.why_lost(None, None, now)
        assert lost is not None
        assert "on the subscription to a/#" in lost.what
        end(connection, now)
        now += 10.0
    assert step == "go online"
    assert ["hangs up on the subscription to a/#" in notice.what for notice in connection._notices] == [True]


def more(connection: Connection, *names: str) -> None:
    connection.filters.add([(name, 1) for name in names])


def test_what_is_added_is_asked_for_one_subscribe_after_the_other_once_online() -> None:
    connection = made()
    connection.open(FILTERS)
    more(connection, *(f"m/{index}" for index in range(MAX_FILTERS_PER_SUBSCRIBE + 1)))
    assert not connection.ask_for_more(0.0), "not before it is online"
    online(connection, 0.0)
    assert connection.ask_for_more(0.0)
    assert [name for name, _ in connection.filters.asked] == [
        f"m/{index}" for index in range(MAX_FILTERS_PER_SUBSCRIBE)
    ]
    assert not connection.ask_for_more(0.0), "not before the answer"
    assert connection.on_suback([None] * MAX_FILTERS_PER_SUBSCRIBE) == ("wait", None)
    assert connection.ask_for_more(0.0)
    assert connection.filters.asked == [(f"m/{MAX_FILTERS_PER_SUBSCRIBE}", 1)]
    connection.on_suback([None])
    assert not connection.ask_for_more(0.0)
    more(connection, "m/0", "a/#")
    assert not connection.ask_for_more(0.0), "it has those"
    end(connection, 1.0)
    online(connection, 10.0)
    assert connection.ask_for_more(0.0), "the next connection knows nothing"
    assert not connection._notices


def test_a_refused_filter_that_was_added_is_said_once_and_the_connection_stays() -> None:
    connection = made()
    for now in (0.0, 10.0):
        online(connection, now)
        more(connection, "good", *(f"bad/{index}" for index in range(20)))
        while connection.ask_for_more(0.0):
            answers = [None if name == "good" else "Not authorized" for name, _ in connection.filters.asked]
            assert connection.on_suback(answers) == ("wait", None)
        assert connection.state == "online"
        assert not connection.is_hopeless
        end(connection, now + 1.0)
    assert len(connection._notices) == 1
    line = str(connection._notices[0])
    assert "refuses the subscription to bad/0 (Not authorized), bad/1" in line
    assert "and 17 more" in line
    assert "broker's ACL" in line
    online(connection, 20.0)
    for refusal in (None, "Not authorized"):
        while connection.ask_for_more(0.0):
            connection.on_suback([refusal] * len(connection.filters.asked))
        end(connection, 21.0)
        online(connection, 30.0)
    assert sum("bad/0" in notice.what for notice in connection._notices) == 2, "it was mended in between"


def test_a_filter_that_is_wanted_no_more_may_be_refused() -> None:
    connection = made()
    online(connection, 0.0)
    more(connection, "m/0")
    assert connection.ask_for_more(0.0)
    assert connection.filters.remove(["m/0"]) == ["m/0"]
    assert connection.on_suback(["Not authorized"]) == ("wait", None)
    assert not connection.ask_for_more(0.0)
    assert not connection._notices


def test_an_added_filter_on_which_the_broker_hangs_up_is_done_without() -> None:
    connection, now, ends = made(version=5), 0.0, 0
    connection.open(FILTERS)
    more(connection, *(f"m/{index}" for index in range(10)))
    while ends < 10:
        dialled(connection, now)
        step = connection.on_connack(None)[0]
        while True:
            if step == "go online":
                connection.go_online(now)
                step = "wait"
            if step == "wait" and not connection.ask_for_more(0.0):
                break
            asked = [name for name, _ in connection.filters.asked]
            if "m/4" in asked:
                break
            step = connection.on_suback([None] * len(asked))[0]
        if not connection.filters.asked:
            break
        end(connection, now)
        ends, now = ends + 1, now + 10.0
    assert ends == 3, "with others, then alone, twice"
    assert connection.state == "online"
    assert connection.filters.without == {"m/4"}
    assert ["hangs up on the subscription to m/4" in notice.what for notice in connection._notices] == [True]


def test_a_broker_that_does_not_answer_in_time_is_overdue() -> None:
    connection = made()
    connection.open(FILTERS)
    assert connection.overdue(1e9) is None, "there is no connection"
    dialled(connection, 10.0)
    assert connection.overdue(15.0) is None
    overdue = connection.overdue(15.1)
    assert overdue is not None
    assert "check that it is an MQTT broker" in overdue.remedy
    connection.on_connack(None)
    assert connection.overdue(15.1) == overdue, "it has to take the subscriptions too"
    connection.on_suback([None, None])
    connection.go_online(15.1)
    assert connection.overdue(1e9) is None


@pytest.mark.parametrize(
    ("error", "hopeless", "absent"),
    [
        (ConnectionRefusedError(), False, True),
        (TimeoutError(), False, False),
        (ConfigError("the file is gone", "write it again"), True, False),
    ],
)
def test_what_waiting_can_mend(error: Exception, hopeless: bool, absent: bool) -> None:
    connection = made()
    connection.open(FILTERS)
    assert connection.dial(0.0)
    assert connection.unreachable(error)
    assert (connection.is_hopeless, connection.is_absent) == (hopeless, absent)
    assert end(connection, 0.0) > 0
    assert connection.dial(10.0)
    assert not connection.is_hopeless
    assert not connection.is_absent


def test_why_a_connection_ended() -> None:
    connection = made()
    online(connection, 0.0)
    assert "no other client uses the id 'cam1'" in str(connection.why_lost(None, None, 1.0))
    assert "other client" not in str(connection.why_lost(None, None, 6.0))
    assert "another client is using the id 'cam1'" in str(connection.why_lost("Session taken over", None, 6.0))
    end(connection, 7.0)
    dialled(connection, 20.0)
    assert "check that it is an MQTT broker" in str(connection.why_lost(None, None, 20.0))


@pytest.mark.parametrize(
    ("tls", "hint"),
    [
        (None, "set broker.tls (or write mqtts://HOST:PORT) if it requires TLS"),
        (TlsSettings(), "set broker.tls.cert_file (or --cert-file) if it requires a client certificate"),
        (TlsSettings(cert_file=Path("a.crt"), key_file=Path("a.key")), "has not revoked the certificate in a.crt"),
    ],
)
def test_what_to_check_where_the_broker_hangs_up_without_a_word(tls: TlsSettings | None, hint: str) -> None:
    problem = no_mqtt(BrokerSettings(tls=tls))
    assert problem.remedy.startswith("check that it is an MQTT broker, and not its port for websockets, and ")
    assert problem.remedy.endswith(hint)
