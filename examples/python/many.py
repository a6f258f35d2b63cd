"""Many inputs in flight: an asyncio program submits a whole set of images and sums up what came of it.

python examples/python/many.py agent.yaml --inputs 200

agent.yaml needs one pipeline of bundle `fashion` with `origin: {source: {kind: python}}`.
"""

import argparse
import asyncio
from collections import Counter

import numpy as np

from device_agent import Origin
from distree.bundle.loading import find_bundle


async def main(config: str, inputs: int) -> None:
    """Submit all at once: each task waits for room by itself, `max_pending` of them are under way at a time."""
    with np.load(find_bundle("fashion").parents[1] / "samples" / "fashion.npz") as samples:
        images, labels = samples["input"][:inputs], samples["label"][:inputs]
    async with Origin.from_yaml(config) as origin:
        tasks = [origin.submit_async(image, str(k), timeout_s=60) for k, image in enumerate(images)]
        results = await asyncio.gather(*tasks)
    right = sum(result.class_id == label for result, label in zip(results, labels, strict=True))
    exits = Counter(result.exit for result in results)
    print(f"{len(results)} answered, {right / len(results):.1%} right")
    for exit_taken, count in sorted(exits.items(), key=str):
        print(f"exit {exit_taken}: {count}")


parser = argparse.ArgumentParser()
parser.add_argument("config")
parser.add_argument("--inputs", type=int, default=200)
args = parser.parse_args()
asyncio.run(main(args.config, args.inputs))
