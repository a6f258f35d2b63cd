"""Wide bundles in the zoo: the runtime, evaluation with and without all branches, costs, thresholds, golden vectors."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from distree.bundle.loading import Bundle, load_bundle
from distree.bundle.preprocessing import Preprocessor
from distree.bundle.runtimes import make_runtime
from distree.bundle.runtimes.tflite import TFLiteRuntime
from distree.criteria import make_criterion
from distree.criteria.base import ExitEvidence
from distree.errors import BundleError, ConfigError, RuntimeUnavailableError
from distree.exits_taken import exits_taken
from distree.messages.plan import MaskedThresholds
from distree.thresholds import NEVER
from model_zoo.build.manifest import write_golden, write_manifest, write_parameters
from model_zoo.build.segments import check_boundaries, inspect_branch, inspect_fusion, inspect_segment, missing_sets
from model_zoo.costs import FUSER, fusion_macs
from model_zoo.data import LabelledExamples, write_samples
from model_zoo.errors import DataError, ExportError
from model_zoo.evaluation import (
    Collector,
    class_means,
    collect_logits,
    costs_of,
    score_exits,
    summarise,
    thresholds_in_force,
)
from model_zoo.thresholds import choose_masked, choose_thresholds, masks_of
from model_zoo.verification import check_golden

DATA = Path(__file__).parents[1] / "data"
NAMES = ("tiny-wide", "tiny-mixed")
IMAGES = 120


@pytest.fixture(scope="module", params=NAMES)
def bundle(request) -> Bundle:
    return load_bundle(DATA / request.param)


@pytest.fixture(scope="module")
def wide() -> Bundle:
    return load_bundle(DATA / "tiny-wide")


@pytest.fixture(scope="module")
def mixed() -> Bundle:
    return load_bundle(DATA / "tiny-mixed")


@pytest.fixture(scope="module")
def images() -> LabelledExamples:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    return LabelledExamples(pixels, generator.integers(0, 4, IMAGES), np.arange(IMAGES), "random")


@pytest.fixture(scope="module")
def collectors(images):
    made = {}

    def collector(bundle: Bundle) -> Collector:
        if bundle.name not in made:
            made[bundle.name] = Collector(bundle, images)
        return made[bundle.name]

    return collector


def copied(bundle: Bundle, tmp_path: Path) -> Bundle:
    return load_bundle(shutil.copytree(bundle.path, tmp_path / bundle.name))


# ---------------------------------------------------------------- the runtime


def embeddings_of(bundle: Bundle, image: np.ndarray) -> list[np.ndarray]:
    tensor = Preprocessor(bundle.manifest).tensor(image)
    runtimes = [make_runtime(bundle, (0,), branch=b) for b in range(bundle.branch_counts[0])]
    return [runtime.run(0, tensor).embedding for runtime in runtimes]


def test_a_branch_gives_what_its_segment_gives(wide: Bundle, images) -> None:
    tensor = Preprocessor(wide.manifest).tensor(images.inputs[0])
    output = make_runtime(wide, branch=1).run(0, tensor)
    spec = wide.stages[0].branches[1]
    runner = Interpreter(model_path=str(wide.path / spec.segment)).get_signature_runner()
    expected = runner(input=tensor)
    assert output.logits == []
    assert np.array_equal(output.embedding, expected["embedding"])
    assert np.array_equal(output.features, expected["features"])
    assert output.embedding.shape == spec.embedding.shape


def test_the_last_wide_stage_gives_no_features(wide: Bundle) -> None:
    spec = wide.stages[2].branches[0].input
    output = make_runtime(wide, branch=0).run(2, np.zeros(spec.shape, np.int8))
    assert output.features is None


def test_the_fusion_head_takes_embeddings_by_branch(wide: Bundle, images) -> None:
    first, second = embeddings_of(wide, images.inputs[0])
    runner = Interpreter(model_path=str(wide.path / wide.stages[0].segment)).get_signature_runner()
    logits = runner(embedding0=first, embedding1=second)["logits"][0]
    spec = wide.stages[0].logits
    output = make_runtime(wide, (), fuse=True).fuse(0, [first, second])
    assert output.logits == [(int(q) - spec.zero_point) * spec.scale for q in logits]
    assert output.features is None
    for known, given, branch in zip(output.embeddings, (first, second), wide.stages[0].branches, strict=True):
        embedding = branch.embedding
        assert known == [(int(q) - embedding.zero_point) * embedding.scale for q in given[0]]


def test_a_missing_embedding_is_zeros(mixed: Bundle) -> None:
    runtime = make_runtime(mixed, (), fuse=True)
    generator = np.random.default_rng(1)
    given = [generator.integers(-128, 128, b.embedding.shape).astype(np.int8) for b in mixed.stages[2].branches]
    zeros = np.full_like(given[1], mixed.stages[2].branches[1].embedding.zero_point)
    without = runtime.fuse(2, [given[0], None, given[2]])
    with_zeros = runtime.fuse(2, [given[0], zeros, given[2]])
    assert without.logits == with_zeros.logits
    assert np.array_equal(without.features, with_zeros.features)
    assert without.embeddings[1] is None
    assert with_zeros.embeddings[1] == [0.0] * zeros.size
    assert without.logits != runtime.fuse(2, given).logits
    # Nothing of an earlier call is left in the interpreter.
    assert runtime.fuse(2, [given[0], None, given[2]]).logits == without.logits


def test_as_many_embeddings_as_branches_are_needed(wide: Bundle) -> None:
    runtime = make_runtime(wide, (), fuse=True)
    with pytest.raises(ValueError):
        runtime.fuse(0, [None])


def test_a_wide_stage_without_a_branch_is_refused(wide: Bundle) -> None:
    with pytest.raises(BundleError, match="no branch of stage 1 was named; name one from 0 to 1"):
        make_runtime(wide, (1,))
    with pytest.raises(BundleError, match="stage 1 has no branch 2"):
        make_runtime(wide, (1,), branch=2)


def test_by_default_a_runtime_serves_what_its_branch_can(mixed: Bundle) -> None:
    plain, branch = make_runtime(mixed), make_runtime(mixed, branch=0)
    tensor = np.zeros(mixed.stages[1].input.shape, np.int8)
    assert branch.run(1, tensor).embedding is not None
    assert branch.run(3, np.zeros(mixed.stages[3].input.shape, np.int8)).logits
    with pytest.raises(KeyError):
        plain.run(1, tensor)
    with pytest.raises(KeyError):
        branch.fuse(1, [None, None, None])


def test_a_fusion_head_with_other_inputs_is_refused(mixed: Bundle, tmp_path) -> None:
    bundle = copied(mixed, tmp_path)
    stages = list(bundle.stages)
    stages[1] = dataclasses.replace(stages[1], segment=stages[3].segment, sha256=stages[3].sha256)
    odd = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, stages=tuple(stages)))
    with pytest.raises(BundleError, match=r"stage3.tflite: has no tensor 'embedding0'"):
        make_runtime(odd, (), fuse=True)


# ---------------------------------------------------------------- what was built


def test_the_manifest_says_what_the_segments_say(bundle: Bundle) -> None:
    for stage in bundle.stages:
        branches = tuple(inspect_branch(bundle.path / b.segment, b.macs) for b in stage.branches)
        if not branches:
            assert inspect_segment(bundle.path / stage.segment, stage.macs) == stage
            continue
        found, inputs = inspect_fusion(bundle.path / stage.segment, branches, fusion_macs(stage))
        assert found == stage
        for b, branch in enumerate(branches):
            taken = inputs[f"embedding{b}"]
            assert (taken.scale, taken.zero_point) == (
                pytest.approx(branch.embedding.scale, rel=1e-6),
                branch.embedding.zero_point,
            )


def test_a_segment_of_another_kind_is_refused(wide: Bundle) -> None:
    stage = wide.stages[0]
    with pytest.raises(ExportError, match="export it with one input and an output logits"):
        inspect_segment(wide.path / stage.branches[0].segment, stage.macs)
    with pytest.raises(ExportError, match="export it with one input and an output embedding"):
        inspect_branch(wide.path / stage.segment, stage.macs)
    with pytest.raises(ExportError, match="export it with inputs"):
        inspect_fusion(wide.path / stage.branches[0].segment, stage.branches, 0)


def moved(spec):
    return dataclasses.replace(spec, zero_point=spec.zero_point + 1)


def test_boundaries_that_do_not_meet_are_refused(bundle: Bundle) -> None:
    check_boundaries(bundle.stages)
    first = next(k for k, count in enumerate(bundle.branch_counts) if count)
    stage = bundle.stages[first]
    branches = (stage.branches[0], dataclasses.replace(stage.branches[1], input=moved(stage.branches[1].input)))
    for odd in (
        dataclasses.replace(stage, branches=(*branches, *stage.branches[2:])),
        dataclasses.replace(
            stage,
            branches=(
                dataclasses.replace(stage.branches[0], features=moved(stage.branches[0].features)),
                *stage.branches[1:],
            ),
        ),
    ):
        with pytest.raises(ExportError):
            check_boundaries((*bundle.stages[:first], odd, *bundle.stages[first + 1 :]))


@pytest.mark.parametrize(
    ("branches", "sets"),
    [(2, [(0,), (1,)]), (3, [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]), (5, [(0,), (1,), (2,), (3,), (4,)])],
)
def test_sets_of_missing_branches(branches, sets) -> None:
    assert list(missing_sets(branches)) == sets


def test_masks_leave_every_wide_stage_a_branch(wide, mixed, fashion) -> None:
    assert masks_of(wide) == ((0,), (1,))
    assert len(masks_of(mixed)) == 6
    assert masks_of(fashion) == ()


# ---------------------------------------------------------------- golden vectors and the manifest


def test_golden_vectors_hold_here(bundle: Bundle) -> None:
    report = check_golden(bundle)
    assert report.worst_steps <= report.tolerance


@pytest.mark.parametrize("part", ["stage1_branch1_embedding", "stage1_branch0_features", "stage2_logits"])
def test_outputs_that_are_off_are_caught(bundle: Bundle, tmp_path, part) -> None:
    odd = with_golden(copied(bundle, tmp_path), lambda vectors: vectors | {part: vectors[part] ^ 127})
    with pytest.raises(RuntimeUnavailableError, match="quantisation steps"):
        check_golden(odd)


@pytest.mark.parametrize("part", ["stage1_branch1_embedding", "stage1_branch0_input", "stage2_logits"])
def test_golden_vectors_must_be_complete(bundle: Bundle, tmp_path, part) -> None:
    odd = with_golden(copied(bundle, tmp_path), lambda vectors: {k: v for k, v in vectors.items() if k != part})
    with pytest.raises(BundleError, match=part):
        check_golden(odd)


def with_golden(bundle: Bundle, change) -> Bundle:
    """Change the golden vectors, and the manifest's hash of them."""
    path = bundle.path / "golden.npz"
    with np.load(path) as archive:
        vectors = dict(archive)
    np.savez_compressed(path, **change(vectors))
    golden = dataclasses.replace(bundle.manifest.golden, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, golden=golden))


