from __future__ import annotations

import math

import numpy as np
import pytest

from distree.bundle.loading import Bundle
from distree.bundle.preprocessing import Preprocessor
from distree.bundle.runtimes import make_runtime
from distree.criteria import make_criterion
from distree.criteria.base import ExitEvidence
from distree.errors import ConfigError
from distree.exits_taken import exits_taken
from distree.thresholds import NEVER
from model_zoo.data import LabelledExamples
from model_zoo.errors import DataError
from model_zoo.evaluation import ExitLogits, collect_logits, costs_of, score_exits, summarise


@pytest.fixture(scope="module")
def hundred(samples: LabelledExamples) -> LabelledExamples:
    return samples.head(100)


@pytest.fixture(scope="module")
def collected(fashion: Bundle, hundred: LabelledExamples) -> ExitLogits:
    return collect_logits(fashion, hundred)


def serve(bundle: Bundle, image: np.ndarray, criterion: str, thresholds) -> tuple[int, int]:
    """What boards do with one input, stage by stage and stopping early: (class, exit)."""
    runtime, made = make_runtime(bundle), make_criterion(criterion)
    tensor, memory = Preprocessor(bundle.manifest).tensor(image), ()
    for stage in range(len(bundle.stages)):
        output = runtime.run(stage, tensor)
        score = made.score(ExitEvidence(logits=output.logits, memory=memory))
        last = stage == len(bundle.stages) - 1
        if last or score.value >= thresholds[stage]:
            return output.logits.index(max(output.logits)), stage
        tensor, memory = output.features, score.memory
    raise AssertionError("a last stage always answers")


@pytest.mark.parametrize(
    ("criterion", "thresholds"),
    [("max_softmax", None), ("margin", (0.5, 0.5)), ("entropy", (0.7, 0.7)), ("patience", (2, 2))],
)
def test_evaluation_equals_serving_one_by_one(fashion, hundred, collected, criterion, thresholds) -> None:
    thresholds = thresholds or fashion.thresholds
    scored = score_exits(collected, criterion)
    taken = exits_taken(scored.scores, thresholds)
    served = [serve(fashion, image, criterion, thresholds) for image in hundred.inputs]
    assert taken.tolist() == [stage for _, stage in served]
    assert scored.classes[np.arange(100), taken].tolist() == [class_id for class_id, _ in served]
    evaluation = summarise(scored, costs_of(fashion.stages), criterion, thresholds)
    right = [class_id == label for (class_id, _), label in zip(served, hundred.labels, strict=True)]
    assert evaluation.accuracy_at_thresholds == pytest.approx(np.mean(right))


def test_costs_count_heads_on_the_way(fashion: Bundle) -> None:
    macs = [stage.macs for stage in fashion.stages]
    costs = costs_of(fashion.stages)
    assert costs.macs[0] == macs[0].trunk + macs[0].exit
    assert costs.macs[1] == costs.macs[0] + macs[1].trunk + macs[1].exit
    assert costs.macs[2] == costs.loose
    assert costs.strict == costs.loose - macs[0].exit - macs[1].exit
    assert costs.feature_bytes[0] == 0
    assert costs.feature_bytes[1] == math.prod(fashion.stages[0].features.shape)


def test_means_are_those_of_the_shares(fashion: Bundle, collected: ExitLogits) -> None:
    costs = costs_of(fashion.stages)
    evaluation = summarise(score_exits(collected, "max_softmax"), costs, "max_softmax", (0.9, 0.9))
    assert evaluation.macs_per_input == pytest.approx(np.dot(evaluation.exit_share, costs.macs))
    assert evaluation.feature_bytes_per_input == pytest.approx(np.dot(evaluation.exit_share, costs.feature_bytes))


@pytest.mark.parametrize(("thresholds", "exit_"), [((0.0, 0.0), 0), ((NEVER, 0.0), 1), ((NEVER, NEVER), 2)])
def test_ends_of_the_thresholds(fashion: Bundle, collected: ExitLogits, thresholds, exit_: int) -> None:
    evaluation = summarise(score_exits(collected, "max_softmax"), costs_of(fashion.stages), "max_softmax", thresholds)
    assert evaluation.exit_share[exit_] == 1.0
    assert evaluation.accuracy_at_thresholds == evaluation.accuracy[exit_]


@pytest.mark.parametrize("thresholds", [(), (0.5,), (0.5, 0.5, 0.5), (0.5, math.nan)])
def test_wrong_thresholds_are_refused(fashion: Bundle, collected: ExitLogits, thresholds) -> None:
    scored = score_exits(collected, "max_softmax")
    with pytest.raises(ConfigError, match="thresholds"):
        summarise(scored, costs_of(fashion.stages), "max_softmax", thresholds)


def test_equal_logits_go_to_the_lowest_class() -> None:
    collected = ExitLogits(np.array([[[1.0, 2.0, 2.0]]]), np.array([1]))
    assert score_exits(collected, "max_softmax").classes.tolist() == [[1]]


@pytest.mark.parametrize(
    ("images", "labels", "why"),
    [
        (np.zeros((0, 28, 28, 1), np.uint8), [], "no inputs"),
        (np.zeros((1, 27, 28, 1), np.uint8), [0], "takes"),
        (np.zeros((1, 28, 28, 1), np.uint8), [10], "outside 0 to 9"),
        (np.zeros((1, 28, 28, 1), np.uint8), [-1], "outside 0 to 9"),
    ],
)
def test_data_that_does_not_fit_is_refused(fashion: Bundle, images, labels, why: str) -> None:
    odd = LabelledExamples(images, np.array(labels, np.int64), np.arange(len(labels)), "odd")
    with pytest.raises(DataError, match=why):
        collect_logits(fashion, odd)


def test_samples_are_about_as_good_as_the_test_set(fashion: Bundle, samples: LabelledExamples) -> None:
    """A thousand test images: within three standard errors of the manifest's figures."""
    evaluation = summarise(
        score_exits(collect_logits(fashion, samples), fashion.criterion),
        costs_of(fashion.stages),
        fashion.criterion,
        fashion.thresholds,
    )
    for here, measured in zip(evaluation.accuracy, fashion.manifest.measured.accuracy, strict=True):
        assert here == pytest.approx(measured, abs=3 * math.sqrt(measured * (1 - measured) / len(samples)))
