"""Cameras, microphones and streams: whether what they need is installed, may be opened, and delivers."""

from __future__ import annotations

import time

from device_agent import presence
from device_agent.doctor.checks import Check, CheckContext, Finding, failed, ok
from distree.errors import ConfigError

_SHORTEST_S = 2.0
"""What each source is given at least, however long the others took."""


def check_sources(context: CheckContext) -> Finding:
    """From each source that has to be waited for, something comes within the time limit."""
    pairs = zip(context.config.pipelines, context.bundles, strict=True)
    tried = [
        (pipeline.name, pipeline.origin.source, bundle)
        for pipeline, bundle in pairs
        if pipeline.origin is not None and pipeline.origin.source.runs_programs
    ]
    if not tried:
        return ok("this board has no camera, microphone or stream")
    if presence.boots_here(context.config):
        return ok("not tried, because the agent that runs here is using it", "stop the agent to have it tried")
    until, found = context.until(), []
    for name, source, bundle in tried:
        try:
            found.append(source.probe(bundle.manifest, max(until - time.monotonic(), _SHORTEST_S)))
        except ConfigError as error:
            return failed(f"{name}: {error.what}", error.remedy)
    return ok("; ".join(found))


CHECKS = (Check(name="source", run=check_sources, needs=("bundle",)),)