def test_golden_vectors_of_given_inputs(bundle: Bundle, images, tmp_path) -> None:
    own = copied(bundle, tmp_path)
    golden = write_golden(own, images.inputs[:3])
    assert golden.tolerance == bundle.manifest.golden.tolerance
    with np.load(own.path / "golden.npz") as found, np.load(bundle.path / "golden.npz") as shipped:
        assert set(found) == set(shipped)
        for key in found:
            assert found[key].shape[0] == 3
            assert found[key].dtype == np.int8
    manifest = dataclasses.replace(own.manifest, golden=golden)
    assert check_golden(dataclasses.replace(own, manifest=manifest)).worst_steps == 0


def test_keys_of_golden_vectors_are_those_of_the_contract(mixed: Bundle) -> None:
    with np.load(mixed.path / "golden.npz") as golden:
        keys = set(golden)
        assert np.array_equal(golden["stage1_branch2_features"], golden["stage2_branch2_input"])
        assert np.array_equal(golden["stage0_features"], golden["stage1_branch2_input"])
        assert np.array_equal(golden["stage2_features"], golden["stage3_input"])
    plain = {"stage0_input", "stage0_features", "stage0_logits", "stage3_input", "stage3_logits"}
    first = {f"stage1_branch{b}_{part}" for b in range(3) for part in ("input", "features", "embedding")}
    second = {f"stage2_branch{b}_{part}" for b in range(3) for part in ("input", "embedding")}
    assert keys == plain | first | second | {"stage1_logits", "stage2_logits", "stage2_features"}


