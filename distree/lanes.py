"""How messages wait for the connection to the broker."""

from __future__ import annotations

import enum


class Lane(enum.IntEnum):
    """How a message waits for the connection, by what is owed, in the order in which lanes are served.

    A lane that is full gives up its own oldest messages, which are counted.
    """

    OWED = enum.auto()
    """Never given up: who sends it has bounded it. Results of inputs in custody."""
    LATEST = enum.auto()
    """The newest of each topic, never given up. What is retained."""
    WORK = enum.auto()
    """Bounded in number and bytes, and it expires. Features, embeddings, decisions, outcomes."""
    SHED = enum.auto()
    """Bounded. Results of inputs that found no room."""
    AUDIT = enum.auto()
    """Bounded. Rows of audits, which are numbered, so that gaps are noticed."""
    LOSSY = enum.auto()
    """Bounded, and few. Dead letters; and what goes out at QoS 0, which is dropped rather than kept waiting."""
