"""What an agent may need at most: memory and disk, estimated from its configuration and its bundles.

These are upper bounds, as queues are bounded: what each holds when it is full. The rest is measured: an agent with
three int8 stages has about 55 MB resident, most of which is Python, numpy and the interpreter's code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from device_agent import plan_seals, spool
from device_agent.config import AgentConfig, AgentPipelineConfig
from device_agent.preflight import fuses
from distree import topics
from distree.bundle.inputs.images import MAX_IMAGE_BYTES
from distree.bundle.loading import Bundle
from distree.bundle.manifest import TensorSpec
from distree.messages.limits import MAX_DECODE_BYTES, MAX_MESSAGE_BYTES
from distree.record import record
from distree.topics import Kind

_MIB = 1 << 20

PROCESS_BYTES = 64 * _MIB
PER_SEGMENT_BYTE = 4
"""A segment's weights, their packed copy, and the tensors between its layers."""

OFFLINE_BYTES = 11 * _MIB
"""The lanes of the transport except results, which are counted per origin."""

UNPACKED_BYTES = MAX_MESSAGE_BYTES + MAX_DECODE_BYTES
"""What the worst message takes while it is unpacked."""

ENVELOPE_BYTES = 4096
"""What a message holds beside its tensor, at most: ids, 32 hops, what exits said."""

# Messages without a tensor: about twice their initial size, since names and counters grow.
_OF_BOARD = {
    Kind.STATE: (160, 0),
    Kind.META: (512, 192),
    Kind.TELEMETRY: (256, 256),
    Kind.DEAD: (1536, 0),
    Kind.EVENT: (1536, 0),
}
_ANSWER_BYTES, _PER_HOP_BYTES = 640, 128

_ITEM_BYTES = {"int8": 1, "uint8": 1, "int16": 2, "float16": 2, "float32": 4}

PER_RECORDED_BYTE = 8
"""What a WAV or CSV file takes for each of its bytes while it is read: wider integers, and text as numbers."""


@record
class BudgetItem:
    """One entry of a budget."""

    what: str
    bytes: int


def tensor_bytes(spec: TensorSpec) -> int:
    """Return the size of a tensor, uncompressed."""
    return _ITEM_BYTES[spec.dtype] * math.prod(spec.shape)


def input_bytes(bundle: Bundle) -> int:
    """Return the size of a raw input."""
    return _ITEM_BYTES[bundle.manifest.input.dtype] * math.prod(bundle.manifest.input.shape)


def memory(config: AgentConfig, bundles: Sequence[Bundle]) -> list[BudgetItem]:
    """Estimate the most memory that an agent needs, entry by entry."""
    items = [
        BudgetItem(what="Python and the interpreter", bytes=PROCESS_BYTES),
        BudgetItem(what="messages that wait for the broker", bytes=OFFLINE_BYTES),
        BudgetItem(what="a message while it is unpacked", bytes=UNPACKED_BYTES),
    ]
    for pipeline, bundle in zip(config.pipelines, bundles, strict=True):
        items += _of_pipeline(config, pipeline, bundle)
    return items


