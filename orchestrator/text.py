"""Text for terminals and logs: tables, durations, and what peers said made harmless."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Return a peer's text with what could disturb a terminal or a log line replaced by '?'."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a head with aligned columns; columns of numbers are aligned on the right.

    >>> print(table(["A", "N"], [["x", "10"], ["yy", "9"]]))
    A    N
    x   10
    yy   9
    """
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = ([_pad(*cell) for cell in zip(row, widths, numeric, strict=True)] for row in (head, *rows))
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "", 1).isdigit()


def _pad(cell: str, width: int, number: bool) -> str:
    return cell.rjust(width) if number else cell.ljust(width)


def ago(seconds: float) -> str:
    """Return a duration in its largest fitting unit.

    >>> ago(3.2), ago(200), ago(8000), ago(300000)
    ('3 s', '3 min', '2.2 h', '3.5 d')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"
