"""Text from outside as it may stand in a log, in a message or on a terminal: one line, printable, and not too long.

Topics, file names and whatever peers send may hold control characters, or 60 KB: everything of that kind passes
through here before a person gets to see it.
"""

from __future__ import annotations

import re

MOST = 120
"""Characters of a text from outside that are shown in a line."""

MOST_SHOWN = 4096
"""Characters of a line that a command writes about what is wrong."""

_USER = re.compile(r"""(?<=://)[^\s'"]*@""")
_QUERY = re.compile(r"""(://[^\s?'"]*\?)[^\s'"]+""")


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


def printable_lines(text: str) -> str:
    """Return an error as a command shows it, each of its lines printable and of at most `MOST_SHOWN` characters."""
    return "\n".join(printable(line, MOST_SHOWN) for line in text.split("\n"))


def without_credentials(text: str) -> str:
    """Return `text` with neither users nor passwords in its URLs; cameras take these in the query too.

    >>> without_credentials("rtsp://ann:p@ss@10.0.0.7/live: 401, http://cam/jpg?user=ann&pwd=x")
    'rtsp://10.0.0.7/live: 401, http://cam/jpg?…'
    """
    return _QUERY.sub(r"\1…", _USER.sub("", text)) if "://" in text else text
