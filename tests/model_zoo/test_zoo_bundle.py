"""The shipped bundle: what its manifest says is recomputed from its files."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from ai_edge_litert.interpreter import Interpreter

import model_zoo
from distree import lazy
from distree.bundle.frontends import LogMel, Mfcc
from distree.bundle.loading import Bundle, load_bundle
from distree.bundle.manifest import InputSpec, Preprocess, WindowRule
from distree.bundle.preprocessing import Preprocessor
from distree.bundle.runtimes import DEFAULT_RUNTIME, RUNTIMES, make_runtime
from distree.errors import BundleError, RuntimeUnavailableError
from model_zoo.build.manifest import write_manifest
from model_zoo.build.segments import check_boundaries, inspect_segment
from model_zoo.data import LabelledExamples
from model_zoo.recipes import get_recipe
from model_zoo.verification import check_golden

ZOO = Path(model_zoo.__file__).parent
SHIPPED = ZOO / "bundles" / "fashion"


def test_golden_vectors_hold_here(fashion: Bundle) -> None:
    report = check_golden(fashion)
    assert report.worst_steps <= report.tolerance


def test_manifest_says_what_the_segments_say(fashion: Bundle) -> None:
    for stage in fashion.stages:
        found = inspect_segment(fashion.path / stage.segment, stage.macs)
        assert found == stage


def test_boundaries_have_one_scale_and_zero_point(fashion: Bundle) -> None:
    check_boundaries(fashion.stages)
    for before, after in zip(fashion.stages, fashion.stages[1:], strict=False):
        assert before.features is not None
        assert before.features.zero_point == after.input.zero_point
        assert before.features.scale == pytest.approx(after.input.scale, rel=1e-5)


def conv_macs(segment: Path) -> dict[str, int]:
    """Multiply-accumulates of a segment, from the file: of what `features` need, and of all.

    For the last stage, which has no features, all but the classifier is the trunk.
    """
    interpreter = Interpreter(model_path=str(segment), experimental_op_resolver_type=_resolver_without_delegates())
    interpreter.allocate_tensors()
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    operations = interpreter._get_ops_details()
    costs = [_operation_macs(operation, tensors) for operation in operations]
    runner = interpreter.get_signature_runner()
    outputs = runner.get_output_details()
    trunk_end = outputs["features"]["index"] if "features" in outputs else _classifier_input(operations)
    needed, wanted = 0, {trunk_end}
    for operation, cost in reversed(list(zip(operations, costs, strict=True))):
        if wanted & set(operation["outputs"].tolist()):
            needed += cost
            wanted |= set(operation["inputs"].tolist())
    return {"trunk": needed, "exit": sum(costs) - needed}


def _resolver_without_delegates():
    from ai_edge_litert.interpreter import OpResolverType

    return OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


def _operation_macs(operation, tensors) -> int:
    if operation["op_name"] not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        assert operation["op_name"] in ("ADD", "RESHAPE", "PAD"), operation["op_name"]
        return 0
    weights = tensors[operation["inputs"][1]]["shape"]
    outputs = tensors[operation["outputs"][0]]["shape"]
    # Weights have the output channels first, but for depthwise convolutions, which have them last.
    per_output = weights[:-1] if operation["op_name"] == "DEPTHWISE_CONV_2D" else weights[1:]
    return int(np.prod(outputs[1:]) * np.prod(per_output))


def _classifier_input(operations) -> int:
    classifiers = [op for op in operations if op["op_name"] in ("CONV_2D", "FULLY_CONNECTED")]
    return int(classifiers[-1]["inputs"][0])


def test_macs_of_the_manifest_are_those_of_the_segments(fashion: Bundle) -> None:
    for stage in fashion.stages:
        counted = conv_macs(fashion.path / stage.segment)
        assert counted == {"trunk": stage.macs.trunk, "exit": stage.macs.exit}


def test_the_bundle_is_small(fashion: Bundle) -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 400_000
    assert fashion.stages[0].macs.trunk + fashion.stages[0].macs.exit < 1_500_000
    assert fashion.manifest.measured.macs_no_early_exit_loose < 12_000_000
    for stage in fashion.stages[:-1]:
        assert stage.features is not None
        assert np.prod(stage.features.shape) <= 1600
        assert stage.features.dtype == "int8"


def test_figures_keep_the_bundles_promises(fashion: Bundle) -> None:
    measured = fashion.manifest.measured
    assert all(a >= b for a, b in zip(measured.accuracy, (0.88, 0.905, 0.92), strict=True))
    assert measured.accuracy[-1] - measured.accuracy_at_thresholds <= 0.003
    assert measured.exit_share[0] >= 0.6
    assert sum(measured.exit_share) == pytest.approx(1.0)
    assert measured.macs_per_input < measured.macs_no_early_exit_strict < measured.macs_no_early_exit_loose


def test_manifest_is_the_recipes(fashion: Bundle) -> None:
    recipe = get_recipe("fashion")
    assert fashion.labels == recipe.labels
    assert fashion.manifest.input.shape == recipe.input_shape
    assert fashion.manifest.preprocess.mean == recipe.mean
    assert fashion.manifest.measured.trained.epochs == recipe.settings.epochs
    assert fashion.manifest.measured.trained.seed == recipe.settings.seed


@pytest.mark.parametrize("name", ["stage0.tflite", "stage1.tflite", "stage2.tflite", "golden.npz"])
def test_one_changed_bit_is_caught(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(BundleError, match=re.escape(name)):
        load_bundle(copied)


def test_golden_vectors_of_another_model_are_caught(copied: Path) -> None:
    """Hashes that fit, but a runtime that computes something else: seen by the golden vectors alone."""
    bundle = load_bundle(copied)
    path = copied / bundle.manifest.golden.file
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["stage1_features"] = np.where(arrays["stage1_features"] > 0, -128, 100).astype(np.int8)
    np.savez_compressed(path, **arrays)
    _rewrite_golden_hash(copied)
    with pytest.raises(RuntimeUnavailableError, match="quantisation steps"):
        check_golden(load_bundle(copied))


def _rewrite_golden_hash(folder: Path) -> None:
    import hashlib

    path = folder / "bundle.yaml"
    document = yaml.safe_load(path.read_text())
    document["golden"]["sha256"] = hashlib.sha256((folder / "golden.npz").read_bytes()).hexdigest()
    path.write_text(yaml.safe_dump(document))


@pytest.mark.parametrize("drop", ["stage0_input", "stage1_features", "stage2_logits"])
def test_golden_vectors_must_be_complete(copied: Path, drop: str) -> None:
    with np.load(copied / "golden.npz") as archive:
        arrays = {key: archive[key] for key in archive if key != drop}
    np.savez_compressed(copied / "golden.npz", **arrays)
    _rewrite_golden_hash(copied)
    with pytest.raises(BundleError, match=drop):
        check_golden(load_bundle(copied))


def test_golden_vectors_have_the_shapes_of_the_tensors(fashion: Bundle) -> None:
    with np.load(SHIPPED / "golden.npz") as golden:
        for k, stage in enumerate(fashion.stages):
            assert golden[f"stage{k}_input"].shape == (4, *stage.input.shape[1:])
            assert golden[f"stage{k}_logits"].shape == (4, *stage.logits.shape[1:])
            assert (stage.features is not None) == (f"stage{k}_features" in golden)
        assert np.array_equal(golden["stage0_features"], golden["stage1_input"])


def test_a_manifest_written_again_is_the_same_manifest(fashion: Bundle, copied: Path) -> None:
    write_manifest(fashion.manifest, copied)
    assert (copied / "bundle.yaml").read_bytes() == (SHIPPED / "bundle.yaml").read_bytes()
    assert load_bundle(copied).manifest == fashion.manifest


def test_the_usual_runtime_goes_without_saying_and_another_is_written(
    fashion: Bundle, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fashion.manifest.runtime == DEFAULT_RUNTIME
    assert "runtime:" not in (SHIPPED / "bundle.yaml").read_text()
    made: list[object] = []
    module = ModuleType("another_runtime")
    module.Other = lambda *given, **named: made.append((given, named)) or "made"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(RUNTIMES, "other", "another_runtime:Other")
    write_manifest(replace(fashion.manifest, runtime="other"), copied)
    bundle = load_bundle(copied)
    assert "runtime: other" in (copied / "bundle.yaml").read_text()
    assert bundle.revision != fashion.revision
    assert make_runtime(bundle, [0], 2, fuse=True) == "made"
    assert made == [((bundle, [0], 2), {"branch": None, "fuse": True})]


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_that_a_bundle_may_name_can_be_loaded(fashion: Bundle, name: str) -> None:
    assert callable(lazy.load(RUNTIMES[name]))


def test_segments_hold_no_transposes(fashion: Bundle) -> None:
    for stage in fashion.stages:
        interpreter = Interpreter(model_path=str(fashion.path / stage.segment))
        names = {operation["op_name"] for operation in interpreter._get_ops_details()}
        assert "TRANSPOSE" not in names
        assert "DEQUANTIZE" not in names


def test_one_image_by_hand(fashion: Bundle, samples: LabelledExamples) -> None:
    """Preprocessing written out once more, from the manifest's own words."""
    spec, words = fashion.stages[0].input, fashion.manifest.preprocess
    real = (samples.inputs[0] / 255.0 - np.array(words.mean)) / np.array(words.std)
    tensor = np.clip(np.rint(real / spec.scale) + spec.zero_point, -128, 127).astype(np.int8)
    assert np.array_equal(Preprocessor(fashion.manifest).tensor(samples.inputs[0])[0], tensor)
    logits = make_runtime(fashion, [0]).run(0, tensor[None]).logits
    assert len(logits) == len(fashion.labels)


def test_samples_name_their_licence() -> None:
    assert "MIT License" in (ZOO / "samples" / "README.md").read_text(encoding="utf-8")


def test_what_is_declared_of_inputs_is_written_and_read_again(fashion: Bundle, copied: Path) -> None:
    logmel = LogMel(frame=48, step=16, bands=28, low_hz=20.0, high_hz=4000.0, power=2)
    preprocess = Preprocess(
        mean=(-4.0,),
        std=(2.5,),
        layout="nhwc",
        resize="pad",
        window=WindowRule(hop=240, short="pad"),
        frontend=Mfcc(coefficients=28, logmel=logmel),
    )
    spec = InputSpec(dtype="int16", shape=(480,), rate_hz=16000.0)
    manifest = replace(fashion.manifest, input=spec, preprocess=preprocess)
    write_manifest(manifest, copied)
    text = (copied / "bundle.yaml").read_text()
    assert "input: {dtype: int16, shape: [480], rate_hz: 16000.0}\n" in text
    assert "  window: {hop: 240, short: pad}\n" in text
    assert "background" not in text
    assert load_bundle(copied).manifest == manifest
