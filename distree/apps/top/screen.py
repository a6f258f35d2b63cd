"""Draws a frame with rich, within a width and a height. Everything is text, never markup, as peers wrote some of it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distree.apps.top.live import Frame, ShownBoard, ShownEvent, ShownPipeline
from distree.formatting import ago, counted, percent
from distree.messages.events import Severity
from distree.printable import printable

_STYLES = {"ready": "green", "draining": "yellow", "init": "yellow", "lost": "red bold"}
_PIPELINE_HEAD = ("PIPELINE", "EPOCH", "ANS/S", "P95_MS", "EXITS", "THRESHOLDS")
_BOARD_HEAD = ("BOARD", "STATE", "SERVES", "RUN/S", "WAIT", "ANS/S", "OPEN", "EARLY", "P50_MS", "P95_MS", "MB")
_SEVERITIES = {Severity.INFO: "dim", Severity.WARNING: "yellow", Severity.ERROR: "red"}
_EVENTS = 3
"""Events that are shown even where boards have no room."""
_THRESHOLDS, _SERVES = 5, 2
"""Columns that give way where the terminal is narrow."""

_AROUND = 5
"""Lines beside the rows of the two tables: the head line, their heads, the line between and the last one."""


def draw(frame: Frame, *, width: int, height: int | None) -> Group:
    """Return what to print: lines of `width` at most, and at most `height` of them, None for as many as it takes."""
    pipelines, boards = frame.pipelines, frame.boards
    hidden, events = 0, list(frame.events)
    if height is not None:
        pipelines = pipelines[: max(1, (height - _AROUND) // 3)]
        room = max(1, height - _AROUND - len(pipelines))
        # Boards come first; events have what is left, a line between included, but always a few.
        kept = min(len(events), max(_EVENTS, room - len(boards) - 2))
        events = events[len(events) - kept :]
        room = max(1, room - (len(events) + 1 if events else 0))
        hidden, boards = max(0, len(boards) - room), boards[:room]
    parts: list[RenderableType] = [_head(frame, width)]
    shown = [_pipeline_cells(row) for row in pipelines]
    parts += [_table(_PIPELINE_HEAD, shown, left=(0, 4, 5), giving=_THRESHOLDS, width=width)]
    shown = [_board_cells(row) for row in boards]  # of those alone: there may be ten thousand
    parts += [Text(), _table(_BOARD_HEAD, shown, left=(0, 1, 2), giving=_SERVES, width=width)]
    if not frame.boards:
        parts.append(Text(f"no board of site {frame.site} has been heard from yet", style="yellow"))
    if hidden:
        parts.append(Text(f"and {hidden} more; a taller terminal shows them", style="dim"))
    if events:
        parts.append(Text())
        parts += [_event_line(shown) for shown in events]
    return Group(*parts)


def _event_line(shown: ShownEvent) -> Text:
    event = shown.event
    about = " ".join(name for name in (event.device, event.pipeline) if name)
    said = f"{event.what}; {event.remedy}" if event.remedy else event.what
    line = f"{ago(shown.age_s):>5} ago  {about and f'{about}: '}{said}"
    return Text(line, style=_SEVERITIES[event.severity], no_wrap=True, overflow="ellipsis")


def _head(frame: Frame, width: int) -> Text:
    ready = sum(row.board.state == "ready" and not row.board.is_silent for row in frame.boards)
    head = Text(
        f"site {frame.site}: {ready:,} of {counted(len(frame.boards), 'board')} ready", style="bold", no_wrap=True
    )
    head.append(", orchestrator running" if frame.orchestrator else ", no orchestrator", style="not bold")
    if frame.refused:
        head.append(f", {counted(frame.refused, 'message')} rejected", style="yellow")
    if frame.trouble is not None:
        head.append(f" NO BROKER: {printable(frame.trouble, width)}", style="red")
    head.overflow = "ellipsis"
    return head


def _table(
    head: Sequence[str], rows: Sequence[Sequence[Text]], *, left: Sequence[int], giving: int, width: int
) -> Table:
    """Return a table as wide as `width` at most: one column gives way where space is short; figures stay whole."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    widths = [max([len(name), *(len(row[k]) for row in rows)]) for k, name in enumerate(head)]
    room = max(1, width - sum(widths) - len(head) + widths[giving])
    for k, name in enumerate(head):
        shown = name[:room] if k == giving else name
        table.add_column(shown, justify="left" if k in left else "right", no_wrap=True)
    for row in rows:
        row[giving].truncate(room, overflow="ellipsis")
        table.add_row(*row)
    return table


def _pipeline_cells(row: ShownPipeline) -> list[Text]:
    plan = f"{printable(row.criterion or '')} {row.thresholds}"
    cells = [
        _short(row.pipeline),
        _epochs(row),
        f"{row.answers_hz:.1f}",
        _ms(row.latency_p95_s),
        " ".join(percent(share) for share in row.shares[:4]) + (" …" if len(row.shares) > 4 else "") or "-",
        "the bundle's own" if row.thresholds is None else plan,
    ]
    return [Text(cell) for cell in cells]


def _epochs(row: ShownPipeline) -> str:
    """Say which epochs boards report, and how many of them follow another plan than the one on the topic."""
    epochs = "/".join(map(str, row.epochs[-2:])) or "-"
    return f"{epochs} ({row.others} other)" if row.others else epochs


def _board_cells(row: ShownBoard) -> list[Text]:
    board, rates = row.board, row.rates
    state = board.state
    if board.is_silent:
        state = "silent" if board.heard_s is None else f"silent {ago(board.heard_s)}"
    cells = [
        Text(_short(board.device)),
        Text(state, style=_STYLES.get(state, "red")),
        Text(board.serves or "-"),
    ]
    figures = [
        "-" if rates is None else f"{rates.runs_hz:.1f}",
        "-" if board.waiting is None else str(board.waiting),
        "-" if rates is None or rates.answers_hz is None else f"{rates.answers_hz:.1f}",
        "-" if rates is None or rates.pending is None else str(rates.pending),
        "-" if rates is None or rates.early_share is None else f"{rates.early_share:.0%}",
        _ms(None if rates is None else rates.latency_p50_s),
        _ms(None if rates is None else rates.latency_p95_s),
        "-" if board.rss_bytes is None else f"{board.rss_bytes / 1e6:.0f}",
    ]
    return cells + [Text(figure) for figure in figures]


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.1f}" if seconds < 1.0 else f"{seconds * 1e3:.0f}"
