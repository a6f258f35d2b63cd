"""Time and size of the messages between boards: `python -m benchmarks.codec [--json FILE]`.

Each message is decoded, and encoded as a board does that passes it on: one that was decoded, whose context is packed
already. Features are those of the bundle `fashion` after its first stage. All are timed in turn, round by round, in
processor time, and the least of the rounds counts. Prints microseconds and bytes; judges nothing.
"""

from __future__ import annotations

import argparse
import json
import time
import timeit
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from distree.messages.codec import decode, encode
from distree.messages.request import (
    Decision,
    Embedding,
    Guess,
    Hop,
    Outcome,
    Progress,
    RequestContext,
    Rule,
    StageMessage,
    Tensor,
)
from distree.messages.result import Result, Stamp

FEATURES = Tensor(dtype="int8", shape=(1, 14, 14, 8), codec="raw", payload=bytes(range(256)) * 6 + bytes(32))
EMBEDDED = Tensor(dtype="float32", shape=(1, 64), codec="raw", payload=bytes(256))
TOKEN = bytes.fromhex("8f00d1e2c3b4a596")
STAMP = Stamp(time="2026-01-15T09:30:00.123+00:00", clock_synced=True)


def messages() -> dict[str, Any]:
    """Return one message of each kind, as they are in a pipeline of three stages."""
    rule = Rule(epoch=3, criterion="max_softmax", thresholds=(0.9, 0.8), rest_s=(0.002, 0.001))
    context = RequestContext(
        request="5b1c09e4-2a",
        origin="cam1",
        attempt=1,
        token=TOKEN,
        revision="4ab1fe8ae806",
        rule=rule,
        budget_s=0.5,
    )
    hops = (
        Hop(device="cam1", stage=0, queue_s=0.00003, compute_s=0.000158),
        Hop(device="b1", stage=1, queue_s=0.001, compute_s=0.0004),
    )
    guess = Guess(exit=0, class_id=9, confidence=0.625)
    first = Progress(spent_s=0.000188, guess=guess, memory=(), hops=hops[:1])
    second = replace(first, spent_s=0.001588, hops=hops)
    wide = replace(context, fuser="hub", eager=True)
    return {
        "stage 1": StageMessage(context=context, progress=first, stage=1, tensor=FEATURES),
        "stage 2": StageMessage(context=context, progress=second, stage=2, tensor=FEATURES),
        "embedding": Embedding(context=wide, progress=first, stage=1, branch=1, device="b1", tensor=EMBEDDED),
        "decision": Decision(request="5b1c09e4-2a", token=TOKEN, stage=1, go=True),
        "outcome": Outcome(
            request="5b1c09e4-2a", token=TOKEN, reason="confident", guess=guess, spent_s=0.001588, hops=hops
        ),
        "result": Result(
            request="5b1c09e4-2a",
            site="lab",
            pipeline="fashion",
            origin="cam1",
            input="boot.png",
            label="Ankle boot",
            class_id=9,
            confidence=0.9981,
            exit=1,
            reason="confident",
            final=True,
            late=False,
            attempt=1,
            latency_s=0.000412,
            epoch=3,
            model="fashion",
            revision="4ab1fe8ae806",
            hops=hops,
        ),
    }


def work() -> dict[str, tuple[int, Callable[[], Any], Callable[[], Any]]]:
    """Return by name the bytes of a message, what decodes it and what encodes it."""
    made = {}
    for name, message in messages().items():
        beside = STAMP if isinstance(message, Result) else None
        payload = encode(message, beside)
        read = decode(type(message), payload)
        made[name] = len(payload), partial(decode, type(message), payload), partial(encode, read, beside)
    return made


def timed(calls: dict[str, Callable[[], Any]], *, rounds: int, number: int) -> dict[str, float]:
    """Return microseconds per call, the least of all rounds."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            spent_s = timeit.timeit(call, number=number, timer=time.process_time)
            least[name] = min(least[name], spent_s / number * 1e6)
    return least


def main() -> None:
    """Time all messages and print them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--rounds", type=int, default=30, help="rounds, of which the least counts (default: %(default)s)"
    )
    parser.add_argument("--number", type=int, default=2000, help="calls a round (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    args = parser.parse_args()
    todo = work()
    calls = {
        (name, what): call
        for name, (_, *both) in todo.items()
        for what, call in zip(("decode", "encode"), both, strict=True)
    }
    least = timed(calls, rounds=args.rounds, number=args.number)
    print(f"{'message':12}{'bytes':>8}{'decode µs':>12}{'encode µs':>12}")
    rows = [
        {"message": name, "bytes": size, "decode_us": least[name, "decode"], "encode_us": least[name, "encode"]}
        for name, (size, *_) in todo.items()
    ]
    for row in rows:
        print(f"{row['message']:12}{row['bytes']:8,}{row['decode_us']:12.2f}{row['encode_us']:12.2f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
