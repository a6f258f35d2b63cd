"""Bundles: what a manifest must hold together, which files a board verifies, and the parameters of criteria."""

from __future__ import annotations

import copy
import hashlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml

from distree.bundle.loading import Bundle, load_bundle
from distree.criteria.base import CriterionParameters
from distree.errors import BundleError
from distree.messages.plan import MaskedThresholds

DATA = Path(__file__).parents[2] / "data"
WIDE, MIXED = DATA / "tiny-wide", DATA / "tiny-mixed"


@pytest.fixture
def changed(tmp_path):
    """Copy a bundle, change its manifest by a function, and load it."""

    def changed(folder, change):
        place = shutil.copytree(folder, tmp_path / folder.name)
        document = yaml.safe_load((place / "bundle.yaml").read_text())
        change(document)
        (place / "bundle.yaml").write_text(yaml.safe_dump(document))
        return load_bundle(place)

    return changed


def put(*path_and_value):
    """Make a change that puts a value at a path of a manifest; DELETE takes away what is there."""
    *path, last, value = path_and_value

    def change(document):
        for key in path:
            document = document[key]
        if value is DELETE:
            del document[last]
        else:
            document[last] = value

    return change


DELETE = object()


def test_wide_bundles_say_how_many_branches_each_stage_has() -> None:
    assert load_bundle(WIDE).branch_counts == (2, 2, 2)
    assert load_bundle(MIXED).branch_counts == (0, 3, 3, 0)
    assert load_bundle(WIDE).is_wide
    assert not load_bundle("fashion").is_wide


def test_masked_thresholds_are_read() -> None:
    masked = load_bundle(WIDE).manifest.exits.masked
    assert [row.missing for row in masked] == [(0,), (1,)]
    assert all(isinstance(row, MaskedThresholds) and len(row.thresholds) == 2 for row in masked)


def with_65_branches(document):
    for stage in document["stages"][1:3]:
        stage["branches"] = [copy.deepcopy(stage["branches"][0]) for _ in range(65)]


TENSOR = {"name": "features", "dtype": "int8", "shape": [1, 4, 4, 4], "scale": 0.5, "zero_point": 0}


