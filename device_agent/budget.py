"""What an agent may need at most: memory and disk, reckoned from its configuration and its bundles.

Upper bounds, for queues are bounded: what each holds when it is full. The rest is measured: an agent of three int8
stages has about 55 MB resident, most of which is Python, numpy and the interpreter's code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from device_agent import spool
from device_agent.config import AgentConfig, PipelineConfig
from device_agent.sources.directory import MAX_FILE_BYTES
from device_agent.sources.mqtt import WAITING
from device_agent.startup import fuses
from distree.bundle import Bundle, TensorSpec
from distree.preprocess import MAX_IMAGE_BYTES, is_image
from distree.record import record

_MIB = 1 << 20

PROCESS_BYTES = 64 * _MIB
PER_SEGMENT_BYTE = 4
"""A segment's weights, their packed copy, and the tensors between its layers."""

OFFLINE_BYTES = 8 * _MIB
ENVELOPE_BYTES = 4096
"""What a message holds beside its tensor, at most: ids, 32 hops, what exits said."""

_ITEM_BYTES = {"int8": 1, "uint8": 1, "float16": 2, "float32": 4}


@record
class Item:
    """One entry of a budget."""

    what: str
    bytes: int


def tensor_bytes(spec: TensorSpec) -> int:
    """Return the size of a tensor, uncompressed."""
    return _ITEM_BYTES[spec.dtype] * math.prod(spec.shape)


def input_bytes(bundle: Bundle) -> int:
    """Return the size of a raw input."""
    return _ITEM_BYTES[bundle.manifest.input.dtype] * math.prod(bundle.manifest.input.shape)


def memory(config: AgentConfig, bundles: Sequence[Bundle]) -> list[Item]:
    """Reckon the most memory that an agent needs, entry by entry."""
    items = [
        Item(what="Python and the interpreter", bytes=PROCESS_BYTES),
        Item(what="messages that wait for the broker", bytes=OFFLINE_BYTES),
    ]
    for pipeline, bundle in zip(config.pipelines, bundles, strict=True):
        items += _of_pipeline(config, pipeline, bundle)
    return items


def _of_pipeline(config: AgentConfig, pipeline: PipelineConfig, bundle: Bundle) -> Iterator[Item]:
    segments = sum(spec.bytes for spec in bundle.held(pipeline.stages, pipeline.branch, fuses(pipeline, bundle)))
    largest = largest_message(bundle)
    yield Item(what=f"segments of {pipeline.name}", bytes=PER_SEGMENT_BYTE * segments)
    yield Item(what=f"inbox of {pipeline.name}", bytes=config.inbox.kb << 10)
    yield Item(what=f"messages of {pipeline.name} under way", bytes=2 * config.receive_maximum * largest)
    if pipeline.origin is None:
        return
    yield Item(what=f"open inputs of {pipeline.name}", bytes=2 * pipeline.origin.pending * largest)
    if pipeline.origin.source.kind == "mqtt":
        yield Item(what=f"inputs of {pipeline.name} not looked at yet", bytes=WAITING * (input_bytes(bundle) + 4096))
    if is_image(bundle.manifest.input.dtype, bundle.manifest.input.shape):
        yield Item(what=f"an input of {pipeline.name} while it is decoded", bytes=MAX_IMAGE_BYTES)
    if pipeline.origin.source.kind == "directory":
        yield Item(what=f"a file of {pipeline.name} while it is read", bytes=MAX_FILE_BYTES)
    if pipeline.origin.spool:
        yield Item(what=f"spool of {pipeline.name} while it is rewritten", bytes=2 * spool.LIMIT_BYTES)


def largest_message(bundle: Bundle) -> int:
    """Return the size of the largest message that boards of this bundle send, uncompressed, with its envelope."""
    specs = [stage.input for stage in bundle.stages]
    specs += [branch.embedding for stage in bundle.stages for branch in stage.branches]
    return max(input_bytes(bundle), *map(tensor_bytes, specs)) + ENVELOPE_BYTES


def disk_bytes(config: AgentConfig) -> int:
    """Return the most that spools take in `state_dir`: a journal and its successor while it is rewritten."""
    return sum(2 * spool.LIMIT_BYTES for pipeline in config.pipelines if pipeline.origin and pipeline.origin.spool)


def memory_limit(items: Sequence[Item]) -> int:
    """Return what a supervisor may limit an agent to: half as much again, in whole steps of 16 MiB."""
    total = sum(item.bytes for item in items)
    return math.ceil(total * 1.5 / (16 * _MIB)) * 16 * _MIB