def _of_pipeline(config: AgentConfig, pipeline: AgentPipelineConfig, bundle: Bundle) -> Iterator[BudgetItem]:
    segments = sum(spec.bytes for spec in bundle.held(pipeline.stages, pipeline.branch, fuses(pipeline, bundle)))
    largest = largest_message(bundle)
    yield BudgetItem(what=f"segments of {pipeline.name}", bytes=PER_SEGMENT_BYTE * segments)
    yield BudgetItem(what=f"inbox of {pipeline.name}", bytes=config.inbox.max_kib << 10)
    yield BudgetItem(what=f"messages of {pipeline.name} under way", bytes=2 * config.receive_maximum * largest)
    if pipeline.origin is None:
        return
    # Twice as many as may be unanswered: as many again may wait for the broker to accept their result.
    yield BudgetItem(what=f"open inputs of {pipeline.name}", bytes=2 * pipeline.origin.max_pending * largest)
    for what, most in pipeline.origin.source.memory().items():
        yield BudgetItem(what=f"{what}, of {pipeline.name}", bytes=most)
    if waiting := pipeline.origin.source.waiting_inputs:
        yield BudgetItem(what=f"windows of {pipeline.name} that wait", bytes=waiting * input_bytes(bundle))
    if bundle.manifest.input.is_image:
        yield BudgetItem(what=f"an input of {pipeline.name} while it is decoded", bytes=MAX_IMAGE_BYTES)
    elif longest := pipeline.origin.source.longest_file():
        yield BudgetItem(what=f"a recording of {pipeline.name} while it is read", bytes=PER_RECORDED_BYTE * longest)
    if pipeline.origin.has_spool:
        yield BudgetItem(what=f"spool of {pipeline.name} while it is rewritten", bytes=2 * spool.LIMIT_BYTES)


def largest_message(bundle: Bundle) -> int:
    """Return the size of the largest message that boards of this bundle send, uncompressed, with its envelope."""
    specs = [stage.input for stage in bundle.stages]
    specs += [branch.embedding for stage in bundle.stages for branch in stage.branches]
    return max(input_bytes(bundle), *map(tensor_bytes, specs)) + ENVELOPE_BYTES


def message_bytes(config: AgentConfig, bundles: Sequence[Bundle], topic: str) -> int:
    """Return the size of the largest message that this board sends or receives on one of its topics."""
    address = topics.parse(topic)
    if address.pipeline is None:
        entries = sum(map(_entries, config.pipelines, bundles))
        constant, each = _OF_BOARD[address.kind]
        return constant + each * entries
    pipeline, bundle = next(
        pair for pair in zip(config.pipelines, bundles, strict=True) if pair[0].name == address.pipeline
    )
    match address.kind:
        case Kind.STAGE if address.stage:
            return tensor_bytes(bundle.stages[address.stage].input) + ENVELOPE_BYTES
        case Kind.STAGE | Kind.INPUT:
            return input_bytes(bundle) + ENVELOPE_BYTES
        case Kind.EXIT:
            branches = (branch for stage in bundle.stages for branch in stage.branches)
            return max(tensor_bytes(branch.embedding) for branch in branches) + ENVELOPE_BYTES
        case Kind.THUMBNAIL:
            side = pipeline.origin.thumbnails.max_side_px if pipeline.origin and pipeline.origin.thumbnails else 0
            return 3 * side * side + ENVELOPE_BYTES
    hops = sum(max(1, len(stage.branches)) for stage in bundle.stages)
    return _ANSWER_BYTES + _PER_HOP_BYTES * hops


def _entries(pipeline: AgentPipelineConfig, bundle: Bundle) -> int:
    """Return how many entries a report has for a pipeline; an origin counts as two stages."""
    fused = len(bundle.stages) if fuses(pipeline, bundle) else 0
    return len(pipeline.stages) + fused + (2 if pipeline.origin is not None else 0)


def disk_bytes(config: AgentConfig) -> int:
    """Return the most that `state_dir` takes: spools and numbers of plans, each with its successor, and sources."""
    origins = [pipeline.origin for pipeline in config.pipelines if pipeline.origin is not None]
    spools = sum(2 * spool.LIMIT_BYTES for origin in origins if origin.has_spool)
    plans = 2 * plan_seals.MAX_FILE_BYTES * len(config.pipelines) if config.plan_keys else 0
    return spools + plans + sum(origin.source.disk_bytes() for origin in origins)


def memory_limit(items: Sequence[BudgetItem]) -> int:
    """Return what a supervisor may limit an agent to: half as much again, in whole steps of 16 MiB."""
    total = sum(item.bytes for item in items)
    return math.ceil(total * 1.5 / (16 * _MIB)) * 16 * _MIB
