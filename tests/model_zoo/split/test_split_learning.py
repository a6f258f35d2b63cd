"""Heads learn what the network answers, and are judged on what they have not seen."""

from __future__ import annotations

import numpy as np
import pytest
import whole_networks as whole

from distree.bundle.manifest import InputSpec, Manifest, Preprocess
from distree.bundle.preprocessing import Preprocessor
from model_zoo.costs import costs_of
from model_zoo.split import bundle as writing
from model_zoo.split.asked import Asked
from model_zoo.split.cuts import find_cuts
from model_zoo.split.ending import find_ending
from model_zoo.split.features import Answers, Probe, together
from model_zoo.split.graph import TensorInfo, read_graph
from model_zoo.split.head_plan import HeadPlan, plan_head
from model_zoo.split.heads import HeadTraining, softmax, train_heads
from model_zoo.split.input_range import InputFit
from model_zoo.split.learning import Learner
from model_zoo.split.network import Network
from model_zoo.split.quantised import served_head
from model_zoo.split.schema import read_model
from model_zoo.split.supervision import Teller
from model_zoo.split.thresholds import choose, folds, margin, saved, score, split_costs
from model_zoo.split.variations import Variation, draw_variations, sources_of

QUICK = HeadTraining(samples=150_000, fewest_passes=10, batch=64)


def boundary(values, dtype="int8"):
    return TensorInfo(0, "", dtype, (1, values), 0.1, 0, is_constant=False, is_variable=False, has_unknown_size=False)


def vector_plan(values, classes, hidden=16, dtype="int8"):
    return HeadPlan(boundary(values, dtype), 1, 1, values, (1, 1), hidden, classes)


