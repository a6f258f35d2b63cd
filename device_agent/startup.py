"""What must be right before an agent runs: its bundles and its interpreter. Imports no broker client."""

from __future__ import annotations

from collections.abc import Sequence

from device_agent.config import AgentConfig, PipelineConfig
from device_agent.selftest import SelfTest, start_self_test
from distree.bundle import Bundle, load_bundle
from distree.errors import ConfigError


def load_bundles(config: AgentConfig) -> list[Bundle]:
    """Load and verify the bundle of each pipeline, in order.

    Raises BundleError, and ConfigError for a stage that its bundle does not have.
    """
    return [_load(pipeline) for pipeline in config.pipelines]


def _load(config: PipelineConfig) -> Bundle:
    bundle = load_bundle(config.bundle, verify=())
    for k in config.stages:
        if k >= len(bundle.stages):
            raise ConfigError(
                f"pipelines.{config.name}.stages: bundle {bundle.name} has 0 to {len(bundle.stages) - 1}, not {k}"
            )
    bundle.verify(config.stages)
    return bundle


def start_self_tests(config: AgentConfig, bundles: Sequence[Bundle]) -> list[SelfTest]:
    """Start a self-test for each pipeline with stages, unless the configuration says not to.

    Call it while this process has one thread: the tests fork.
    """
    return [
        start_self_test(bundle, pipeline.stages, config.num_threads)
        for pipeline, bundle in zip(config.pipelines, bundles, strict=True)
        if pipeline.stages and config.self_test
    ]
