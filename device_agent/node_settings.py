"""What a node must know of its board, its pipeline and its bundle."""

from __future__ import annotations

import os
from dataclasses import replace

from device_agent.config import AgentConfig, OriginConfig
from distree.bundle.loading import Bundle
from distree.node import NodeSettings, OriginSettings


def node_settings(agent: AgentConfig, index: int, bundle: Bundle, boot: str) -> NodeSettings:
    """Return the settings for pipeline number `index`; `boot` is the id of this run of the agent."""
    config = agent.pipelines[index]
    settings = NodeSettings(
        site=agent.site,
        device=agent.device,
        pipeline=config.name,
        boot=f"{boot}{index or ''}",
        board_boot=boot,
        model=bundle.name,
        revision=bundle.revision,
        labels=bundle.labels,
        inputs=tuple((stage.input.dtype, stage.input.shape) for stage in bundle.stages),
        stages=config.stages,
        criterion=bundle.criterion,
        thresholds=bundle.thresholds,
        codec=agent.codec,
        inbox_max_messages=agent.inbox.max_messages,
        inbox_max_bytes=agent.inbox.max_kib << 10,
        origin=_origin_settings(config.origin),
        embeddings=tuple(
            tuple((branch.embedding.dtype, branch.embedding.shape) for branch in stage.branches)
            for stage in bundle.stages
        ),
        branch=config.branch,
        fuses=config.fuse,
        branch_timeout_s=config.branch_timeout_ms / 1e3,
        masked=bundle.manifest.exits.masked,
        secret=os.urandom(16),
    )
    # A board that runs only branches decides nothing, and need not load what its criteria have learned.
    return replace(settings, parameters=bundle.criterion_parameters()) if settings.decides else settings


def _origin_settings(config: OriginConfig | None) -> OriginSettings | None:
    if config is None:
        return None
    return OriginSettings(
        deadline_s=config.deadline_ms / 1e3,
        max_pending=config.max_pending,
        min_retry_s=config.min_retry_ms / 1e3,
        fuser=config.fuser,
        eager=config.mode == "eager",
    )
