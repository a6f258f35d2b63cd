"""Whether a demo showed what it should: inputs that travel from board to board."""

from __future__ import annotations

from distree import topics
from distree.apps.demo.fleet import PIPELINE, Demo
from distree.errors import Problem
from distree.formatting import counted
from distree.topics import Kind

ALLOW = "allow this topic in the broker's ACL"


def stranded(demo: Demo) -> Problem | None:
    """Say what keeps inputs from reaching other boards, if none of those that should have did; None if nothing does.

    An input should have gone on if its origin answered it as `fallback` or `deadline`, without help of any other board.
    If the first exit was sure of all inputs, as it may be of a few, nothing had to travel, and nothing is said.
    """
    watch = demo.watch
    if not watch.stranded or watch.travelled:
        return None
    origin = demo.plan.origin
    needed = [k for k in _travelling(demo) if k not in origin.stages]
    begun = f"{counted(watch.stranded, 'input')} had to go beyond {origin.device}, and none did: "
    for k in needed:
        if k not in watch.announced:
            topic = _topic(demo, Kind.MEMBER, k)
            return Problem(f"{begun}no board serves stage {k}, or the broker does not pass on {topic}", ALLOW)
    first = needed[0]
    if not watch.messages[f"stage {first}"]:
        return Problem(f"{begun}the broker does not pass on {_topic(demo, Kind.STAGE, first)}", ALLOW)
    kind = Kind.EXIT if demo.bundle.branch_counts[first] else Kind.OUTCOME
    topic = _topic(demo, kind, first)
    why = f"stage {first} got its inputs, but no answer came back, perhaps because the broker does not pass on {topic}"
    return Problem(f"{begun}{why}", ALLOW)


def _travelling(demo: Demo) -> list[int]:
    """Return the stages that take their input from the network: plain ones, and the first of wide ones in a row."""
    inner = {k for group in demo.plan.groups for k in group[1:]}
    return [k for k in range(len(demo.bundle.stages)) if k not in inner]


def _topic(demo: Demo, kind: Kind, stage: int) -> str:
    origin = demo.plan.origin.device
    names = {"device": "+", "to": "+", "sender": "+", "origin": origin, "stage": stage}
    if kind is Kind.STAGE:
        names["sender"] = origin
    if kind is Kind.EXIT:
        names["device"] = demo.plan.fuser or origin
    return topics.build(kind, site=demo.site, pipeline=PIPELINE, **names)
