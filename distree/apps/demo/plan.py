"""What the demo starts for a bundle: which board does what."""

from __future__ import annotations

from dataclasses import dataclass

from distree.bundle.loading import Bundle
from distree.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoBoard:
    """One agent of the demo: what it serves."""

    device: str
    stages: tuple[int, ...] = ()
    branch: int | None = None
    fuses: bool = False
    is_origin: bool = False


@dataclass(frozen=True, slots=True)
class DemoSite:
    """Who does what: a board for each plain stage, one for each branch of wide stages in a row, and an origin.

    The origin serves stage 0 if that is plain. It fuses, unless there is a separate board for that (`fuser`).
    """

    bundle: Bundle
    boards: tuple[DemoBoard, ...]
    groups: tuple[tuple[int, ...], ...]
    fuser: str | None
    is_eager: bool

    @property
    def origin(self) -> DemoBoard:
        """The board that the inputs enter at."""
        return next(board for board in self.boards if board.is_origin)

    def answers_at(self, k: int) -> str:
        """Who decides at exit `k`."""
        if self.bundle.stages[k].branches:
            return f"fused at {self.fuser or self.origin.device}"
        return next(board.device for board in self.boards if k in board.stages)

    def messages_of_all_hops(self) -> dict[str, int]:
        """Messages that reach boards for an input that makes every hop, by kind of hop."""
        counts = {"outcome": 1, "decision": 0}
        for k, branches in enumerate(self.bundle.branch_counts):
            counts[f"stage {k}"] = max(1, branches)
            counts[f"exit {k}"] = branches
        if not self.is_eager:
            counts["decision"] = sum(
                self.bundle.branch_counts[k] for group in self.groups for k in group if k != group[-1]
            )
        return counts


def plan_site(bundle: Bundle, *, fuser: str, mode: str) -> DemoSite:
    """Place a bundle's stages on boards; ConfigError for a `fuser` where nothing is fused."""
    groups = bundle.wide_groups
    if fuser == "board" and not groups:
        raise ConfigError(
            f"--fuser board: bundle {bundle.name} has no wide stage, so there is nothing to fuse", "leave it out"
        )
    boards: list[DemoBoard] = []
    if bundle.branch_counts[0]:
        boards.append(DemoBoard(device="origin", is_origin=True))
    for k, branches in enumerate(bundle.branch_counts):
        if not branches:
            boards.append(DemoBoard(device=f"board{k}", stages=(k,), is_origin=k == 0))
    for group in groups:
        name = "branch" if len(groups) == 1 else f"stage{group[0]}-branch"
        boards += [
            DemoBoard(device=f"{name}{b}", stages=tuple(group), branch=b) for b in range(bundle.branch_counts[group[0]])
        ]
    if fuser == "board":
        boards.append(DemoBoard(device="fuser", fuses=True))
    return DemoSite(
        bundle=bundle,
        boards=tuple(boards),
        groups=tuple(map(tuple, groups)),
        fuser="fuser" if fuser == "board" else None,
        is_eager=mode == "eager",
    )
