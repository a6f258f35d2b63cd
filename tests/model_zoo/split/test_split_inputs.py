"""How inputs become what a network takes, and whether data belongs to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distree.bundle.manifest import Macs, Manifest, StageSpec, TensorSpec
from model_zoo.data import Examples
from model_zoo.errors import SplitError
from model_zoo.split import bundle as writing
from model_zoo.split import data as reading
from model_zoo.split.asked import Asked
from model_zoo.split.graph import TensorInfo
from model_zoo.split.input_range import RANGES, differing, find_way, fit_inputs, input_ways, preprocessor
from model_zoo.split.network import Network


def tensor(dtype="float32", shape=(1, 4, 4, 3), scale=0.0, zero=0):
    return TensorInfo(0, "", dtype, shape, scale, zero, is_constant=False, is_variable=False, has_unknown_size=False)


def draft(info, inputs) -> Manifest:
    class Graph:
        input = info

    network = Network(b"", "", Graph(), None, None, {})
    return writing.manifest_of(network, Asked(model=Path("n"), name="n"), ("a", "b"), fit_inputs(inputs, info))


def pictures(dtype=np.uint8, count=6):
    generator = np.random.default_rng(0)
    values = generator.integers(0, 256, (count, 4, 4, 3))
    return values.astype(dtype) if dtype != np.float32 else (values / 255).astype(np.float32)


def made(info, inputs, name):
    (way,) = input_ways(inputs, fit_inputs(inputs, info), info, name)
    return preprocessor(draft(info, inputs), way).tensor(inputs[0])[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_each_range_is_what_its_name_says(dtype):
    """Of bytes, of floats from 0 to 1, and of floats from 0 to 255."""
    inputs = pictures(dtype) if dtype != np.float64 else pictures(np.uint8).astype(np.float32)
    unit = inputs[0].astype(np.float64) if dtype == np.float32 else inputs[0] / 255.0
    ranges = {"0..255": 255 * unit, "0..1": unit, "-1..1": 2 * unit - 1, "-128..127": 255 * unit - 128}
    for name, expected in ranges.items():
        assert np.allclose(made(tensor(), inputs, name), expected, atol=1e-4), name
    mean, std = np.asarray([0.485, 0.456, 0.406]), np.asarray([0.229, 0.224, 0.225])
    assert np.allclose(made(tensor(), inputs, "imagenet"), (unit - mean) / std, atol=1e-5)
    assert np.array_equal(made(tensor(), inputs, "0..1,bgr"), made(tensor(), inputs, "0..1")[..., ::-1])


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_what_is_quantised_already_stays_as_it_is(dtype):
    limits = np.iinfo(dtype)
    every = np.arange(limits.min, limits.max + 1).astype(dtype).reshape(1, 256)
    for scale, zero in ((0.5847029, limits.max - 40), (1.0, limits.min), (1 / 255, 0)):
        info = tensor(dtype, (1, 256), scale, zero)
        assert np.array_equal(made(info, every, "as-it-is"), every[0]), (scale, zero)


def test_the_way_is_found_by_accuracy():
    """A made-up network that is right only where values lie in -1 to 1 and blue comes first."""
    info, inputs, said = tensor(), pictures(), []
    ways = input_ways(inputs, fit_inputs(inputs, info), info, None)
    assert len(ways) == 2 * len(RANGES)

    def accuracy(way):
        return 0.9 if (way.name, way.preprocess.channel_order) == ("-1..1", "bgr") else 0.3

    assert str(find_way(ways, accuracy, info, said.append)) == "-1..1, blue first"
    assert said == ["range of values -1..1, blue first: 90.0 % right; next best, 0..255: 30.0 %"]


def test_ways_that_cannot_be_told_apart_say_so():
    info, inputs, said = tensor(), pictures(), []
    ways = input_ways(inputs, fit_inputs(inputs, info), info, None)
    find_way(ways, lambda way: 0.5, info, said.append)
    assert said[0].endswith("too close to be sure: set it with --range")


def test_ways_to_the_same_tensor_are_tried_once():
    info, inputs = tensor(), pictures()
    ways = differing(input_ways(inputs, fit_inputs(inputs, info), info, None), draft(info, inputs), inputs)
    assert [str(way) for way in ways].count("0..255") == 1
    assert "as-it-is" not in [way.name for way in ways]  # the same as 0..255


@pytest.mark.parametrize(
    ("scale", "zero", "name"), [(1.0, -128, "0..255"), (1 / 255, -128, "0..1"), (2 / 255, 0, "-1..1")]
)
def test_without_labels_the_scale_tells(scale, zero, name):
    info, inputs = tensor("int8", scale=scale, zero=zero), pictures()
    assert find_way(input_ways(inputs, fit_inputs(inputs, info), info, None), None, info, print).name == name


def test_without_labels_and_scale_nothing_tells():
    for info, why in (
        (tensor(), "set it with --range"),
        (tensor("int8", scale=0.02, zero=3), "not one of the usual ranges"),
    ):
        inputs = pictures()
        with pytest.raises(SplitError, match=why):
            find_way(input_ways(inputs, fit_inputs(inputs, info), info, None), None, info, print)


def test_measured_values_are_taken_as_they_are():
    info, inputs = tensor(shape=(1, 50, 6)), np.random.default_rng(0).normal(size=(4, 50, 6)).astype(np.float32)
    (way,) = input_ways(inputs, fit_inputs(inputs, info), info, None)
    assert np.array_equal(preprocessor(draft(info, inputs), way).tensor(inputs[0])[0], inputs[0])


def test_sound_is_tried_in_both_ways_that_are_usual():
    info = tensor(shape=(1, 400))
    inputs = np.random.default_rng(0).integers(-32768, 32768, (4, 400)).astype(np.float32)
    ways = input_ways(inputs, fit_inputs(inputs, info), info, None)
    assert [way.name for way in ways] == ["as-it-is", "-1..1"]
    assert np.allclose(made(info, inputs, "-1..1"), inputs[0] / 32768)
    assert np.array_equal(made(info, inputs, "as-it-is"), inputs[0])


@pytest.mark.parametrize(
    ("shape", "wanted", "layout"),
    [
        ((4, 4, 3), (1, 4, 4, 3), "nhwc"),
        ((4, 5, 3), (1, 3, 4, 5), "nchw"),
        ((28, 28), (1, 28, 28, 1), "nhwc"),
        ((28, 28, 1), (1, 28, 28), "nhwc"),
        ((28, 28, 1), (1, 784), "nhwc"),
        ((12,), (1, 12), "nhwc"),
    ],
)
def test_axes_are_matched(shape, wanted, layout):
    assert fit_inputs(np.zeros((2, *shape), np.uint8), tensor(shape=wanted)).preprocess.layout == layout


def test_channels_go_first_where_the_network_has_them_first():
    inputs = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    found = made(tensor(shape=(1, 3, 4, 5)), inputs, "0..255")
    assert np.allclose(found, np.moveaxis(inputs[0], -1, 0), atol=1e-4)


def test_other_shapes_and_ranges_are_refused():
    with pytest.raises(SplitError, match="expects inputs of 4x4x3, but the data has 5x4x3"):
        fit_inputs(np.zeros((2, 5, 4, 3), np.uint8), tensor())
    for name, why in (("0..2", "unknown"), ("0..1,grb", "unknown")):
        with pytest.raises(SplitError, match=why):
            input_ways(pictures(), fit_inputs(pictures(), tensor()), tensor(), name)
    grey = np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(SplitError, match="imagenet: does not apply"):
        input_ways(grey, fit_inputs(grey, tensor(shape=(1, 4, 4, 1))), tensor(shape=(1, 4, 4, 1)), "imagenet")


def examples(labels, names=None, count=None):
    labels = None if labels is None else np.asarray(labels)
    size = count or len(labels)
    return Examples(np.zeros((size, 4), np.uint8), labels, np.arange(size), "data.npz", names)


def test_classes_are_named_by_whoever_knows():
    assert reading.name_classes(("a", "b"), ("x", "y"), 2, single=False).names == ("a", "b")
    assert reading.name_classes((), ("x", "y"), 2, single=False).names == ("x", "y")
    assert reading.name_classes((), None, 2, single=False).names == ("class0", "class1")
    assert reading.name_classes(("alexa",), None, 2, single=True).names == ("not alexa", "alexa")


@pytest.mark.parametrize(
    ("given", "of_data", "why"),
    [
        (("a", "b"), None, "--labels: 2 classes, but the network has 3"),
        ((), ("a", "b"), "the data: 2 classes, but the network has 3"),
        (("a", "b", "a"), None, "a name is empty or occurs twice"),
        (("a", "b", ""), None, "a name is empty or occurs twice"),
    ],
)
def test_classes_that_do_not_fit_are_refused(given, of_data, why):
    with pytest.raises(SplitError, match=why):
        reading.name_classes(given, of_data, 3, single=False)


def test_labels_follow_names_that_are_in_another_order():
    classes = reading.Classes(("dog", "cat"))
    found = reading.class_labels(examples([0] * 6 + [1] * 6, names=("cat", "dog")), classes, anyway=False)
    assert found.tolist() == [1] * 6 + [0] * 6


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([0] * 10 + [3] * 10, "label 3, but the network has 3 classes"),
        ([1] * 20, "all inputs belong to one class"),
        ([0] * 20 + [1] * 3 + [2] * 20, "only 3 inputs of class b, but every class in the data needs at least 5"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, why):
    with pytest.raises(SplitError, match=why):
        reading.class_labels(examples(labels), reading.Classes(("a", "b", "c")), anyway=False)


def test_too_few_of_a_class_are_taken_by_force():
    few = examples([0] * 20 + [1] * 3)
    assert reading.class_labels(few, reading.Classes(("a", "b")), anyway=True) is not None


def test_a_class_of_which_there_is_none_is_no_fault():
    assert reading.class_labels(examples([0] * 9 + [1] * 9), reading.Classes(("a", "b", "c")), anyway=False) is not None


def test_few_inputs_and_other_kinds_are_refused():
    with pytest.raises(SplitError, match="7 inputs are too few; give at least 50"):
        reading.check_count(examples([0] * 7))
    other = Examples(np.zeros((9, 5), np.uint8), None, np.arange(9), "more.npz")
    with pytest.raises(SplitError, match=r"more.npz: inputs are uint8 \(5,\), but those of data.npz are uint8 \(4,\)"):
        reading.check_same_kind(other, examples([0] * 9))


def test_answers_no_better_than_guessing_are_refused():
    classes, said = reading.Classes(("a", "b", "c")), []
    labels = np.arange(300) % 3
    with pytest.raises(SplitError, match="answers 'b' to every input"):
        reading.check_answers(np.ones(300, int), labels, classes, anyway=False, say=said.append)
    guesses = np.random.default_rng(0).integers(0, 3, 300)
    with pytest.raises(
        SplitError,
        match=r"no better than guessing .* check that the labels, the range and the inputs match the network",
    ):
        reading.check_answers(guesses, labels, classes, anyway=False, say=said.append)
    with pytest.raises(SplitError, match=r"own order with --labels \('a' in the data is 'b' in the network, 'b' in"):
        reading.check_answers((labels + 1) % 3, labels, classes, anyway=False, say=said.append)
    reading.check_answers(guesses, labels, classes, anyway=True, say=said.append)
    reading.check_answers(guesses, None, classes, anyway=False, say=said.append)
    said.clear()
    reading.check_answers(labels, labels, classes, anyway=False, say=said.append)
    assert said == ["accuracy of the whole network: 100.00 % of 300 inputs"]


def test_golden_inputs_are_like_the_data_but_none_of_it():
    inputs = np.random.default_rng(0).integers(80, 120, (300, 6, 6, 3)).astype(np.uint8)
    golden = writing.golden_inputs(inputs)
    assert (golden.shape, golden.dtype) == ((4, 6, 6, 3), np.uint8)
    assert 60 <= golden.min() <= golden.max() <= 140
    assert not any((one == other).all() for one in golden for other in inputs)
    assert np.array_equal(golden, writing.golden_inputs(inputs))


def test_a_manifest_says_how_floats_are_meant():
    stage = StageSpec(
        segment="s", sha256="", bytes=0, input=TensorSpec(name="i", dtype="float32", shape=(1, 4)),
        logits=TensorSpec(name="l", dtype="float32", shape=(1, 2)), macs=Macs(trunk=1, exit=0),
    )  # fmt: skip
    info = tensor("float32", (1, 4))
    assert draft(info, np.zeros((2, 4), np.float32)).stages[0].input.scale == stage.input.scale == 1.0
