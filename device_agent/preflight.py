"""What must be right before an agent runs: its bundles and its interpreter. Imports no broker client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from device_agent.config import AgentConfig, PipelineConfig
from device_agent.selftest import SelfTest, start_self_test
from device_agent.thumbnails import can_show
from distree.bundle.loading import Bundle, load_bundle
from distree.errors import ConfigError


def travels(bundle: Bundle, k: int) -> bool:
    """Whether a stage's input comes by the broker: a later one of wide stages in a row has it on its board."""
    return k == 0 or not (bundle.stages[k].branches and bundle.stages[k - 1].branches)


def load_bundles(config: AgentConfig) -> list[Bundle]:
    """Load and verify the bundle of each pipeline, in order.

    Raises BundleError, and ConfigError for stages or a branch that its bundle does not have, or not on one board.
    """
    return [_load(pipeline) for pipeline in config.pipelines]


def _load(config: PipelineConfig) -> Bundle:
    bundle = load_bundle(config.bundle, verify=())
    for problem in _misfits(config, bundle):
        raise ConfigError(f"pipelines.{config.name}.{problem}")
    bundle.verify(config.stages, branch=config.branch, fuse=fuses(config, bundle))
    return bundle


def _misfits(config: PipelineConfig, bundle: Bundle) -> Iterator[str]:
    """Say what the configuration asks of a bundle that has no such thing."""
    for k in config.stages:
        if k >= len(bundle.stages):
            yield f"stages: bundle {bundle.name} has 0 to {len(bundle.stages) - 1}, not {k}"
    yield from _no_pictures(config, bundle)
    if not bundle.is_wide:
        yield from _only_of_wide_stages(config, bundle)
        return
    yield from _branch_misfits(config, bundle)
    for group in bundle.wide_groups:
        missing = [str(k) for k in group if k not in config.stages]
        if 0 < len(missing) < len(group):
            yield (
                f"stages: {_numbers(group)} of bundle {bundle.name} belong on one board, for a branch keeps its "
                f"features between them; add {', '.join(missing)}"
            )


def _no_pictures(config: PipelineConfig, bundle: Bundle) -> Iterator[str]:
    if config.origin is not None and config.origin.thumbnails is not None:
        spec = bundle.manifest.input
        if not can_show(spec):
            yield (
                f"origin.thumbnails: inputs of bundle {bundle.name} are {spec.dtype} {spec.shape}, neither images "
                "(uint8, height x width x 1 or 3) nor windows of a recording; remove thumbnails"
            )


def _only_of_wide_stages(config: PipelineConfig, bundle: Bundle) -> Iterator[str]:
    origin = config.origin
    for key, given in (
        ("branch", config.branch is not None),
        ("fuse", config.fuse),
        ("origin.fuser", origin is not None and origin.fuser is not None),
    ):
        if given:
            yield f"{key}: bundle {bundle.name} has no wide stage; remove {key}"


def _branch_misfits(config: PipelineConfig, bundle: Bundle) -> Iterator[str]:
    counts = bundle.branch_counts
    wide = [k for k in config.stages if counts[k]]
    if config.branch is not None and not wide:
        every = [k for k, count in enumerate(counts) if count]
        yield (
            f"branch: none of this board's stages is wide; those of bundle {bundle.name} are {_numbers(every)}; "
            "remove branch"
        )
    for k in wide:
        branches = counts[k]
        if config.branch is None:
            yield (
                f"stages: stage {k} of bundle {bundle.name} has {branches} branches; set branch to the one that this "
                f"board runs, of 0 to {branches - 1}"
            )
        elif config.branch >= branches:
            yield f"branch: stage {k} of bundle {bundle.name} has 0 to {branches - 1}, not {config.branch}"


def _numbers(stages: Sequence[int]) -> str:
    return ", ".join(map(str, stages))


def fuses(config: PipelineConfig, bundle: Bundle) -> bool:
    """Whether this board may have to fuse embeddings: as an origin of a bundle with wide stages, or for others."""
    return config.fuse or (config.origin is not None and bundle.is_wide)


def start_self_tests(config: AgentConfig, bundles: Sequence[Bundle]) -> list[SelfTest]:
    """Start a self-test for each pipeline of which something is run here, unless the configuration says not to.

    Call it while this process has one thread: the tests fork.
    """
    return [
        start_self_test(
            bundle, pipeline.stages, config.num_threads, branch=pipeline.branch, fuse=fuses(pipeline, bundle)
        )
        for pipeline, bundle in zip(config.pipelines, bundles, strict=True)
        if config.self_test and (pipeline.stages or fuses(pipeline, bundle))
    ]
