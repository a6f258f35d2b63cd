"""From a trained network to int8 segments: torch, LiteRT, AI Edge Quantizer. Only `build` imports this.

Stage k + 1 is calibrated on exactly what stage k gives for the same images, so both sides of a boundary see
one range and come out with one scale and zero point; `check_boundaries` holds them to it. In a wide network the
later side is also told the range outright, as the earlier one came out with it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from distree.bundle.manifest import BranchSpec, Macs, StageSpec, TensorSpec
from distree.bundle.runtimes.tflite import load_interpreter
from model_zoo.build.segments import (
    check_boundaries,
    inspect_branch,
    inspect_fusion,
    inspect_segment,
    missing_sets,
    same_values,
)
from model_zoo.errors import INSTALL_EXTRA, ExportError

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
    return export_parts(network.stages, calibration, folder)


def export_wide(network: Any, calibration: Any, folder: Path) -> tuple[StageSpec, ...]:
    """Write stage{k}.branch{b}.tflite and stage{k}.fusion.tflite of a network whose stages are all wide.

    network: the trained module of a recipe, in evaluation mode, with `branches`, a ModuleList of modules with
    `stages`, and `fusions`, a ModuleList. A stage takes (n, height, width, channels) and gives `embedding`
    (n, values), which only its submodule `exit` computes, and `features` (n, height, width, channels), but for the
    last. A fusion takes one embedding per branch, all zeros for a missing one, and gives `logits` (n, classes).
    calibration and errors are those of `export_stages`.
    """
    return export_parts([network], calibration, folder)


def export_whole(network: Any, calibration: Any, path: Path) -> StageSpec:
    """Write a whole network without exits to `path`; return what a manifest says of it as the only stage.

    network: the trained module of a recipe, in evaluation mode. calibration and errors are those of `export_stages`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_segment(network, {_INPUT: calibration}, path)
    return inspect_segment(path, count_macs(network, calibration[:1]))


def export_parts(parts: Iterable[Any], calibration: Any, folder: Path) -> tuple[StageSpec, ...]:
    """Write the segments of plain stages and groups of wide ones, in depth order.

    parts: plain stages as in `export_stages` and networks as in `export_wide`, where the last fusion gives
    `features` too if a plain stage follows. calibration and errors are those of `export_stages`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exported: list[StageSpec] = []
    inputs = calibration
    for part in parts:
        before = exported[-1].features if exported else None
        if hasattr(part, "branches"):
            made, inputs = _export_group(part, inputs, before, folder, len(exported))
            exported += made
        else:
            # A plain stage after another needs no telling: its bundle stays the same to the last bit.
            told = before if exported and exported[-1].branches else None
            spec, inputs = _export_plain(part, inputs, told, folder, len(exported))
            exported.append(spec)
    check_boundaries(tuple(exported))
    return tuple(exported)


def _export_plain(
    stage: Any, inputs: Any, before: TensorSpec | None, folder: Path, number: int
) -> tuple[StageSpec, Any]:
    """Write one plain stage; return what a manifest says of it, and its features on the images."""
    path = folder / f"stage{number}.tflite"
    _write_segment(stage, {_INPUT: inputs}, path, {} if before is None else {_INPUT: before})
    spec = inspect_segment(path, count_macs(stage, inputs[:1]))
    return spec, _run(stage, inputs).get("features")


@dataclass(slots=True)
class _WideStage:
    """A wide stage under way: its branches, and the embeddings that each of them gives of the images."""

    number: int
    branches: list[BranchSpec]
    embeddings: list[Any]


def _export_group(
    network: Any, inputs: Any, before: TensorSpec | None, folder: Path, first: int
) -> tuple[list[StageSpec], Any]:
    """Write the wide stages of one network; return what a manifest says of them, and the last fusion's features."""
    stages = [_WideStage(first + depth, [], []) for depth in range(len(network.fusions))]
    for branch in network.branches:
        flowing, told = inputs, before
        for wide, stage in zip(stages, branch.stages, strict=True):
            path = folder / f"stage{wide.number}.branch{len(wide.branches)}.tflite"
            _write_segment(stage, {_INPUT: flowing}, path, {} if told is None else {_INPUT: told})
            spec = inspect_branch(path, count_macs(stage, flowing[:1]))
            given = _run(stage, flowing)
            wide.branches.append(spec)
            wide.embeddings.append(given["embedding"])
            flowing, told = given.get("features"), spec.features
    made, features = [], None
    for wide, fusion in zip(stages, network.fusions, strict=True):
        embeddings = _with_missing(wide.embeddings)
        made.append(_export_fusion(fusion, embeddings, wide, folder))
        features = _run(fusion, *embeddings).get("features")
    return made, features