def rings(count, seed=0):
    """Points in three rings, which no linear head tells apart, and a network that is quite sure of each."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    radius, angle = 30.0 * (labels + 1) + generator.normal(0, 4, count), generator.uniform(0, 2 * np.pi, count)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return np.rint(points).astype(np.int8), np.eye(3, dtype=np.float32)[labels] * 8.0, labels


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_head_learns_what_the_network_answers(dtype):
    points, logits, _ = rings(1500)
    new, _, truth = rings(500, seed=1)
    kind = np.int8 if dtype == "int8" else np.float32
    plan = vector_plan(2, 3, dtype=dtype)
    (head,) = train_heads([plan], Answers((points.astype(kind),), logits), QUICK, Teller())
    assert (head.logits(new.astype(kind)).argmax(axis=1) == truth).mean() > 0.97
    assert head.hidden.weights.dtype == kind


def test_the_same_seed_gives_the_same_head():
    points, logits, _ = rings(300)
    made = [
        train_heads([vector_plan(2, 3)], Answers((points,), logits), training, Teller())[0]
        for training in (QUICK, QUICK, HeadTraining(samples=150_000, batch=64, seed=2))
    ]
    assert np.array_equal(made[0].hidden.weights, made[1].hidden.weights)
    assert not np.array_equal(made[0].hidden.weights, made[2].hidden.weights)


def test_later_heads_care_for_what_earlier_ones_are_not_sure_of():
    """The first head sees what matters of half of the inputs; the second one has room for half of them only."""
    generator = np.random.default_rng(0)
    easy = generator.random(2000) < 0.7
    labels = generator.integers(0, 2, 2000)
    sign = np.where(labels == 1, 60, -60)
    first = np.where(easy, sign, 0)[:, None].astype(np.int8)
    # One value for both kinds: what it means for the hard ones is the opposite of what it means for the easy ones.
    second = np.where(easy, sign, -sign)[:, None].astype(np.int8)
    answers = Answers((first, second), np.eye(2, dtype=np.float32)[labels] * 6.0)
    plans = [vector_plan(1, 2), vector_plan(1, 2)]
    right = {}
    for least in (1.0, 0.05):
        training = HeadTraining(samples=20_000, fewest_passes=10, least_weight=least)
        heads = train_heads(plans, answers, training, Teller())
        right[least] = (heads[1].logits(second).argmax(axis=1) == labels)[~easy].mean()
    assert right[1.0] < 0.1
    assert right[0.05] > 0.9


def test_quantising_a_head_costs_next_to_nothing():
    points, logits, truth = rings(1500)
    plan = vector_plan(2, 3, dtype="float32")
    (exact,) = train_heads([plan], Answers((points.astype(np.float32) * 0.1,), logits), QUICK, Teller())
    from model_zoo.split.quantised import Weights

    weights = Weights(exact.hidden.weights.T, exact.hidden.bias, exact.classes.weights.T, exact.classes.bias)
    rounded = served_head(vector_plan(2, 3), weights, points)
    ours, theirs = rounded.logits(points), exact.logits(points.astype(np.float32) * 0.1)
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.99
    assert np.abs(softmax(ours.astype(np.float32)) - softmax(theirs.astype(np.float32))).max() < 0.1
    assert (ours.argmax(axis=1) == truth).mean() > 0.97


# ---------------------------------------------------------------- variations


def test_a_variation_mixes_shifts_and_mirrors():
    inputs = np.arange(2 * 20 * 20 * 3, dtype=np.uint8).reshape(2, 20, 20, 3)
    still = Variation((0, 1), 1.0, ((0, 0), (0, 0)), (False, False))
    assert np.array_equal(still.make(inputs), inputs[0])
    mirrored = Variation((0, 1), 1.0, ((0, 0), (0, 0)), (True, False))
    assert np.array_equal(mirrored.make(inputs), inputs[0][:, ::-1])
    down = Variation((0, 1), 1.0, ((2, 0), (0, 0)), (False, False)).make(inputs)
    assert np.array_equal(down[2:], inputs[0][:-2])
    assert np.array_equal(down[0], inputs[0][0])
    mixed = Variation((0, 1), 0.25, ((0, 0), (0, 0)), (False, False)).make(inputs)
    assert mixed.dtype == np.uint8
    assert np.abs(mixed - (0.25 * inputs[0] + 0.75 * inputs[1])).max() <= 0.5


@pytest.mark.parametrize(
    ("shape", "dtype", "shifted", "mirrored"),
    [
        ((32, 32, 3), np.uint8, 2, True),
        ((49, 10, 1), np.int8, 1, False),
        ((400, 6), np.float32, 1, False),
        ((8000,), np.float32, 1, True),
        ((12,), np.float32, 1, False),
    ],
)
def test_only_places_and_times_are_shifted_and_pictures_mirrored(shape, dtype, shifted, mirrored):
    inputs = np.zeros((5, *shape), dtype)
    drawn = draw_variations(inputs, 60, np.random.default_rng(0))
    assert {len(variation.shifts[0]) for variation in drawn} == {shifted}
    moved = any(any(variation.shifts[0]) for variation in drawn)
    assert moved == (shape != (12,))
    assert any(any(variation.mirrored) for variation in drawn) == (len(shape) == 3 and dtype == np.uint8)
    assert sources_of(drawn).shape == (60, 2)
    assert sources_of(drawn).max() == 4


# ---------------------------------------------------------------- folds and thresholds


def test_folds_hold_each_input_once_in_no_order():
    parts = folds(23, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(23))
    assert len(parts) == 5
    assert any(np.diff(part).max() > 1 for part in parts)


def test_without_labels_the_last_exit_is_right():
    generator = np.random.default_rng(0)
    early, late = generator.normal(size=(50, 3)), generator.normal(size=(50, 3))
    scored = score([early, late], None)
    assert scored.correct[:, 1].all()
    assert np.array_equal(scored.correct[:, 0], early.argmax(axis=1) == late.argmax(axis=1))
    assert not score([early, late], np.full(50, 2)).correct[:, 1].all()


def test_the_bound_is_above_the_mean_and_saves_less():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 800)
    late = np.eye(4)[labels] * 4 + generator.normal(size=(800, 4))
    early = np.eye(4)[labels] * 2 + generator.normal(size=(800, 4))
    plan = vector_plan(8, 4)
    graph = read_graph(read_model(whole.chain()))
    cut = find_cuts(graph, find_ending(graph).logits.index).legal[1]
    costs = split_costs([cut], [plan], graph.macs)
    row = choose(score([early, late], labels), costs, 0.02)
    assert row.mean.drop <= 0.02
    assert row.bound.drop_bound <= 0.02
    assert row.bound.drop < row.bound.drop_bound
    assert 0 < saved(row.bound, costs) < saved(row.mean, costs)


def test_the_margin_shrinks_with_the_root_of_the_inputs():
    assert margin(0.04, 400) == pytest.approx(2 * margin(0.04, 1600))
    assert margin(0.04, 2500) == pytest.approx(2.33 * 0.2 / 50)


def test_costs_are_those_that_the_manifest_will_have(tmp_path):
    content = whole.chain()
    graph = read_graph(read_model(content))
    ending = find_ending(graph)
    cuts = find_cuts(graph, ending.logits.index)
    plans = {cut.after: plan_head(cut.boundary, ending.classes, 8, graph.macs) for cut in cuts.legal}
    network = Network(content, "", graph, ending, cuts, plans)
    chosen = (cuts.legal[0], cuts.legal[2])
    of_cuts = [plans[cut.after] for cut in chosen]
    pooled = [np.zeros((4, plan.inputs), np.int8) for plan in of_cuts]
    heads = train_heads(
        of_cuts,
        Answers(tuple(pooled), np.zeros((4, 4), np.float32)),
        HeadTraining(samples=100),
        Teller(),
    )
    segments = writing.serve_segments(network, chosen, heads)
    fit = InputFit(InputSpec(dtype="uint8", shape=(8, 8, 3)), Preprocess(range="0..1", layout="nhwc"))
    draft = writing.manifest_of(network, Asked(model=tmp_path / "n.tflite", name="n"), ("a", "b", "c", "d"), fit)
    made = writing.Made(segments, (2, 2, 2), (0.5, 0.5), np.zeros((2, 8, 8, 3), np.uint8))
    bundle = writing.write_segments(draft, made, network, chosen, tmp_path / "made")
    ours, theirs = split_costs(chosen, of_cuts, graph.macs), costs_of(bundle.stages)
    for name in ("macs", "feature_bytes", "strict", "loose"):
        assert getattr(ours, name) == getattr(theirs, name)


# ---------------------------------------------------------------- learning as a whole


class Recorder:
    """Stands in for training: notes which inputs heads learn from."""

    def __init__(self, monkeypatch):
        self.seen = []
        monkeypatch.setattr("model_zoo.split.learning.train_heads", self.train)

    def train(self, plans, answers, training, tell):
        self.seen.append(answers.logits[:, 0].astype(int))
        return [self] * len(plans)

    def logits(self, pooled):
        return np.zeros((len(pooled), 2))


class Numbered:
    """Stands in for the probe: the answer to an input is its number."""

    def answers(self, tensors, count, tell):
        found = np.asarray([float(tensor.ravel()[0]) for tensor in tensors], np.float32)
        assert len(found) == count
        return Answers((found[:, None],), np.stack([found, found], axis=1))


@pytest.fixture
def learner(monkeypatch):
    monkeypatch.setattr("model_zoo.split.learning.VARIED_TO", 60)
    monkeypatch.setattr("model_zoo.split.learning.MOST_VARIATIONS", 10)
    fit = InputFit(InputSpec(dtype="float32", shape=(1,)), Preprocess(layout="nhwc"))
    manifest: Manifest = writing.manifest_of(
        Network(b"", "", read_graph(read_model(whole.vector())), None, None, {}), Asked(model=None, name="n"), (), fit
    )
    from dataclasses import replace

    stage = replace(manifest.stages[0], input=replace(manifest.stages[0].input, shape=(1, 1)))
    prepared = Preprocessor(replace(manifest, stages=(stage,)))
    return Learner(Numbered(), prepared, [vector_plan(1, 2, dtype="float32")], QUICK, Teller())


def numbers(first, count):
    return np.arange(first, first + count, dtype=np.float32)[:, None]


def test_a_fold_is_scored_by_heads_that_have_seen_nothing_of_it(monkeypatch, learner):
    inputs = numbers(0, 20) * 1000
    recorder = Recorder(monkeypatch)
    given = learner.answers(inputs, "inputs")
    learned = learner.learn(inputs, given, None)
    assert not learned.apart
    *of_folds, of_all = recorder.seen
    held_out = [set(range(0, 20_000, 1000)) - set(seen[: len(seen)].tolist()) for seen in of_folds]
    own = [{value for value in seen.tolist() if value % 1000 == 0} for seen in of_folds]
    for missing, kept in zip(held_out, own, strict=True):
        assert len(missing) == 4
        assert not missing & kept
    assert set().union(*held_out) == set(range(0, 20_000, 1000))
    assert len(of_all) == 60
    # Nothing that was mixed of a held out input is there either: a mix of a and b lies between them.
    assert all(len(seen) < 60 for seen in of_folds)


def test_with_as_many_other_inputs_heads_learn_from_those_alone(monkeypatch, learner):
    recorder = Recorder(monkeypatch)
    inputs, others = numbers(0, 20), numbers(500, 30)
    learned = learner.learn(inputs, learner.answers(inputs, "inputs"), others)
    assert learned.apart
    assert len(recorder.seen) == 1
    assert recorder.seen[0].min() >= 500


def test_fewer_other_inputs_are_learned_from_beside_the_data(monkeypatch, learner):
    recorder = Recorder(monkeypatch)
    inputs, others = numbers(0, 20), numbers(500, 7)
    learned = learner.learn(inputs, learner.answers(inputs, "inputs"), others)
    assert not learned.apart
    for seen in recorder.seen:
        assert set(range(500, 507)) <= set(seen.tolist())


def test_answers_can_be_joined_and_chosen_from():
    one = Answers((np.zeros((3, 2), np.int8),), np.zeros((3, 4), np.float32))
    other = Answers((np.ones((2, 2), np.int8),), np.ones((2, 4), np.float32))
    both = together([one, other])
    assert len(both) == 5
    chosen = both.select(np.asarray([4, 0]))
    assert chosen.pooled[0].tolist() == [[1, 1], [0, 0]]
    assert chosen.logits[:, 0].tolist() == [1.0, 0.0]


def test_a_network_that_gives_no_numbers_is_refused():
    from model_zoo.errors import SplitError

    def spoil(model):
        for buffer in model.buffers:
            if buffer.data is not None and len(buffer.data) == 16:
                buffer.data = np.frombuffer(np.full(4, np.nan, np.float32).tobytes(), np.uint8)

    graph = read_graph(read_model(whole.changed(whole.chain("float32"), spoil)))
    probe = Probe(graph, find_ending(graph), [])
    with pytest.raises(SplitError, match="not finite"):
        probe.answers(iter([np.zeros((1, 8, 8, 3), np.float32)]), 1, Teller())


@pytest.mark.parametrize("bias", [0.0, 3.0, -3.0])
def test_a_head_that_has_learned_nothing_can_be_run(bias):
    """Weights of nought, as of values that are the same everywhere: the bias is what is left, and must stay right."""
    from model_zoo.split.quantised import Weights

    plan = vector_plan(4, 3)
    nothing = Weights(
        np.zeros((4, 16), np.float32), np.zeros(16, np.float32), np.zeros((16, 3), np.float32),
        np.asarray([0.0, bias, -bias], np.float32),
    )  # fmt: skip
    head = served_head(plan, nothing, np.zeros((5, 4), np.int8))
    assert head.logits(np.zeros((2, 4), np.int8))[0] == pytest.approx([0.0, bias, -bias], abs=0.03)
    for layer in (head.hidden, head.classes):
        assert 2.0**-31 < layer.in_scale * layer.weight_scale / layer.out_scale < 2.0**8
