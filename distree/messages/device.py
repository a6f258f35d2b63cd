"""What a board's agent says of itself: its state and its description, both retained."""

from __future__ import annotations

import enum

from distree.messages.fields import count, counts, declared, ident, parts, text, texts, word
from distree.messages.limits import MAX_BRANCHES, MAX_MESSAGE_BYTES, MAX_PIPELINES, MAX_RANK, MAX_STAGES


class DeviceStatus(str, enum.Enum):
    """Life of a device agent, as published on its retained state topic."""

    INIT = "init"
    READY = "ready"
    DRAINING = "draining"
    DISCONNECTED = "disconnected"
    LOST = "lost"


@declared(schema="distree.state/1")
class DeviceState:
    """The retained state of a device. `boot` distinguishes one run of the agent from the next."""

    device: str = ident("Id of the board.")
    boot: str = text("Distinguishes one run of the agent from the next.")
    status: DeviceStatus = word("What the agent is doing; `lost` is published by its will.", DeviceStatus, json="state")


@declared(schema="distree.echo/1")
class Echo:
    """What a device sends to itself, two at a time, to see whether the broker holds the second one back."""

    device: str = ident("Id of the board.")


@declared()
class HeldStage:
    """A stage that a device serves, or its branch of a wide stage, with pipeline, bundle and revision."""

    pipeline: str = ident("Id of the pipeline.")
    stage: int = count("Number of the stage, from 0.", most=MAX_STAGES - 1)
    model: str = text("Name of the bundle.")
    revision: str = text("Revision of the bundle.")
    branch: int | None = count("Branch of a wide stage.", most=MAX_BRANCHES - 1, default=None)


@declared()
class InputDescription:
    """What an origin takes as inputs of one pipeline, so that whoever sends some can see whether they fit."""

    pipeline: str = ident("Id of the pipeline.")
    source: str = text("Where its inputs come from: the source's `kind` in agent.yaml.")
    model: str = text("Name of the bundle.")
    revision: str = text("Revision of the bundle.")
    dtype: str = text("Element type of an input.")
    shape: tuple[int, ...] = counts("Shape of an input.", most=MAX_RANK, least=1, each=MAX_MESSAGE_BYTES)


@declared(schema="distree.meta/1")
class DeviceMeta:
    """The retained description of a device: versions, memory and what it serves."""

    device: str = ident("Id of the board.")
    boot: str = text("Distinguishes one run of the agent from the next.")
    version: str = text("Version of DistrEE.")
    python: str = text("Version of Python.")
    runtime: str = text("Package and version that runs the segments.", most=128)
    machine: str = text("Machine type, such as armv7l.")
    memory_mb: int = count("Memory of the board in megabytes.", unit="MB")
    stages: tuple[HeldStage, ...] = parts(HeldStage, "Stages that the board serves.", most=MAX_STAGES * MAX_PIPELINES)
    origins: tuple[str, ...] = texts("Pipelines of which the board is an origin.", most=MAX_PIPELINES, each=32)
    fusers: tuple[str, ...] = texts(
        "Pipelines for whose wide stages the board fuses.", most=MAX_PIPELINES, each=32, default=()
    )
    inputs: tuple[InputDescription, ...] = parts(
        InputDescription, "What it takes as inputs of the pipelines in `origins`.", most=MAX_PIPELINES, default=()
    )
