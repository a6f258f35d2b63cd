"""Text for terminals and logs: tables, durations, thresholds, and peers' text made harmless."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distree.messages.plan import Plan
from distree.printable import printable
from distree.thresholds import NEVER, NEVER_WORD


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a head, in aligned columns; columns of numbers are aligned on the right.

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


def thresholds_text(thresholds: Sequence[float], digits: int = 6) -> str:
    """Return thresholds as one line of numbers with so many significant digits; one that disables its exit is `never`.

    >>> thresholds_text([0.9375, NEVER])
    '0.9375 never'
    """
    return " ".join(NEVER_WORD if threshold >= NEVER else f"{threshold:.{digits}g}" for threshold in thresholds)


def plan_text(plan: Plan) -> str:
    """Return the decision of a plan as one line, with the reason and the author that it gives.

    >>> plan_text(Plan(pipeline="p", epoch=3, model="m", revision="r", criterion="margin", thresholds=(0.9, 0.8)))
    'epoch 3: margin 0.9 0.8'
    """
    why = why_text(plan.reason, plan.author)
    return printable(f"epoch {plan.epoch}: {plan.criterion} {thresholds_text(plan.thresholds)}{why and f' ({why})'}")


def why_text(reason: str, author: str) -> str:
    """Say why a plan decides as it does, and who decided it; "" where neither is known.

    >>> why_text("set by hand", "alice@lab"), why_text("", "alice@lab"), why_text("", "")
    ('set by hand, by alice@lab', 'by alice@lab', '')
    """
    return printable(", ".join(filter(None, (reason, author and f"by {author}"))))


def branches_text(missing: Sequence[int]) -> str:
    """Say which branches are missing.

    >>> branches_text([]), branches_text([1]), branches_text([0, 2])
    ('no branch missing', 'branch 1 missing', 'branches 0, 2 missing')
    """
    if not missing:
        return "no branch missing"
    return f"branch{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))} missing"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, which is plural unless the number is 1.

    >>> counted(1, "board"), counted(0, "board"), counted(1200, "branch", "branches")
    ('1 board', '0 boards', '1,200 branches')
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def percent(share: float) -> str:
    """Return a share of a whole as a percentage with three significant digits.

    >>> percent(0.0031234), percent(0.95), percent(1 / 3)
    ('0.312%', '95%', '33.3%')
    """
    return f"{100 * share:.3g}%"


def plain(value: Any) -> Any:
    """Return a value for JSON, with `never` in place of each threshold that disables its exit.

    >>> plain({"thresholds": [0.9, NEVER], "age_s": 3.0})
    {'thresholds': [0.9, 'never'], 'age_s': 3.0}
    """
    match value:
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case tuple() | list():
            return [plain(item) for item in value]
        case float():
            return NEVER_WORD if value >= NEVER else value
    return value


def bar(share: float, width: int = 20) -> str:
    """Draw a share of a whole.

    >>> bar(0.25, 8)
    '##......'
    """
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "#" * filled + "." * (width - filled)


def ago(seconds: float) -> str:
    """Return a duration in the largest unit that fits.

    >>> ago(3.2), ago(200), ago(8000), ago(300000)
    ('3 s', '3 min', '2.2 h', '3.5 d')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"
