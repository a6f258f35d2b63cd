"""What orchestrators say of a site and are told by users. Boards need none of it, and do not load it."""

from __future__ import annotations

from distree.messages.fields import count, declared, epoch, flag, ident, number, seconds, text
from distree.messages.limits import SEAL_BYTES


@declared(schema="distree.orchestrator/1")
class Claim:
    """Says whether the orchestrator `orchestrator` plans a site (`running`); retained, and also its will."""

    orchestrator: str = ident("Id of the orchestrator.")
    running: bool = flag("Whether it plans the site; false once it is gone.")
    signed: str | None = text(
        "Key, sequence and signature of an orchestrator that signs, in hexadecimal.", most=2 * SEAL_BYTES, default=None
    )


@declared(schema="distree.label/1")
class Label:
    """What an input really was, published by a user after the answer; `label` is one of the bundle's labels."""

    request: str = text("Id of the request.")
    label: str = text("Name of the class that the input really was.")
    signed: str | None = text(
        "Key, sequence and signature of a user who signs, in hexadecimal.", most=2 * SEAL_BYTES, default=None
    )


@declared(schema="distree.stats/1")
class OriginStats:
    """How an origin did between its last two reports, for dashboards; published by the orchestrator.

    `answered` counts since boot. `rate_hz` is answers a second, `early_share` the share of them that left before the
    last exit; it and the latencies are None where there were no answers.
    """

    pipeline: str = ident("Id of the pipeline.")
    origin: str = ident("Id of the origin.")
    epoch: int = epoch("Number of the plan by which exits are decided; 0 for the bundle's own thresholds.")
    answered: int = count("Inputs answered since boot.")
    pending: int = count("Inputs not yet answered.")
    rate_hz: float = number("Answers per second since the previous report.", unit="1/s", digits=3)
    early_share: float | None = number(
        "Share of these answers that left before the last exit; null without any.", most=1.0, digits=4, nullable=True
    )
    latency_p50_s: float | None = seconds(
        "Their median latency; null without any.", json="latency_p50_ms", nullable=True
    )
    latency_p95_s: float | None = seconds(
        "95th percentile of their latency; null without any.", json="latency_p95_ms", nullable=True
    )
