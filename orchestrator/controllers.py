"""The controllers of all pipelines: what is heard goes to the pipelines that it is about. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from distree.errors import RemoteProtocolError
from distree.messages.plan import Plan
from orchestrator.pipeline_controller import PipelineController
from orchestrator.planner import Standing


class Controllers:
    """The controllers in the order of the configuration."""

    def __init__(self, controllers: Iterable[PipelineController] = ()) -> None:
        self._by_name = {controller.name: controller for controller in controllers}

    def __iter__(self) -> Iterator[PipelineController]:
        return iter(self._by_name.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all pipelines."""
        return tuple(self._by_name)

    @property
    def tuned_names(self) -> tuple[str, ...]:
        """The names of the pipelines that have a goal."""
        return tuple(controller.name for controller in self if controller.tuning is not None)

    @property
    def wanted(self) -> tuple[Plan, ...]:
        """The plan of each pipeline that should hold; its epoch is 0 before it has one."""
        return tuple(controller.planner.wanted for controller in self)

    @property
    def are_settling(self) -> bool:
        """Whether any of them waits for its retained plan."""
        return any(controller.planner.standing is Standing.SETTLING for controller in self)

    def of(self, name: str) -> PipelineController:
        """Return the controller of this pipeline; RemoteProtocolError if there is none."""
        controller = self._by_name.get(name)
        if controller is None:
            raise RemoteProtocolError(
                "pipeline", f"{name!r} is not a pipeline of this orchestrator", "add it to orchestrator.yaml"
            )
        return controller

    def tuned(self, name: str) -> PipelineController:
        """Return the controller of this pipeline; RemoteProtocolError if none of this name is tuned."""
        controller = self._by_name.get(name)
        if controller is None or controller.tuning is None:
            raise RemoteProtocolError("pipeline", f"{name!r} is not a pipeline that is tuned here", "give it a goal")
        return controller
