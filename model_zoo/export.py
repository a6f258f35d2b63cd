"""From a trained network to int8 segments: torch, LiteRT, AI Edge Quantizer. Only `build` imports this.

Stage k + 1 is calibrated on exactly what stage k gives for the same images, so both sides of a boundary see
one range and come out with one scale and zero point; `check_boundaries` holds them to it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from distree.bundle import Macs, StageSpec
from distree.runtimes.tflite import load_interpreter
from model_zoo.errors import ExportError
from model_zoo.segments import check_boundaries, inspect_segment

SIGNATURE = "serving_default"
_INPUT = "input"
_COMPARED = 32  # images on which the float segment must equal torch
_FLOAT_TOLERANCE = 1e-3  # of logits and features, which reach some tens; rounding leaves about 1e-5


def export_stages(network: Any, calibration: Any, folder: Path) -> tuple[StageSpec, ...]:
    """Write stage0.tflite, stage1.tflite, … into `folder` and say what a manifest says of them.

    network: the trained module of a recipe, in evaluation mode. calibration: float tensor (n, height, width,
    channels) of training images. Raises ExportError where the tools are missing or two neighbours disagree on
    their boundary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exported: list[StageSpec] = []
    inputs = calibration
    for number, stage in enumerate(network.stages):
        path = folder / f"stage{number}.tflite"
        float_model = folder / f"stage{number}.float.tflite"
        _convert(stage, inputs[:1], float_model)
        _check_float_model(stage, inputs[:_COMPARED], float_model)
        _quantise(float_model, inputs.numpy(), path)
        float_model.unlink()
        exported.append(inspect_segment(path, count_macs(stage, inputs[:1])))
        inputs = _features_of(stage, inputs)
    check_boundaries(tuple(exported))
    return tuple(exported)


def _features_of(stage: Any, inputs: Any) -> Any:
    with torch.no_grad():
        features = stage(inputs).get("features")
    return None if features is None else features.contiguous()


def _convert(stage: Any, sample: Any, path: Path) -> None:
    try:
        with _quiet():
            import litert_torch
    except ImportError as error:
        raise ExportError(f"litert-torch is missing ({error}); install the extra 'zoo'") from error
    # The converter copies weights in channels-last memory, and mistakes one for another where memory is used
    # again: wrong weights, without a word. https://github.com/google-ai-edge/litert-torch/issues/1238
    plain = copy.deepcopy(stage).to(memory_format=torch.contiguous_format)
    named = _NamedInput(plain).eval()
    with _quiet():
        litert_torch.convert(named, sample_kwargs={_INPUT: sample.contiguous()}).export(str(path))


class _NamedInput(nn.Module):  # type: ignore[misc, unused-ignore]
    """Gives the segment's input a name of ours; by position the converter would call it args_0."""

    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, input: Any) -> Any:  # the name is what ends up in the segment
        return self.stage(input)


def _check_float_model(stage: Any, inputs: Any, path: Path) -> None:
    """Raise ExportError unless the float segment computes what torch does: faulty conversions are silent."""
    interpreter_class, _ = load_interpreter()
    interpreter = interpreter_class(model_path=str(path), num_threads=1)
    runner = interpreter.get_signature_runner()
    with torch.no_grad():
        expected = stage(inputs)
    for row in range(len(inputs)):
        found = runner(**{_INPUT: inputs[row : row + 1].numpy()})
        for name, value in expected.items():
            difference = float(np.abs(found[name][0] - value[row].numpy()).max())
            if not difference <= _FLOAT_TOLERANCE:
                raise ExportError(f"{path}: {name} is off by {difference:.2g} from torch; the conversion went wrong")


def _quantise(float_model: Path, inputs: npt.NDArray[np.float32], path: Path) -> None:
    try:
        from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager
    except ImportError as error:
        raise ExportError(f"ai-edge-quantizer is missing ({error}); install the extra 'zoo'") from error
    scheme = recipe.static_wi8_ai8()
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(scheme)
    samples = [{_INPUT: inputs[i : i + 1]} for i in range(len(inputs))]
    with _quiet():
        watcher = calibrator.Calibrator(float_model.read_bytes(), num_threads=1, qsv_update_func=_widest)
        watcher.calibrate({SIGNATURE: samples}, manager)
        tool = quantizer.Quantizer(str(float_model), scheme)
        tool.quantize(watcher.get_model_qsvs()).export_model(str(path), overwrite=True)
    path.chmod(0o644)


def _widest(seen: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Widen a tensor's range by one image's.

    The quantiser's own way is a moving average that the last twenty images rule: it cut off logits of sure
    images, and gave a boundary two different ranges.
    """
    if not seen:
        return new
    return {"min": np.minimum(seen["min"], new["min"]), "max": np.maximum(seen["max"], new["max"])}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converters' progress and warnings off the terminal; their exceptions still pass."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def count_macs(stage: Any, sample: Any) -> Macs:
    """Count a stage's multiply-accumulates from its layers' shapes, for one input `sample` (1, h, w, c)."""
    counted: dict[str, int] = {}
    hooks = [
        layer.register_forward_hook(_counter(counted, name))
        for name, layer in stage.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        stage(sample)
    for hook in hooks:
        hook.remove()
    of_exit = sum(count for name, count in counted.items() if name.split(".")[0] == "exit")
    return Macs(trunk=sum(counted.values()) - of_exit, exit=of_exit)


def _counter(counted: dict[str, int], name: str) -> Any:
    def count(layer: Any, _: Any, output: Any) -> None:
        # weight[0] is what one output value is multiplied with: channels in (of its group) times the kernel.
        counted[name] = math.prod(output.shape[1:]) * int(layer.weight[0].numel())

    return count
