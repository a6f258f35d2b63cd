"""Lines that repeat are written once in a while."""

from distree.log_throttle import INTERVAL_S, LogThrottle


def test_one_of_a_kind_is_written_and_the_next_counts_the_others():
    throttle = LogThrottle()
    assert throttle.unsaid_before(0.0, "a") == 0
    assert throttle.unsaid_before(1.0, "b") == 0
    assert [throttle.unsaid_before(1.0 + k / 10, "a") for k in range(3)] == [None] * 3
    assert throttle.unsaid_before(INTERVAL_S, "a") == 3
    assert throttle.unsaid_before(3 * INTERVAL_S, "a") == 0


def test_of_many_kinds_at_once_only_a_burst_is_written_and_the_rest_is_counted():
    throttle = LogThrottle(burst=5)
    said = [throttle.unsaid_before(0.01 * k, f"kind {k}") for k in range(20)]
    assert said == [0] * 5 + [None] * 15
    assert throttle.unsaid_before(INTERVAL_S + 0.1, "kind 30") == 15
    assert throttle.unsaid_before(INTERVAL_S + 0.2, "kind 31") == 0


def test_what_it_remembers_is_bounded():
    throttle = LogThrottle()
    for k in range(10_000):
        throttle.unsaid_before(0.0, f"kind {k}")
    assert len(throttle._said) <= 64
