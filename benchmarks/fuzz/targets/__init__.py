"""Everything that reads messages or files that others have made, by name."""

from __future__ import annotations

from benchmarks.fuzz.target import Target
from benchmarks.fuzz.targets import bundles, configuration, data, inputs, messages, networks, state, wire

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        messages.MESSAGES,
        messages.SIGNED,
        wire.TOPICS,
        wire.PACKETS,
        inputs.WRAPPED,
        inputs.STREAMS,
        inputs.PICTURES,
        inputs.RECORDINGS,
        configuration.YAML,
        configuration.SECRETS,
        bundles.MANIFESTS,
        bundles.TABLES,
        bundles.PACKED,
        networks.NETWORKS,
        networks.SEGMENTS,
        data.DATA,
        data.ARCHIVES,
        state.JOURNALS,
        state.STORES,
    )
}