def test_a_manifest_written_again_is_the_same(bundle: Bundle, tmp_path) -> None:
    own = copied(bundle, tmp_path)
    write_manifest(bundle.manifest, own.path)
    assert (own.path / "bundle.yaml").read_bytes() == (bundle.path / "bundle.yaml").read_bytes()
    assert load_bundle(own.path).manifest == bundle.manifest


def test_a_manifest_is_compact(bundle: Bundle) -> None:
    text = (bundle.path / "bundle.yaml").read_text()
    assert "    embedding: {name: embedding, dtype: int8, shape: [1, " in text
    assert "  - {missing: [0], thresholds: [" in text
    assert "  parameters: {file: criteria.npz, sha256: " in text


def test_parameters_are_read_as_they_were_written(wide: Bundle, tmp_path) -> None:
    own = copied(wide, tmp_path)
    means = [np.random.default_rng(b).normal(size=(4, 6)) for b in range(2)]
    gate = [np.arange(7.0 + k) for k in range(2)]
    exits = dataclasses.replace(wide.manifest.exits, parameters=write_parameters(own.path, means, gate))
    write_manifest(dataclasses.replace(wide.manifest, exits=exits), own.path)
    found = load_bundle(own.path).criterion_parameters()
    assert np.array_equal(np.array([row[1] for row in found.class_means]), means[1].astype(np.float32))
    assert found.gate == tuple(tuple(weights.tolist()) for weights in gate)


