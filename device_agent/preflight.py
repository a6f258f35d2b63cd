"""What must be right before an agent runs: its bundles and its interpreter. Imports no broker client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from device_agent.config import AgentConfig, AgentPipelineConfig
from device_agent.selftest import SelfTest, start_self_test
from device_agent.thumbnails import can_show
from distree.bundle.loading import Bundle, load_bundle
from distree.errors import ConfigError, Problem


def travels(bundle: Bundle, k: int) -> bool:
    """Whether a stage's input comes from the broker: a later one of wide stages in a row has it on its board."""
    return k == 0 or not (bundle.stages[k].branches and bundle.stages[k - 1].branches)


def load_bundles(config: AgentConfig) -> list[Bundle]:
    """Load and verify the bundle of each pipeline, in order.

    Raises BundleError, and ConfigError for stages or a branch that its bundle does not have, or not on one board.
    """
    return [_load(pipeline) for pipeline in config.pipelines]


def _load(config: AgentPipelineConfig) -> Bundle:
    bundle = load_bundle(config.bundle, verify=())
    for problem in _misfits(config, bundle):
        raise ConfigError(f"pipelines.{config.name}.{problem.what}", problem.remedy)
    bundle.verify(config.stages, branch=config.branch, fuse=fuses(config, bundle))
    return bundle


def _misfits(config: AgentPipelineConfig, bundle: Bundle) -> Iterator[Problem]:
    """Say what the configuration asks of a bundle that does not have it."""
    for k in config.stages:
        if k >= len(bundle.stages):
            last = len(bundle.stages) - 1
            yield Problem(f"stages: bundle {bundle.name} has no stage {k}", f"choose stages from 0 to {last}")
    if config.origin is not None:
        for what, remedy in config.origin.source.misfits(bundle.manifest):
            yield Problem(f"origin.source.{what}", remedy)
    yield from _no_pictures(config, bundle)
    if not bundle.is_wide:
        yield from _only_of_wide_stages(config, bundle)
        return
    yield from _branch_misfits(config, bundle)
    for group in bundle.wide_groups:
        missing = [str(k) for k in group if k not in config.stages]
        if 0 < len(missing) < len(group):
            yield Problem(
                f"stages: {_numbers(group)} of bundle {bundle.name} belong on one board, because a branch keeps its "
                "features between them",
                f"add {', '.join(missing)}",
            )


def _no_pictures(config: AgentPipelineConfig, bundle: Bundle) -> Iterator[Problem]:
    if config.origin is not None and config.origin.thumbnails is not None:
        spec = bundle.manifest.input
        if not can_show(spec):
            yield Problem(
                f"origin.thumbnails: inputs of bundle {bundle.name} are {spec.dtype} {spec.shape}, neither images "
                "(uint8, height x width x 1 or 3) nor windows of a recording",
                "remove thumbnails",
            )


def _only_of_wide_stages(config: AgentPipelineConfig, bundle: Bundle) -> Iterator[Problem]:
    origin = config.origin
    for key, given in (
        ("branch", config.branch is not None),
        ("fuse", config.fuse),
        ("origin.fuser", origin is not None and origin.fuser is not None),
    ):
        if given:
            yield Problem(f"{key}: bundle {bundle.name} has no wide stage", f"remove {key}")


def _branch_misfits(config: AgentPipelineConfig, bundle: Bundle) -> Iterator[Problem]:
    counts = bundle.branch_counts
    wide = [k for k in config.stages if counts[k]]
    if config.branch is not None and not wide:
        every = [k for k, count in enumerate(counts) if count]
        yield Problem(
            f"branch: none of this board's stages is wide (those of bundle {bundle.name} are {_numbers(every)})",
            "remove branch",
        )
    for k in wide:
        branches = counts[k]
        if config.branch is None:
            yield Problem(
                f"stages: stage {k} of bundle {bundle.name} has {branches} branches",
                f"set branch to the one that this board runs, from 0 to {branches - 1}",
            )
        elif config.branch >= branches:
            yield Problem(
                f"branch: stage {k} of bundle {bundle.name} has no branch {config.branch}",
                f"choose one from 0 to {branches - 1}",
            )


def _numbers(stages: Sequence[int]) -> str:
    return ", ".join(map(str, stages))


def fuses(config: AgentPipelineConfig, bundle: Bundle) -> bool:
    """Whether this board may have to fuse embeddings: as an origin of a bundle with wide stages, or for others."""
    return config.fuse or (config.origin is not None and bundle.is_wide)


def start_self_tests(config: AgentConfig, bundles: Sequence[Bundle]) -> list[SelfTest]:
    """Start a self-test for each pipeline of which something is run here, unless the configuration turns it off.

    Call it while this process has one thread: the tests fork.
    """
    return [
        start_self_test(
            bundle, pipeline.stages, config.num_threads, branch=pipeline.branch, fuse=fuses(pipeline, bundle)
        )
        for pipeline, bundle in zip(config.pipelines, bundles, strict=True)
        if config.self_test and (pipeline.stages or fuses(pipeline, bundle))
    ]
