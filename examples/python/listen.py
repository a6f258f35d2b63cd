"""A listener that writes each result as a line of CSV, and says at the end how many of each class there were.

python examples/python/listen.py results.csv --broker mqtt://127.0.0.1 --count 50

It ends after --count results, or when none came for --quiet seconds.
"""

import argparse
import csv
from collections import Counter
from pathlib import Path

from distree import Results
from distree.errors import ResultTimeoutError

parser = argparse.ArgumentParser()
parser.add_argument("file", type=Path)
parser.add_argument("--broker", default="mqtt://127.0.0.1")
parser.add_argument("--site", default="lab")
parser.add_argument("--count", type=int, default=50)
parser.add_argument("--quiet", type=float, default=60.0)
args = parser.parse_args()

seen = Counter[str]()
with (
    args.file.open("w", newline="") as file,
    Results(args.broker, site=args.site, timeout_s=args.quiet) as results,
):
    print("listening", flush=True)
    table = csv.writer(file)
    table.writerow(["origin", "input", "label", "confidence", "exit", "reason", "latency_ms"])
    try:
        for result in results:
            latency_ms = round(result.latency_s * 1e3, 3)
            table.writerow(
                [result.origin, result.input, result.label, result.confidence, result.exit, result.reason, latency_ms]
            )
            seen[result.label or "none"] += 1
            if seen.total() == args.count:
                break
    except ResultTimeoutError:
        print(f"nothing came for {args.quiet:g} s")

for label, count in seen.most_common():
    print(f"{label}: {count}")
if results.dropped or results.malformed or results.interruptions:
    print(f"{results.dropped} dropped, {results.malformed} malformed, {results.interruptions} interruptions")