# ---------------------------------------------------------------- evaluation


def serve(bundle: Bundle, runtimes, image, criterion, thresholds, missing) -> tuple[int, int]:
    """What boards do with one input, stage by stage and stopping early: (class, exit)."""
    host, branches = runtimes
    tensor, memory = Preprocessor(bundle.manifest).tensor(image), ()
    features = {}
    for k, stage in enumerate(bundle.stages):
        if stage.branches:
            starts = k == 0 or not bundle.stages[k - 1].branches
            outputs = {
                b: branches[b].run(k, tensor if starts else features[b])
                for b in range(len(stage.branches))
                if b not in missing
            }
            features = {b: output.features for b, output in outputs.items()}
            output = host.fuse(k, [outputs[b].embedding if b in outputs else None for b in range(len(stage.branches))])
        else:
            output = host.run(k, tensor)
        answer = output.logits.index(max(output.logits))
        if k == len(bundle.stages) - 1:
            return answer, k
        evidence = ExitEvidence(logits=output.logits, exit=k, embeddings=output.embeddings, memory=memory)
        score = criterion.score(evidence)
        if score.value >= thresholds[k]:
            return answer, k
        tensor, memory = output.features, score.memory
    raise AssertionError("a last stage always answers")


THRESHOLDS = {"max_softmax": None, "margin": 0.4, "patience": 2.0, "gate": 1.2, "feature_difference": -1.2}


@pytest.mark.parametrize("criterion", THRESHOLDS)
@pytest.mark.parametrize("missing", [(), (1,)])
def test_evaluation_equals_serving_one_by_one(bundle, images, collectors, criterion, missing) -> None:
    parameters = bundle.criterion_parameters()
    given = THRESHOLDS[criterion]
    exits = len(bundle.stages)
    thresholds = thresholds_in_force(bundle, missing) if given is None else (given,) * (exits - 1)
    scored = score_exits(collectors(bundle).collect(missing), criterion, parameters)
    taken = exits_taken(scored.scores, thresholds)
    runtimes = (
        make_runtime(bundle, fuse=True),
        [make_runtime(bundle, branch=b) for b in range(max(bundle.branch_counts))],
    )
    made = make_criterion(criterion, parameters)
    served = [serve(bundle, runtimes, image, made, thresholds, missing) for image in images.inputs]
    assert taken.tolist() == [k for _, k in served]
    assert len(set(taken.tolist())) > 1
    assert scored.classes[np.arange(IMAGES), taken].tolist() == [class_id for class_id, _ in served]
    evaluation = summarise(scored, costs_of(bundle.stages, missing), criterion, thresholds)
    assert evaluation.missing == missing
    right = [class_id == label for (class_id, _), label in zip(served, images.labels, strict=True)]
    assert evaluation.accuracy_at_thresholds == pytest.approx(np.mean(right))


def test_every_exit_is_taken_in_a_fair_share(bundle, collectors) -> None:
    for missing in ((), (0,)):
        scored = score_exits(collectors(bundle).collect(missing), bundle.criterion)
        taken = exits_taken(scored.scores, thresholds_in_force(bundle, missing))
        assert (np.bincount(taken, minlength=len(bundle.stages)) / IMAGES > 0.08).all()


