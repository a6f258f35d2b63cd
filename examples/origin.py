"""An origin inside one's own program: hand arrays over, get results as futures.

Start a broker first (`distree broker run`), then `python examples/origin.py`.
"""

from pathlib import Path

import numpy as np

from device_agent import Origin
from device_agent.config import AgentConfig, OriginConfig, PipelineConfig, PythonSource
from distree.bundle import find_bundle

SAMPLES = find_bundle("fashion").parents[1] / "samples" / "fashion.npz"


def main() -> None:
    """Classify ten images on one board that holds all three stages."""
    config = AgentConfig(
        site="lab",
        device="laptop",
        state_dir=Path("state"),
        pipelines=(
            PipelineConfig(
                name="fashion",
                bundle="fashion",
                stages=(0, 1, 2),
                origin=OriginConfig(source=PythonSource(kind="python"), deadline_ms=500),
            ),
        ),
    )
    images = np.load(SAMPLES)["input"][:10]
    with Origin(config) as origin:
        for future in [origin.submit(image, name=f"image {index}") for index, image in enumerate(images)]:
            result = future.result(timeout=5)
            print(f"{result.input}: {result.label} at exit {result.exit}, {result.latency_s * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
