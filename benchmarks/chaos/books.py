"""Whether an origin's books agree, with each other and with what an observer heard."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

from benchmarks.chaos.report import Report
from benchmarks.chaos.site import Books, Flow, Observer

QUIET_S = 3.0
"""An origin is at rest when its books have said the same for so long, and nothing is pending."""


def at_rest(observer: Observer, origin: str, patience_s: float = 90.0) -> tuple[Books, bool]:
    """Wait until an origin's books rest; return them, and whether they did in time."""
    ends_at = time.monotonic() + patience_s
    last, since = Books(), time.monotonic()
    while time.monotonic() < ends_at:
        with observer.lock:
            books = replace(observer.books.get(origin, Books()))
        same = replace(books, sequence=0) == replace(last, sequence=0)
        if not same:
            last, since = books, time.monotonic()
        # Reports that stopped coming would look like rest.
        elif time.monotonic() - since > QUIET_S and not books.pending and books.sequence > last.sequence + 2:
            return books, True
        time.sleep(0.1)
    return books, False


def check_books(
    report: Report, when: str, observer: Observer, origin: str, sent: Collection[str], *, repeated: int = 0
) -> Books:
    """Check the invariant at rest against all inputs that the origin was sent so far, by their requests.

    `repeated` is how many of them the broker may have handed over more than once.
    """
    books, rested = at_rest(observer, origin)
    with observer.lock:
        real = sum(any(answer.reason != "shed" for answer in observer.finals.get(r, ())) for r in sent)
        turned_away = sum(all(a.reason == "shed" for a in observer.finals.get(r, ())) for r in sent)
    by_broker = observer.broker_dropped()
    unanswered = len(observer.unanswered(sent))
    turned_away -= unanswered
    differing = len(observer.differing())
    report.figures[when] = {
        "sent": len(sent),
        **books.figures(),
        "results": real,
        "shed results": turned_away,
        "without a result": unanswered,
        "dropped by the broker": by_broker,
    }
    check = report.check
    check(rested, f"{when}: not at rest after a minute and a half, {books.pending} pending")
    excess = books.offered - len(sent)
    check(
        -by_broker <= excess <= repeated,
        f"{when}: sent {len(sent)}, offered (accepted + shed + dropped) {books.offered}, handed over again {repeated}, "
        f"dropped by the broker {by_broker}",
    )
    check(books.accepted == books.answered, f"{when}: accepted {books.accepted}, answered {books.answered}")
    # One that was accepted may be shed later, from the queue before the interpreter: that is an answer too.
    told = real + turned_away
    check(
        told == books.accepted + books.shed,
        f"{when}: accepted {books.accepted} and shed {books.shed}, requests with a result {told}",
    )
    check(
        unanswered <= books.dropped + by_broker,
        f"{when}: {unanswered} without a result, {books.dropped} of them owned up to",
    )
    check(not differing, f"{when}: {differing} requests with two different final results")
    return books


def check_next(report: Report, when: str, observer: Observer, flow: Flow, count: int = 120) -> None:
    """Check that so many further inputs are answered with a label."""
    requests = flow.send(count, f"after-{when.replace(' ', '-')}", rate_hz=60.0)
    observer.until(lambda: all(observer.finals.get(request) for request in requests), 20.0)
    labelled = observer.labelled(requests)
    report.note(**{f"then_{when}": f"{labelled} of {count} labelled"})
    report.check(labelled == count, f"after {when}: {labelled} of the next {count} inputs have a label")
