"""All pipelines that an orchestrator plans for: what is heard goes to those that it is about. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from distree.errors import RemoteProtocolError
from distree.messages.telemetry import Telemetry
from orchestrator.fleet import Device, epoch_of
from orchestrator.pipeline_controller import Learned, PlannedPipeline
from orchestrator.planner import Standing
from orchestrator.tuning.pipeline_tuning import Tuning


class Pipelines:
    """The pipelines in the order of the configuration. Every `now_s` is of one monotonic clock."""

    def __init__(self, pipelines: Iterable[PlannedPipeline]) -> None:
        self._by_name = {pipeline.name: pipeline for pipeline in pipelines}
        self.tunings: Mapping[str, Tuning] = {
            pipeline.name: pipeline.tuning for pipeline in self if pipeline.tuning is not None
        }
        """The tuning of each pipeline that has a goal, by its name."""

    def __iter__(self) -> Iterator[PlannedPipeline]:
        return iter(self._by_name.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all."""
        return tuple(self._by_name)

    @property
    def are_settling(self) -> bool:
        """Whether any of them waits for its retained plan."""
        return any(pipeline.planner.standing is Standing.SETTLING for pipeline in self)

    def planned(self, name: str) -> PlannedPipeline:
        """Return the pipeline of this name; RemoteProtocolError if there is none."""
        pipeline = self._by_name.get(name)
        if pipeline is None:
            raise RemoteProtocolError(
                "pipeline", f"{name!r} is not a pipeline of this orchestrator", "add it to orchestrator.yaml"
            )
        return pipeline

    def tuned(self, name: str) -> PlannedPipeline:
        """Return the pipeline of this name; RemoteProtocolError if none of this name is tuned."""
        if name not in self.tunings:
            raise RemoteProtocolError("pipeline", f"{name!r} is not a pipeline that is tuned here", "give it a goal")
        return self._by_name[name]

    def connected(self, now_s: float) -> None:
        """Have all wait for their retained plans."""
        for pipeline in self:
            pipeline.connected(now_s)

    def disconnected(self) -> None:
        """Have all wait for the broker."""
        for pipeline in self:
            pipeline.disconnected()

    def take_report(self, now_s: float, device: Device, report: Telemetry) -> list[Learned]:
        """Note the epochs that a device follows, and learn from what its origins say of audits that were lost."""
        for pipeline in self:
            epoch = epoch_of(device, pipeline.name)
            if epoch is not None:
                pipeline.planner.reported(now_s, epoch)
        learned = []
        for part in report.pipelines:
            if part.origin is not None and part.pipeline in self.tunings:
                learned += self.tuned(part.pipeline).take_report(report.device, report.boot, part.origin)
        return learned

    def started(self, device: Device) -> None:
        """Note that a device has started."""
        for pipeline in self:
            pipeline.started(device)

    def reported(self, now_s: float, device: Device) -> None:
        """Note by a device's report which plans it follows."""
        for pipeline in self:
            pipeline.reported(now_s, device)

    def forget(self, device: str) -> None:
        """Drop a device that is gone."""
        for pipeline in self:
            pipeline.forget(device)

    def take_overdue(self, now_s: float) -> list[Learned]:
        """Learn from what has waited long enough for labels, from all that waits at infinity."""
        return [learned for pipeline in self for learned in pipeline.take_overdue(now_s)]

    def retune(self, now_s: float) -> None:
        """Have each want what its tuning wants."""
        for pipeline in self:
            pipeline.retune(now_s)