def test_a_missing_branch_changes_wide_exits_and_what_follows_alone(mixed: Bundle, collectors) -> None:
    whole, without = collectors(mixed).collect(), collectors(mixed).collect([1])
    assert np.array_equal(whole.logits[:, 0], without.logits[:, 0])
    for k in (1, 2, 3):
        assert not np.array_equal(whole.logits[:, k], without.logits[:, k])
    assert [len(of_exit) for of_exit in without.embeddings] == [0, 3, 3, 0]
    assert without.embeddings[1][1] is None
    assert np.array_equal(without.embeddings[1][0], whole.embeddings[1][0])


def test_branches_run_once_whatever_is_missing(wide: Bundle, images, monkeypatch) -> None:
    runs = []
    run = TFLiteRuntime.run
    monkeypatch.setattr(TFLiteRuntime, "run", lambda self, *given: runs.append(given[0]) or run(self, *given))
    collector = Collector(wide, images.head(5))
    for missing in ((), (0,), (1,)):
        collector.collect(missing)
    assert len(runs) == 5 * 2 * 3


@pytest.mark.parametrize(
    ("missing", "why"),
    [((0, 1), "has no others"), ((2,), "choose from 0 to 1"), ((-1,), "choose from 0 to 1")],
)
def test_branches_that_cannot_be_missing_are_refused(wide: Bundle, images, missing, why) -> None:
    with pytest.raises(ConfigError, match=why):
        collect_logits(wide, images.head(1), missing=missing)


def test_a_chain_has_no_branch_to_miss(fashion: Bundle, samples) -> None:
    with pytest.raises(ConfigError, match="'fashion' has no wide stage"):
        collect_logits(fashion, samples.head(1), missing=[0])


def test_thresholds_in_force(mixed: Bundle) -> None:
    assert thresholds_in_force(mixed) == mixed.thresholds
    masked = {row.missing: row.thresholds for row in mixed.manifest.exits.masked}
    assert thresholds_in_force(mixed, [2, 0]) == (mixed.thresholds[0], *masked[0, 2][1:])
    unmasked = dataclasses.replace(mixed.manifest, exits=dataclasses.replace(mixed.manifest.exits, masked=()))
    bare = dataclasses.replace(mixed, manifest=unmasked)
    assert thresholds_in_force(bare, [1]) == (mixed.thresholds[0], NEVER, NEVER)


def test_class_means_are_those_of_each_class(wide: Bundle, collectors) -> None:
    collected = collectors(wide).collect()
    means = class_means(collected, 4)
    assert [of_branch.shape for of_branch in means] == [(4, 6), (4, 6)]
    chosen = collected.embeddings[0][1][collected.labels == 2]
    assert means[1][2] == pytest.approx(chosen.mean(axis=0), abs=1e-6)
    with pytest.raises(DataError, match="no image"):
        class_means(collected, 5)


# ---------------------------------------------------------------- costs


def test_macs_of_the_boards_add_up(bundle: Bundle) -> None:
    costs = costs_of(bundle.stages)
    for k in range(len(bundle.stages)):
        assert costs.macs[k] == sum(stage.macs.trunk + stage.macs.exit for stage in bundle.stages[: k + 1])
        assert costs.macs[k] == sum(board.macs[k] for board in costs.boards)
    assert costs.loose == costs.macs[-1]
    assert costs.strict == sum(board.strict for board in costs.boards) < costs.loose


def test_macs_of_a_branch_are_its_own(wide: Bundle) -> None:
    (board,) = [board for board in costs_of(wide.stages).boards if board.name == "branch 1"]
    own = [stage.branches[1].macs for stage in wide.stages]
    assert board.macs == tuple(sum(m.trunk + m.exit for m in own[: k + 1]) for k in range(3))
    assert board.loose == board.macs[-1]
    assert board.strict == sum(m.trunk for m in own) + own[-1].exit


def test_a_fusion_head_that_gives_features_is_no_extra_of_early_exits(mixed: Bundle) -> None:
    (fuser,) = [board for board in costs_of(mixed.stages).boards if board.name == FUSER]
    assert fuser.strict == fusion_macs(mixed.stages[2])
    assert fuser.loose == fusion_macs(mixed.stages[1]) + fusion_macs(mixed.stages[2])


