"""The segments of a bundle with the bare interpreter: what every peer computes, and nothing of DistrEE."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ai_edge_litert.interpreter import Interpreter

Answer = tuple[int, float]
"""Class and confidence."""


class Segments:
    """Some stages of a plain bundle whose criterion is max_softmax."""

    def __init__(self, bundle: Path, stages: Iterable[int]) -> None:
        manifest = yaml.safe_load((bundle / "bundle.yaml").read_text())
        self._thresholds = [*manifest["exits"]["thresholds"], -1.0]
        self._specs = manifest["stages"]
        self._interpreters = {k: _Ports(bundle, self._specs[k]) for k in stages}
        mean, std = manifest["preprocess"]["mean"][0], manifest["preprocess"]["std"][0]
        first = self._specs[0]["input"]
        table = (np.arange(256) / 255 - mean) / std / first["scale"] + first["zero_point"]
        self._table = np.clip(np.rint(table), -128, 127).astype(np.int8)

    def tensor(self, image: Any) -> Any:
        """Return the int8 tensor of stage 0 for a uint8 image (28, 28, 1)."""
        return self._table[image].reshape(self._specs[0]["input"]["shape"])

    def features(self, stage: int, payload: bytes) -> Any:
        """Return what `stage` takes from the bytes that travelled."""
        return np.frombuffer(payload, np.int8).reshape(self._specs[stage]["input"]["shape"])

    def answer(self, stage: int, tensor: Any) -> tuple[Answer, Any]:
        """Run from `stage` to the first exit that is sure enough, or the last stage held.

        Returns what that exit says and, where the next stage is to go on, its features.
        """
        while True:
            features, answer = self._interpreters[stage].run(tensor)
            if answer[1] >= self._thresholds[stage]:
                return answer, None
            if stage + 1 not in self._interpreters:
                return answer, features
            stage, tensor = stage + 1, features


class _Ports:
    """An interpreter and which of its tensors is which."""

    def __init__(self, bundle: Path, spec: dict[str, Any]) -> None:
        self._interpreter = Interpreter(model_path=str(bundle / spec["segment"]), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        outputs = {tuple(detail["shape"]): detail["index"] for detail in self._interpreter.get_output_details()}
        self._logits = outputs[tuple(spec["logits"]["shape"])]
        self._features = outputs[tuple(spec["features"]["shape"])] if "features" in spec else None
        self._scale, self._zero = spec["logits"]["scale"], spec["logits"]["zero_point"]

    def run(self, tensor: Any) -> tuple[Any, Answer]:
        interpreter = self._interpreter
        interpreter.set_tensor(self._input, tensor)
        interpreter.invoke()
        logits = [(q - self._zero) * self._scale for q in interpreter.get_tensor(self._logits)[0].tolist()]
        top = max(logits)
        confidence = 1.0 / math.fsum([math.exp(z - top) for z in logits])
        features = None if self._features is None else interpreter.get_tensor(self._features)
        return features, (logits.index(top), confidence)
