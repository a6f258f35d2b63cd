"""Text from outside as it may stand in a log, in a message or on a terminal: one line, printable, and not too long.

Topics, file names and whatever peers send may hold control characters, or 60 KB: everything of that kind passes
through here before a person gets to see it.
"""

from __future__ import annotations

MOST = 120
"""Characters of a text from outside that are shown in a line."""


def printable(text: str, most: int = MOST) -> str:
    r"""Return `text` with control characters and the like written as escapes, and cut to `most` characters.

    >>> printable("a\nb"), printable("abcdef", 4)
    ('a\\nb', 'abc…')
    """
    text = text[: most + 1]  # before it is escaped, which takes time
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def quoted(text: str, most: int = MOST) -> str:
    """Return `text` as `printable` does, between quotation marks."""
    return f"'{printable(text, most)}'"