def _with_missing(embeddings: Sequence[Any]) -> list[Any]:
    """Return every image's embeddings, and as many again with some branches missing, so all zeros."""
    rows = [embeddings]
    sets = missing_sets(len(embeddings))
    for i, missing in enumerate(sets):
        some = [embedding[i :: len(sets)] for embedding in embeddings]
        rows.append([torch.zeros_like(one) if b in missing else one for b, one in enumerate(some)])
    return [torch.cat(of_branch).contiguous() for of_branch in zip(*rows, strict=True)]


def _export_fusion(fusion: Any, embeddings: Sequence[Any], wide: _WideStage, folder: Path) -> StageSpec:
    """Write a fusion head that takes the embeddings with the very scales that the branches give them."""
    path = folder / f"stage{wide.number}.fusion.tflite"
    inputs = {f"embedding{b}": one for b, one in enumerate(embeddings)}
    given = dict(zip(inputs, (branch.embedding for branch in wide.branches), strict=True))
    _write_segment(fusion, inputs, path, given)
    macs = sum(count_layers(fusion, *(one[:1] for one in embeddings)).values())
    spec, taken = inspect_fusion(path, tuple(wide.branches), macs)
    for branch, name in zip(wide.branches, given, strict=True):
        if not same_values(branch.embedding, taken[name]):
            raise ExportError(
                f"{branch.segment} gives {branch.embedding}, but {path.name} takes {taken[name]}, so embeddings would "
                "change their meaning between boards",
                "begin the fusion head with a linear layer for each branch",
            )
    return spec


def _run(module: Any, *inputs: Any) -> dict[str, Any]:
    with torch.no_grad():
        return {name: value.contiguous() for name, value in module(*inputs).items()}


class _NamedInput(nn.Module):  # type: ignore[misc, unused-ignore]
    """Gives the segment's input a name of ours; by position the converter would call it args_0.

    The names of this class and its attribute end up in the segments of shipped bundles.
    """

    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, input: Any) -> Any:  # the name is what ends up in the segment
        return self.stage(input)


class _NamedEmbeddings(nn.Module):  # type: ignore[misc, unused-ignore]
    """Gives the inputs of a fusion head names of ours, of which there are as many as branches."""

    def __init__(self, fusion: Any) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, **embeddings: Any) -> Any:
        return self.fusion(*embeddings.values())


def _write_segment(
    module: Any, inputs: Mapping[str, Any], path: Path, told: Mapping[str, TensorSpec] | None = None
) -> None:
    """Convert, check against torch and quantise one module, calibrated on all rows of its `inputs`.

    An input in `told` gets the scale and zero point of that tensor, instead of ones from the values seen.
    """
    float_model = path.with_suffix(".float.tflite")
    _convert(module, {name: value[:1] for name, value in inputs.items()}, float_model)
    tensor_names = _check_float_model(module, {name: value[:_COMPARED] for name, value in inputs.items()}, float_model)
    ranges = _calibrate(float_model, {name: value.numpy() for name, value in inputs.items()})
    for name, spec in (told or {}).items():
        seen = ranges[tensor_names[name]]
        low, high = value_range(spec)
        ranges[tensor_names[name]] = {"min": np.full_like(seen["min"], low), "max": np.full_like(seen["max"], high)}
    _quantise(float_model, ranges, path)
    float_model.unlink()


def value_range(spec: TensorSpec) -> tuple[float, float]:
    """Return the smallest and the largest real value that an int8 tensor can hold."""
    return (-128 - spec.zero_point) * spec.scale, (127 - spec.zero_point) * spec.scale