def test_a_missing_branch_computes_and_sends_nothing(bundle: Bundle) -> None:
    whole, without = costs_of(bundle.stages), costs_of(bundle.stages, [0])
    missing = next(board for board in whole.boards if board.name == "branch 0")
    assert [board.name for board in whole.boards if board != missing] == [board.name for board in without.boards]
    assert without.macs == tuple(all_ - own for all_, own in zip(whole.macs, missing.macs, strict=True))
    assert without.feature_bytes[-1] < whole.feature_bytes[-1]
    assert without.traffic.messages[-1] < whole.traffic.messages[-1]


def test_bytes_on_the_wire_of_wide_stages(wide: Bundle) -> None:
    traffic = costs_of(wide.stages).traffic
    assert traffic.input_bytes == (2 * 192,) * 3
    assert traffic.embedding_bytes == (12, 24, 36)
    assert traffic.feature_bytes == (0, 0, 0)
    # At an exit, those that wait are told to stop; at the last nobody waits.
    assert traffic.decisions == (2, 4, 4)
    assert traffic.messages == (2 + 2 + 2, 2 + 4 + 4, 2 + 6 + 4)


def test_bytes_on_the_wire_of_mixed_stages(mixed: Bundle) -> None:
    traffic = costs_of(mixed.stages).traffic
    assert traffic.input_bytes == (0, 0, 0, 0)
    assert traffic.feature_bytes == (0, 3 * 64, 3 * 64, 3 * 64 + 64)
    assert traffic.embedding_bytes == (0, 12, 24, 24)
    assert traffic.decisions == (0, 3, 3, 3)
    # Features to three branches, embeddings, decisions; then features to the last stage, and its answer.
    assert traffic.messages == (0, 3 + 3 + 3, 3 + 6 + 3, 3 + 6 + 3 + 1 + 1)


def test_messages_are_larger_than_their_payloads(bundle: Bundle) -> None:
    traffic = costs_of(bundle.stages).traffic
    payloads = zip(traffic.input_bytes, traffic.feature_bytes, traffic.embedding_bytes, strict=True)
    for k, payload in enumerate(payloads):
        overhead = traffic.message_bytes[k] - sum(payload)
        assert 90 * traffic.messages[k] <= overhead <= 600 * traffic.messages[k]


def test_without_a_codec_sizes_of_messages_are_not_known(wide: Bundle, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "msgpack" else find(name))
    traffic = costs_of(wide.stages).traffic
    assert traffic.message_bytes is None
    assert traffic.messages == (6, 10, 12)


def test_means_are_those_of_the_shares(bundle: Bundle, collectors) -> None:
    costs = costs_of(bundle.stages)
    evaluation = summarise(
        score_exits(collectors(bundle).collect(), "max_softmax"), costs, "max_softmax", bundle.thresholds
    )
    assert evaluation.macs_per_input == pytest.approx(np.dot(evaluation.exit_share, costs.macs))
    assert evaluation.macs_per_input == pytest.approx(sum(board.macs_per_input for board in evaluation.boards))
    computing = [board.macs_per_input for board in evaluation.boards if board.board != FUSER]
    assert evaluation.board_macs_mean == pytest.approx(np.mean(computing))
    assert evaluation.board_macs_max == max(computing)
    traffic = evaluation.traffic
    assert evaluation.feature_bytes_per_input == pytest.approx(traffic.feature_bytes + traffic.embedding_bytes)


# ---------------------------------------------------------------- thresholds


def by_the_last_exit(bundle: Bundle, images: LabelledExamples) -> LabelledExamples:
    labels = collect_logits(bundle, images).logits[:, -1].argmax(axis=1)
    return dataclasses.replace(images, labels=labels)


def test_thresholds_for_each_set_follow_the_rule(mixed: Bundle, images) -> None:
    collector = Collector(mixed, by_the_last_exit(mixed, images))
    thresholds = (0.9, 0.8, 0.7)
    chosen = choose_masked(collector, "max_softmax", thresholds, [(0,), (1, 2)], max_drop=0.3, deviations=0.0)
    assert [row.missing for row in chosen] == [(0,), (1, 2)]
    for row in chosen:
        assert isinstance(row, MaskedThresholds)
        assert row.thresholds[0] == 0.9
        scored = score_exits(collector.collect(row.missing), "max_softmax")
        taken = exits_taken(scored.scores, row.thresholds)
        at_exit = scored.correct[np.arange(IMAGES), taken]
        assert scored.correct[:, -1].mean() - at_exit.mean() <= 0.3 + 1e-9
        free = choose_thresholds(scored, costs_of(mixed.stages, row.missing), 0.3, 0.0)
        fixed = choose_thresholds(scored, costs_of(mixed.stages, row.missing), 0.3, 0.0, {0: 0.9})
        assert fixed.thresholds == row.thresholds
        assert free.macs_per_input <= fixed.macs_per_input