@pytest.mark.parametrize(
    ("folder", "change", "why"),
    [
        (WIDE, put("stages", 0, "branches", 1, "input", "scale", 0.5), "stages[0].branches[1].input: not that of"),
        (WIDE, put("stages", 0, "branches", 1, "input", "zero_point", 0), "stages[0].branches[1].input: not that of"),
        (
            WIDE,
            put("stages", 0, "input", "zero_point", 0),
            "stages[0].input: not that of branches[0]; make the two equal",
        ),
        (WIDE, put("stages", 0, "branches", 1, "features", DELETE), "stages[0].branches[1].features: missing"),
        (
            WIDE,
            put("stages", 0, "branches", 1, "features", "scale", 0.5),
            "stages[0].branches[1].features: not what stages[1].branches[1].input takes",
        ),
        (
            WIDE,
            put("stages", 2, "branches", 0, "features", TENSOR),
            "stages[2].branches[0].features: the last wide stage in a row has none",
        ),
        (
            WIDE,
            put("stages", 0, "features", TENSOR),
            "stages[0].features: the next wide stage takes the branches' features",
        ),
        (WIDE, put("stages", 2, "features", TENSOR), "stages[2].features: the last stage has none"),
        (WIDE, put("stages", 1, "branches", 1, DELETE), "stages[1].branches: 1 given"),
        (MIXED, with_65_branches, "stages[1].branches: 65 given; give 2 to 64"),
        (MIXED, put("stages", 2, "branches", 2, DELETE), "stages[2].branches: 2 given, 3 at stages[1]"),
        (MIXED, put("stages", 0, "features", "scale", 0.5), "not what stages[1].branches[0].input takes"),
        (MIXED, put("stages", 2, "features", "scale", 0.5), "stages[2].features: not what stages[3].input takes"),
        (MIXED, put("stages", 2, "features", DELETE), "stages[2].features: missing"),
        (
            MIXED,
            put("stages", 1, "features", TENSOR),
            "stages[1].features: the next wide stage takes the branches' features",
        ),
        (WIDE, put("stages", 0, "logits", "shape", [1, 5]), "stages[0].logits.shape: 5 logits for 4 labels"),
        (
            WIDE,
            put("stages", 0, "branches", 0, "segment", "x/a.tflite"),
            "branches[0].segment: 'x/a.tflite' is not a plain file name",
        ),
        (WIDE, put("stages", 0, "segment", "../a.tflite"), "stages[0].segment: '../a.tflite' is not a plain file name"),
        (
            WIDE,
            put("stages", 0, "branches", 0, "embedding", "shape", [6]),
            "embedding.shape: received [6]; give [1, number",
        ),
        (
            WIDE,
            put("stages", 0, "branches", 0, "embedding", "shape", [2, 6]),
            "embedding.shape: received [2, 6]; give [1, number",
        ),
        (WIDE, put("stages", 0, "branches", 0, "embedding", "dtype", "float16"), "embedding.dtype: float16"),
        (
            WIDE,
            put("stages", 0, "branches", 0, "embedding", "zero_point", 128),
            "embedding.zero_point: 128 is out of range; give -128 to 127",
        ),
        (WIDE, put("stages", 0, "branches", 0, "embedding", "scale", 0.0), "embedding.scale: 0 is out of range"),
        (
            WIDE,
            put("exits", "masked", 0, "missing", []),
            "exits.masked[0].missing: [] is not in order; give at least one branch",
        ),
        (MIXED, put("exits", "masked", 0, "missing", [1, 0]), "missing: [1, 0] is not in order"),
        (MIXED, put("exits", "masked", 0, "missing", [1, 1]), "missing: [1, 1] is not in order"),
        (
            WIDE,
            put("exits", "masked", 0, "missing", [2]),
            "missing: [2] has a branch that does not exist; give branches from 0 to 1",
        ),
        (WIDE, put("exits", "masked", 0, "missing", [-1]), "missing: [-1] has a branch that does not exist"),
        (WIDE, put("exits", "masked", 0, "missing", [0, 1]), "missing: [0, 1] are all branches"),
        (WIDE, put("exits", "masked", 1, "missing", [0]), "exits.masked[1].missing: [0] is given twice"),
        (WIDE, put("exits", "masked", 1, "thresholds", [0.5]), "exits.masked[1].thresholds: 1 given"),
        (
            WIDE,
            put("exits", "masked", 1, "thresholds", [0.5, 9.0]),
            "masked[1].thresholds: the threshold of exit 1 is 9",
        ),
        (WIDE, put("exits", "masked", 1, "thresholds", [0.5, float("inf")]), "expected a number or 'never'"),
        (
            WIDE,
            put("exits", "parameters", "file", "a/b.npz"),
            "exits.parameters.file: 'a/b.npz' is not a plain file name",
        ),
        (WIDE, put("exits", "criterion", "margn"), "unknown 'margn'"),
        (WIDE, put("runtime", "onnx"), "runtime: unknown 'onnx'; use one of tflite"),
        (MIXED, put("exits", "thresholds", [0.5, 0.5]), "exits.thresholds: 2 given; give 3, one per exit but the last"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_told_in_one_line(changed, folder, change, why) -> None:
    with pytest.raises(BundleError) as caught:
        changed(folder, change)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_masked_thresholds_need_a_wide_stage(changed) -> None:
    with pytest.raises(BundleError, match="no stage is wide"):
        changed(
            load_bundle("fashion").path,
            put("exits", "masked", [{"missing": [0], "thresholds": [0.5, 0.5]}]),
        )


def test_scales_may_differ_in_their_last_digits(changed) -> None:
    scale = load_bundle(WIDE).stages[1].branches[1].input.scale
    assert changed(WIDE, put("stages", 0, "branches", 1, "features", "scale", scale * (1 + 5e-6)))


# ---------------------------------------------------------------- files


def files_of(bundle: Bundle) -> set[str]:
    return {path.name for path in bundle.path.iterdir()} - {"bundle.yaml"}


@pytest.mark.parametrize(
    ("folder", "stages", "branch", "fuse", "used"),
    [
        (WIDE, (0, 1, 2), 1, False, {"stage0.branch1", "stage1.branch1", "stage2.branch1"}),
        (WIDE, (), None, True, {"stage0.fusion", "stage1.fusion", "stage2.fusion"}),
        (WIDE, (0, 1, 2), 0, True, {f"stage{k}.{part}" for k in range(3) for part in ("branch0", "fusion")}),
        (WIDE, (), None, False, set()),
        (MIXED, (0, 1, 2), 2, False, {"stage0", "stage1.branch2", "stage2.branch2"}),
        (MIXED, (3,), None, True, {"stage3", "stage1.fusion", "stage2.fusion"}),
    ],
)
def test_a_board_verifies_the_files_that_it_uses_and_no_other(tmp_path, folder, stages, branch, fuse, used) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "bundle"))
    segments = {path.name.removesuffix(".tflite") for path in place.glob("*.tflite")}
    for name in segments - used:
        (place / f"{name}.tflite").unlink()
    bundle = load_bundle(place, verify=stages, branch=branch, fuse=fuse)
    for name in [*(f"{name}.tflite" for name in used), "golden.npz", "criteria.npz"]:
        content = (place / name).read_bytes()
        (place / name).write_bytes(content + b"\0")
        with pytest.raises(BundleError, match=name):
            bundle.verify(stages, branch=branch, fuse=fuse)
        (place / name).write_bytes(content)


@pytest.mark.parametrize("folder", [WIDE, MIXED])
def test_by_default_every_file_is_verified(tmp_path, folder) -> None:
    bundle = load_bundle(shutil.copytree(folder, tmp_path / "bundle"))
    for name in files_of(bundle):
        path = bundle.path / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError, match=name):
            load_bundle(bundle.path)
        path.write_bytes(content)