def _calibrate(float_model: Path, inputs: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, dict[str, Any]]:
    """Return the range of every tensor by name: the true minimum and maximum over all rows of the inputs."""
    try:
        from ai_edge_quantizer import calibrator, recipe, recipe_manager
    except ImportError as error:
        raise ExportError(f"ai-edge-quantizer is missing ({error})", INSTALL_EXTRA) from error
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    rows = len(next(iter(inputs.values())))
    samples = [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(rows)]
    with _quiet():
        watcher = calibrator.Calibrator(float_model.read_bytes(), num_threads=1, qsv_update_func=_widest)
        watcher.calibrate({SIGNATURE: samples}, manager)
    return dict(watcher.get_model_qsvs())


def _widest(seen: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Widen a tensor's range by one image's.

    The quantiser's own way is a moving average that the last twenty images rule: it cut off logits of sure
    images, and gave a boundary two different ranges.
    """
    if not seen:
        return new
    return {"min": np.minimum(seen["min"], new["min"]), "max": np.maximum(seen["max"], new["max"])}


def _convert(module: Any, samples: Mapping[str, Any], path: Path) -> None:
    try:
        with _quiet():
            import litert_torch
    except ImportError as error:
        raise ExportError(f"litert-torch is missing ({error})", INSTALL_EXTRA) from error
    # The converter copies weights in channels-last memory, and mistakes one for another where memory is used
    # again: wrong weights, silently. https://github.com/google-ai-edge/litert-torch/issues/1238
    plain = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    named = (_NamedInput(plain) if set(samples) == {_INPUT} else _NamedEmbeddings(plain)).eval()
    with _quiet():
        contiguous = {name: value.contiguous() for name, value in samples.items()}
        litert_torch.convert(named, sample_kwargs=contiguous).export(str(path))


def _check_float_model(module: Any, inputs: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Raise ExportError unless the float segment computes what torch does: faulty conversions are silent.

    Returns the names of its tensors, by those of its inputs and outputs.
    """
    interpreter_class, _ = load_interpreter()
    interpreter = interpreter_class(model_path=str(path), num_threads=1)
    runner = interpreter.get_signature_runner()
    expected = _run(module, *inputs.values())
    for row in range(len(next(iter(inputs.values())))):
        found = runner(**{name: value[row : row + 1].numpy() for name, value in inputs.items()})
        for name, value in expected.items():
            difference = float(np.abs(found[name][0] - value[row].numpy()).max())
            if not difference <= _FLOAT_TOLERANCE:
                what = f"{path}: {name} is off by {difference:.2g} from torch, so the conversion went wrong"
                raise ExportError(what, "install the versions of the extra 'zoo', or change the layers that differ")
    details = {**runner.get_input_details(), **runner.get_output_details()}
    return {name: str(detail["name"]) for name, detail in details.items()}


def _quantise(float_model: Path, ranges: dict[str, dict[str, Any]], path: Path) -> None:
    from ai_edge_quantizer import quantizer, recipe

    with _quiet():
        tool = quantizer.Quantizer(str(float_model), recipe.static_wi8_ai8())
        tool.quantize(ranges).export_model(str(path), overwrite=True)
    path.chmod(0o644)


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
    """Count the multiply-accumulates of a stage, or a branch of one, for one input `sample` (1, h, w, c)."""
    counted = count_layers(stage, sample)
    of_exit = sum(count for name, count in counted.items() if name.split(".")[0] == "exit")
    return Macs(trunk=sum(counted.values()) - of_exit, exit=of_exit)


def count_layers(module: Any, *samples: Any) -> dict[str, int]:
    """Count the multiply-accumulates of each convolution and linear layer from their shapes, for one input."""
    counted: dict[str, int] = {}
    hooks = [
        layer.register_forward_hook(_counter(counted, name))
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        module(*samples)
    for hook in hooks:
        hook.remove()
    return counted


def _counter(counted: dict[str, int], name: str) -> Any:
    def count(layer: Any, _: Any, output: Any) -> None:
        # weight[0] is what one output value is multiplied with: channels in (of its group) times the kernel.
        # Added up, as a layer may be used more than once.
        counted[name] = counted.get(name, 0) + math.prod(output.shape[1:]) * int(layer.weight[0].numel())

    return count
