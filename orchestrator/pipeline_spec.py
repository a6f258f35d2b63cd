"""A configured pipeline whose bundle has been read: its exits, its configured plan, what its tuning needs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from distree.bundle.loading import Bundle, load_bundle
from distree.criteria import problem, threshold_problem
from distree.criteria.base import CriterionParameters
from distree.errors import ConfigError
from distree.messages.plan import MaskedThresholds, Plan
from distree.thresholds import NEVER
from orchestrator import plan_reasons
from orchestrator.config import PipelineConfig
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.tuned_pipeline import TunedPipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """A configured pipeline whose bundle has been read. `plan` is the configured one, of epoch 0.

    `branches` has the number of branches per stage, 0 for a plain one; `labels` are the classes, () if unknown.
    `masked` are the bundle's thresholds for sets of missing branches, of criterion `calibrated`; `parameters` are what
    its criteria have learned. `goal` is what its thresholds are tuned for, None if they are not; `costs` are the
    multiply-accumulates of an input that leaves at each exit. `origins` and `largest_share` say whose audits count.
    """

    name: str
    exits: int
    plan: Plan
    branches: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    calibrated: str = ""
    masked: tuple[MaskedThresholds, ...] = ()
    parameters: CriterionParameters = field(default_factory=CriterionParameters)
    goal: Goal | None = None
    costs: tuple[float, ...] = ()
    origins: tuple[str, ...] = ()
    largest_share: float = 1.0

    def masked_of(self, criterion: str) -> tuple[MaskedThresholds, ...]:
        """Return the bundle's thresholds for missing branches if they are of this criterion, else ()."""
        return self.masked if criterion == self.calibrated else ()

    @property
    def tuned(self) -> TunedPipeline | None:
        """What its tuning has to know of it; None without a goal."""
        if self.goal is None:
            return None
        return TunedPipeline(
            name=self.name,
            model=self.plan.model,
            revision=self.plan.revision,
            criterion=self.plan.criterion,
            exits=self.exits,
            costs=self.costs,
            goal=self.goal,
            branches=self.branches,
            labels=self.labels,
            thresholds=self.plan.thresholds,
            masked=self.masked_of(self.plan.criterion),
            origins=self.origins,
            largest_share=self.largest_share,
        )


def load_spec(configured: PipelineConfig) -> PipelineSpec:
    """Read the bundle of a pipeline and return what is planned for it.

    Raises BundleError, or ConfigError where criterion or thresholds do not fit the bundle. The plan has the bundle's
    thresholds for missing branches if its criterion is the bundle's own and no tuner finds them.
    """
    bundle = load_bundle(configured.bundle, verify=())
    criterion, thresholds = _settings(configured, bundle)
    plan = Plan(
        pipeline=configured.name,
        epoch=0,
        model=bundle.name,
        revision=bundle.revision,
        criterion=criterion,
        thresholds=thresholds,
        reason=plan_reasons.UNPROVED if configured.tunes_thresholds else plan_reasons.CONFIGURED,
        author=plan_reasons.TUNER if configured.tunes_thresholds else plan_reasons.FILE,
    )
    spec = PipelineSpec(
        name=configured.name,
        exits=len(bundle.stages),
        plan=plan,
        branches=bundle.branch_counts,
        labels=bundle.labels,
        calibrated=bundle.criterion,
        masked=bundle.manifest.exits.masked,
        parameters=bundle.criterion_parameters(),
        goal=configured.goal,
        origins=configured.origins,
        largest_share=float(configured.largest_share),
        costs=tuple(itertools.accumulate(float(stage.macs.trunk + stage.macs.exit) for stage in bundle.stages)),
    )
    check_thresholds(spec, criterion, thresholds)
    if spec.goal is not None:
        # Its tuning has the last word on thresholds, those for missing branches included.
        return replace(spec, plan=replace(plan, audit_rate=1.0))
    return replace(spec, plan=replace(plan, masked=spec.masked_of(criterion)))


def _settings(configured: PipelineConfig, bundle: Bundle) -> tuple[str, tuple[float, ...]]:
    criterion = bundle.criterion if configured.criterion is None else configured.criterion
    if configured.thresholds is not None:
        return criterion, configured.thresholds
    if configured.tunes_thresholds:
        return criterion, (NEVER,) * (len(bundle.stages) - 1)
    if criterion != bundle.criterion:
        raise ConfigError(
            f"pipeline {configured.name}: the thresholds of bundle {bundle.name} were calibrated for "
            f"{bundle.criterion}",
            f"give thresholds for {criterion}",
        )
    return criterion, bundle.thresholds


def check_thresholds(spec: PipelineSpec, criterion: str, thresholds: tuple[float, ...]) -> None:
    """Raise ConfigError unless the criterion fits the bundle and each exit but the last has a threshold of it."""
    exits = spec.exits
    trouble = problem(
        criterion, spec.parameters, wide=any(spec.branches), exits=exits, classes=len(spec.labels) or None
    )
    if trouble is not None:
        raise ConfigError(*trouble.at(f"pipeline {spec.name}"))
    if len(thresholds) != exits - 1:
        raise ConfigError(
            f"pipeline {spec.name}: thresholds: {len(thresholds)} given for {exits} exits",
            f"give {exits - 1}, one per exit but the last",
        )
    trouble = threshold_problem(criterion, thresholds)
    if trouble is not None:
        raise ConfigError(*trouble.at(f"pipeline {spec.name}"))
