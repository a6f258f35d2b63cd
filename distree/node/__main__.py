"""Prints the transition tables of a node's parts."""

from __future__ import annotations

from collections.abc import Mapping

from distree.node.custody import CUSTODY_TRANSITIONS
from distree.node.gathering import GATHERING_TRANSITIONS
from distree.node.job import JOB_TRANSITIONS

TABLES: dict[str, Mapping[tuple[str, str], str]] = {
    "A job on a board (a delivery, or an input of its own):": JOB_TRANSITIONS,  # type: ignore[dict-item]
    "The embeddings of a request at a wide stage's exit:": GATHERING_TRANSITIONS,  # type: ignore[dict-item]
    "An input in the custody of its origin:": CUSTODY_TRANSITIONS,  # type: ignore[dict-item]
}


def transition_tables() -> str:
    """Return the transition tables as text, one line a transition."""
    lines = []
    for title, table in TABLES.items():
        lines.append(title)
        lines += [f"  {state:<9} {event:<9} -> {after}" for (state, event), after in table.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(transition_tables())  # noqa: T201
