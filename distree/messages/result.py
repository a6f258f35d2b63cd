"""What users see of an input: its result."""

from __future__ import annotations

from distree.messages.fields import count, declared, epoch, flag, ident, number, parts, seconds, text, word
from distree.messages.limits import MAX_ATTEMPTS, MAX_BRANCHES, MAX_CLASSES, MAX_HOPS, MAX_STAGES
from distree.messages.request import Hop, Reason


@declared()
class Stamp:
    """When a result was written, for people; programs use the latencies, which are by one clock."""

    time: str = text("When it was answered, ISO 8601 in UTC.")
    clock_synced: bool = flag("Whether the clock behind `time` was synchronised.")


@declared()
class MissingBranch:
    """A branch of a wide stage that was not heard from at the exit taken."""

    branch: int = count("Number of the branch.", most=MAX_BRANCHES - 1)
    device: str | None = text("Board that was asked to run it; null if there was none.", most=32, nullable=True)


@declared(schema="distree.result/1", beside=Stamp)
class Result:
    """What users see, as JSON: schema `distree.result/1`.

    Exactly one result of a request has `final` true. `class_id`, `label` and `exit` are None when nothing could
    be computed in time. `missing` are the branches of a wide stage that were not heard at the exit taken, each with the
    board that was to run it.
    """

    request: str = text("Id of the request.")
    site: str = text("Id of the site.", most=32)
    pipeline: str = ident("Id of the pipeline.")
    origin: str = ident("Board that accepted the input.")
    input: str = text("Name of the input, as its source gave it.", most=512)
    label: str | None = text("Name of the class; null where nothing could be computed in time.", nullable=True)
    class_id: int | None = count(
        "Index of the predicted class; null where nothing could be computed in time.", most=MAX_CLASSES, nullable=True
    )
    confidence: float = number("Largest softmax probability at the exit taken.", most=1.0, digits=4)
    exit: int | None = count(
        "Number of the exit that answered, from 0; null where none did.", most=MAX_STAGES - 1, nullable=True
    )
    reason: Reason = word("Why it was answered at that exit.", Reason)
    final: bool = flag("True for exactly one result of a request.")
    late: bool = flag("Whether it arrived after another result of the request was final.")
    attempt: int = count("1, plus one for each time that the features were sent again.", most=MAX_ATTEMPTS)
    latency_s: float = seconds("Time from the input to its answer, by the origin's clock.", json="latency_ms")
    epoch: int = epoch("Number of the plan by which exits were decided; 0 for the bundle's own thresholds.")
    model: str = text("Name of the bundle.")
    revision: str = text("Revision of the bundle.")
    hops: tuple[Hop, ...] = parts(Hop, "Where the time went: one entry per board and stage.", most=MAX_HOPS)
    missing: tuple[MissingBranch, ...] = parts(
        MissingBranch, "Branches that were not heard from at the exit taken.", most=MAX_BRANCHES, default=()
    )