@pytest.mark.parametrize("criterion", ["patience", "feature_difference", "gate", "energy"])
def test_every_criterion_can_be_given_thresholds(bundle: Bundle, images, criterion) -> None:
    collector = Collector(bundle, by_the_last_exit(bundle, images))
    scored = score_exits(collector.collect(), criterion, bundle.criterion_parameters())
    nobody = choose_thresholds(scored, costs_of(bundle.stages), 0.0, 3.0)
    everybody = choose_thresholds(scored, costs_of(bundle.stages), 1.0, 0.0)
    assert all(map(math.isfinite, (*nobody.thresholds, *everybody.thresholds)))
    assert nobody.drop <= 0
    share = exits_taken(scored.scores, everybody.thresholds)
    # At the first exit where the criterion says anything at all.
    first = int(np.argmax(np.isfinite(scored.scores[:, :-1]).any(axis=0)))
    assert (share == first).all()


# ---------------------------------------------------------------- `distree zoo`


@pytest.fixture
def sample_file(images, tmp_path) -> Path:
    write_samples(images, tmp_path / "random.npz")
    return tmp_path / "random.npz"


def test_evaluate_without_branches(zoo, mixed: Bundle, sample_file, tmp_path, capsys) -> None:
    path = tmp_path / "figures.json"
    given = ("--data", sample_file, "--missing", "2,0", "--json", path, "--per-input")
    assert zoo("evaluate", mixed.path, *given) == 0
    document = json.loads(path.read_text())
    assert document["missing"] == [0, 2]
    assert document["thresholds"] == list(thresholds_in_force(mixed, (0, 2)))
    assert [board["board"] for board in document["boards"]] == ["stage 0", "stage 3", "branch 1", "fusion"]
    assert document["traffic"]["embedding_bytes"] > 0
    assert len(document["results"]) == IMAGES
    out = capsys.readouterr().out
    assert "without branches 0, 2" in out
    assert "MMACs per input and board" in out


def test_without_thresholds_for_a_set_only_the_last_exit_is_taken(zoo, wide: Bundle, sample_file, tmp_path) -> None:
    own = copied(wide, tmp_path)
    exits = dataclasses.replace(wide.manifest.exits, masked=())
    write_manifest(dataclasses.replace(wide.manifest, exits=exits), own.path)
    path = tmp_path / "figures.json"
    assert zoo("evaluate", own.path, "--data", sample_file, "--missing", "1", "--json", path) == 0
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert document["thresholds"] == ["never", "never"]
    assert document["exit_share"] == [0.0, 0.0, 1.0]


def test_evaluate_by_a_criterion_with_parameters(zoo, wide: Bundle, sample_file, tmp_path) -> None:
    path = tmp_path / "figures.json"
    given = ("--data", sample_file, "--criterion", "feature_difference", "--thresholds=-1.2,-1.2", "--json", path)
    assert zoo("evaluate", wide.path, *given) == 0
    document = json.loads(path.read_text())
    assert document["criterion"] == "feature_difference"
    assert 0 < document["exit_share"][0] < 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--missing", "0,1"), "has no others"),
        (("--missing", "x"), "not a list of branches"),
        (("--missing", "7"), "choose from 0 to 1"),
        (("--split", "train"), "is not divided"),
    ],
)
def test_faults_are_one_clear_line(zoo, wide: Bundle, sample_file, capsys, arguments, why) -> None:
    assert zoo("evaluate", wide.path, "--data", sample_file, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert why in captured.err


def test_a_criterion_without_its_parameters_is_one_clear_line(zoo, capsys) -> None:
    assert zoo("evaluate", "fashion", "--limit", 1, "--criterion", "gate", "--thresholds", "0,0") == 2
    assert "gate needs" in capsys.readouterr().err


def test_show_and_verify_tell_of_branches(zoo, wide: Bundle, capsys) -> None:
    assert zoo("show", wide.path) == 0
    out = capsys.readouterr().out
    for part in ("branch 1: stage2.branch1.tflite", "embedding 0.00", "without branch 0: at", "decisions"):
        assert part in out
    assert zoo("verify", wide.path) == 0
    assert "9 segments" in capsys.readouterr().out