def test_segments_of_branches_and_fusion_heads_are_read() -> None:
    bundle = load_bundle(MIXED)
    assert hashlib.sha256(bundle.branch_segment(1, 2)).hexdigest() == bundle.stages[1].branches[2].sha256
    assert hashlib.sha256(bundle.segment(1)).hexdigest() == bundle.stages[1].sha256
    assert bundle.branch_segment(1, 2) != bundle.segment(1)


@pytest.mark.parametrize("branch", [None, 3, -1])
def test_a_branch_that_is_not_there_is_told(branch) -> None:
    bundle = load_bundle(MIXED)
    with pytest.raises(BundleError, match=r"branch of stage 1 was named|stage 1 has no branch"):
        bundle.branch_segment(1, branch)
    with pytest.raises(BundleError, match=r"branch of stage 1 was named|stage 1 has no branch"):
        bundle.verify((1,), branch=branch)


def test_a_plain_stage_has_no_branch() -> None:
    with pytest.raises(BundleError, match="stage 0 is not wide"):
        load_bundle(MIXED).branch(0, 0)


# ---------------------------------------------------------------- parameters of criteria


@pytest.fixture
def with_parameters(changed, tmp_path):
    """Load tiny-wide with another criteria.npz: arrays, or its very bytes."""

    def with_parameters(content, folder=WIDE, criterion="max_softmax"):
        def change(document):
            document["exits"]["criterion"] = criterion
            for part in (document["exits"], *document["exits"]["masked"]):
                part["thresholds"] = ["never", "never"]  # which every criterion has
            document["exits"]["parameters"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

        path = tmp_path / "criteria.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.savez(path, **content)
        place = shutil.copytree(folder, tmp_path / "source" / folder.name)
        shutil.copy(path, place / "criteria.npz")
        return changed(place, change)

    return with_parameters


def test_parameters_are_the_floats_of_the_file() -> None:
    bundle = load_bundle(WIDE)
    parameters = bundle.criterion_parameters()
    with np.load(WIDE / "criteria.npz") as arrays:
        for c in range(4):
            for b in range(2):
                assert parameters.class_means[c][b] == tuple(arrays[f"class_means{b}"][c].astype(float).tolist())
        for k in range(3):
            assert parameters.gate[k] == tuple(arrays[f"gate{k}"].astype(float).tolist())
    assert len(parameters.class_means) == 4
    assert all(type(value) is float for of_class in parameters.class_means for values in of_class for value in values)


def test_a_bundle_without_parameters_has_none() -> None:
    assert load_bundle("fashion").criterion_parameters() == CriterionParameters()


MEANS = {"class_means0": np.zeros((4, 6), np.float32), "class_means1": np.zeros((4, 6), np.float32)}
GATES = {f"gate{k}": np.zeros(7 + k, np.float32) for k in range(2)}


def test_either_kind_of_parameters_may_be_left_out(with_parameters) -> None:
    assert with_parameters(MEANS).criterion_parameters().gate == ()


def test_the_last_exit_needs_no_gate(with_parameters) -> None:
    parameters = with_parameters(GATES).criterion_parameters()
    assert parameters.class_means == ()
    assert len(parameters.gate) == 2


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a readable .npz archive"),
        (b"no npz at all", "not a readable .npz archive"),
        (b"PK\x03\x04 cut short", "not a readable .npz archive"),
        (struct.pack("<4sHI", b"PK\x05\x06", 0, 0), "not a readable .npz archive"),
        (MEANS | {"mean": np.zeros(1, np.float32)}, "only class_means0"),
        ({"class_means1": MEANS["class_means1"]}, "only class_means0"),
        (
            {"class_means0": MEANS["class_means0"]},
            "class_means: (4, 6), not (classes, values) for each of the 2 branches",
        ),
        (MEANS | {"class_means1": np.zeros((3, 6), np.float32)}, "class_means: (4, 6), (3, 6), not (classes, values)"),
        (MEANS | {"class_means1": np.zeros((4, 5), np.float32)}, "class_means: (4, 6), (4, 5), not (classes, values)"),
        (MEANS | {"class_means2": MEANS["class_means1"]}, "for each of the 2 branches"),
        (MEANS | {"class_means1": np.zeros((4, 6))}, "class_means1: must be finite float32"),
        (MEANS | {"class_means1": np.full((4, 6), np.nan, np.float32)}, "class_means1: must be finite float32"),
        ({"gate0": np.array(["a"]), "gate1": GATES["gate1"]}, "gate0: must be finite float32"),
        ({"gate0": np.array([{}]), "gate1": GATES["gate1"]}, "gate0: not an .npy array: it contains object values"),
        ({"gate0": GATES["gate0"]}, "gate: not (weights,)"),
        ({f"gate{k}": np.zeros(7, np.float32) for k in range(4)}, "gate: not (weights,)"),
        (GATES | {"gate0": np.zeros((1, 7), np.float32)}, "gate: not (weights,)"),
    ],
)
def test_parameters_that_are_damaged_or_misshapen_are_told_in_one_line(with_parameters, content, why) -> None:
    with pytest.raises(BundleError) as caught:
        with_parameters(content).criterion_parameters()
    assert why in str(caught.value)
    assert "criteria.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parameters_that_were_changed_are_told(tmp_path) -> None:
    place = Path(shutil.copytree(WIDE, tmp_path / "bundle"))
    bundle = load_bundle(place)
    np.savez(place / "criteria.npz", **MEANS)
    with pytest.raises(BundleError, match=r"criteria.npz: its SHA-256"):
        bundle.criterion_parameters()


@pytest.mark.parametrize("criterion", ["feature_difference", "gate"])
def test_a_criterion_with_its_parameters_is_taken(with_parameters, criterion) -> None:
    assert with_parameters(MEANS | GATES, criterion=criterion).criterion == criterion


@pytest.mark.parametrize(("criterion", "content"), [("feature_difference", GATES), ("gate", MEANS)])
def test_a_criterion_without_its_parameters_is_refused(with_parameters, criterion, content) -> None:
    with pytest.raises(BundleError, match=f"bundle tiny-wide: {criterion} needs"):
        with_parameters(content, criterion=criterion)


def test_feature_difference_needs_embeddings(changed) -> None:
    of_embeddings = {"criterion": "feature_difference", "thresholds": [-1.0, "never"]}
    with pytest.raises(BundleError, match="only wide stages have"):
        changed(load_bundle("fashion").path, put("exits", of_embeddings))
