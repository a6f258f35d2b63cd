"""What boards report every few seconds.

A counter or gauge declared here is a column of the store's history and a metric of Prometheus by that alone: see
`orchestrator/store/history.py` and `orchestrator/metrics.py`.
"""

from __future__ import annotations

from distree.messages.fields import count, counts, declared, epoch, ident, part, parts, seconds, tally, text
from distree.messages.layout import Metric
from distree.messages.limits import HASH_DIGITS, MAX_BRANCHES, MAX_PIPELINES, MAX_STAGES
from distree.messages.request import Reason

COUNTER, GAUGE = Metric(grows=True), Metric(grows=False)


@declared()
class StageTelemetry:
    """Counters of one stage on one device since boot; times are means over the last report's period.

    `wasted` counts runs of a branch at a depth that the answer did not need, `audited` runs for audits and probes, in
    none of the other counters and means.
    """

    stage: int = count("Number of the stage, from 0.", most=MAX_STAGES - 1)
    received: int = count("Inputs and features received.", metric=COUNTER)
    exited: int = count("Runs after which the input was answered.", metric=COUNTER)
    forwarded: int = count("Runs after which features or an embedding went on.", metric=COUNTER)
    shed: int = count("Work refused or answered at once because a queue was full.", metric=COUNTER)
    expired: int = count("Work dropped because its time was up.", metric=COUNTER)
    failed: int = count("Runs that raised an error.", metric=COUNTER)
    duplicate: int = count("Deliveries seen before.", metric=COUNTER)
    waiting: int = count("Work waiting now.", metric=GAUGE)
    bytes_out: int = count(
        "Bytes of features and embeddings published.", unit="bytes", metric=Metric(grows=True, name="sent_bytes")
    )
    queue_s: float = seconds("Mean wait before a run, over the last report's period.", metric=GAUGE)
    compute_s: float = seconds("Mean time of a run, over the last report's period.", metric=GAUGE)
    wasted: int = count("Runs of a branch that the answer did not need.", metric=COUNTER, default=0)
    audited: int = count("Runs for audits and probes, which no other counter includes.", metric=COUNTER, default=0)


@declared()
class FusionTelemetry:
    """Counters of the exit of one wide stage on the device that fuses it, since boot.

    `missing` counts, per branch, the decisions made without it; `late` the embeddings that came after their
    decision; `expired` the requests that were given up while waiting for this exit's embeddings. `audited` counts
    what was fused for audits, which are in no other counter.
    """

    stage: int = count("Number of the stage, from 0.", most=MAX_STAGES - 1)
    fused: int = count("Exits of a wide stage that were decided.", metric=COUNTER)
    exited: int = count("Of these, those after which the input was answered.", metric=COUNTER)
    forwarded: int = count("Of these, those after which the input went on.", metric=COUNTER)
    failed: int = count("Fusion heads that raised an error.", metric=COUNTER)
    expired: int = count("Requests given up while waiting for embeddings.", metric=COUNTER)
    late: int = count("Embeddings that arrived after their decision.", metric=COUNTER)
    missing: tuple[int, ...] = counts(
        "Decisions made without each branch.", most=MAX_BRANCHES, metric=Metric(grows=True, by="branch")
    )
    audited: int = count("Fusions for audits only, which no other counter includes.", metric=COUNTER, default=0)


@declared()
class OriginTelemetry:
    """Counters of one origin since boot. `exits` and `reasons` count answered inputs; latency is of the last period.

    What was offered is `accepted`, each of which is `answered` once, + `shed`, which found no room and whose results
    say so, + `dropped`, which found no room and of which the broker could not be told either.
    `audits_drawn` counts the inputs drawn by lot; of each there is a row by now, or there will be one. `unspooled` is
    how many inputs under way a crash would lose, because the spool's disk fails; 0 where there is no spool.
    """

    accepted: int = count("Inputs accepted.", metric=COUNTER)
    answered: int = count("Inputs answered.", metric=COUNTER)
    resent: int = count("Inputs sent again.", metric=COUNTER)
    late: int = count("Answers that arrived after their input was answered.", metric=COUNTER)
    pending: int = count("Inputs not yet answered.", metric=GAUGE)
    exits: tuple[int, ...] = counts(
        "Inputs answered by each exit.",
        most=MAX_STAGES,
        metric=Metric(grows=True, name="answered_by_exit", by="exit"),
    )
    reasons: dict[str, int] = tally(
        "Inputs answered, by reason.", Reason, metric=Metric(grows=True, name="answered_by_reason", by="reason")
    )
    latency_p50_s: float = seconds("Median latency over the last report's period.", metric=GAUGE)
    latency_p95_s: float = seconds("95th percentile of latency over the last report's period.", metric=GAUGE)
    latency_max_s: float = seconds("Longest latency over the last report's period.", metric=GAUGE)
    audits_drawn: int = count("Inputs drawn for audits.", metric=COUNTER, default=0)
    audits_lost: int = count("Audits that could not be run to the end.", metric=COUNTER, default=0)
    shed: int = count(
        "Inputs turned away for lack of room, each with a result that says so.", metric=COUNTER, default=0
    )
    dropped: int = count("Inputs turned away without room even for a result.", metric=COUNTER, default=0)
    unspooled: int = count(
        "Unanswered inputs that a crash would lose, because writing the spool to disk fails.", metric=GAUGE, default=0
    )
    members: int = count("Boards of the pipeline that can be chosen.", metric=GAUGE, default=0)
    left_out: int = count("Of these, those left out because they do not answer.", metric=GAUGE, default=0)


@declared()
class PipelineTelemetry:
    """One pipeline on one device: the plan in force and what its stages, its fusion and its origin did.

    `plan_hash` is `distree.messages.plan.plan_hash` of that plan. Whether a board follows a plan is told by it, and not
    by the epoch, which anybody may have given to another one.
    """

    pipeline: str = ident("Id of the pipeline.")
    epoch: int = epoch("Epoch of the plan in force on the device; 0 for the bundle's own thresholds.", metric=GAUGE)
    plan_hash: str = text("Hash of the content of the plan in force on the device.", most=HASH_DIGITS)
    revision: str = text("Revision of the bundle.")
    stages: tuple[StageTelemetry, ...] = parts(StageTelemetry, "What the board did, per stage.", most=MAX_STAGES)
    origin: OriginTelemetry | None = part(
        OriginTelemetry, "What the board did as an origin; null where it is none.", nullable=True
    )
    fusions: tuple[FusionTelemetry, ...] = parts(
        FusionTelemetry, "What the board fused, per wide stage.", most=MAX_STAGES, default=()
    )


@declared(kind="telemetry")
class Telemetry:
    """A periodic report at QoS 0. Counters are cumulative since boot, so a lost report costs nothing."""

    device: str = ident("Id of the board.")
    boot: str = text("Distinguishes one run of the agent from the next.")
    sequence: int = count("Number of the report since boot, from 1.")
    uptime_s: float = seconds("Time since the agent started.", metric=GAUGE)
    rss_bytes: int = count("Resident memory of the agent.", unit="bytes", metric=GAUGE)
    dead_letters: int = count("Messages that the agent refused.", metric=COUNTER)
    offline_dropped: int = count("Messages lost while there was no connection to a broker.", metric=COUNTER)
    pipelines: tuple[PipelineTelemetry, ...] = parts(
        PipelineTelemetry, "What the board did, per pipeline.", most=MAX_PIPELINES
    )
