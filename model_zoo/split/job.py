"""The steps of a split, from the file to the bundle. They run in a child process, see `supervision`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distree.bundle.loading import Bundle
from distree.bundle.manifest import DataUse, Manifest, MeasuredFigures, Promise
from distree.bundle.preprocessing import Preprocessor
from distree.tensors import Array
from model_zoo.build.manifest import measured_on
from model_zoo.costs import Costs, costs_of
from model_zoo.data import Examples, LabelledExamples
from model_zoo.errors import SplitError
from model_zoo.evaluation import ExitScores, collect_logits, score_exits, summarise
from model_zoo.split import bundle as writing
from model_zoo.split import data as reading
from model_zoo.split import report
from model_zoo.split.asked import Asked
from model_zoo.split.cuts import Cut
from model_zoo.split.cutting import cut_segment
from model_zoo.split.features import Answers, Probe, class_logits
from model_zoo.split.heads import HeadTraining
from model_zoo.split.input_range import (
    InputWay,
    differing,
    find_way,
    fit_inputs,
    input_ways,
    preprocessor,
    some,
)
from model_zoo.split.learning import Learned, Learner
from model_zoo.split.network import Network, open_network
from model_zoo.split.proof import Link, Proof, measure_tolerances, prove, random_tensors
from model_zoo.split.running import Runner
from model_zoo.split.supervision import Teller, limit_memory, most_memory
from model_zoo.split.thresholds import CRITERION, Row, choose, saved, score, split_costs, table

_RANDOM_INPUTS = 1_000
_TOLERANCE_INPUTS = 1_000
_WIDTH_TRIED = 8

Labels = npt.NDArray[np.int64]


def split_network(asked: Asked, folder: Path, tell: Teller) -> None:
    """Do what was asked: list the cuts, or write a bundle into `folder`, which does not exist yet.

    Writes only into `folder`. Raises SplitError or DataError.
    """
    network = open_network(asked.model, asked.hidden, tell)
    tell.print(report.describe(asked.model.name, network.graph, network.ending))
    if asked.list_only:
        for line in report.list_cuts(network.graph, network.cuts, network.plans, network.paying):
            tell.print(line)
        return
    cuts = network.chosen(asked.stages, asked.after, anyway=asked.force)
    limit_memory(most_memory())
    tell.phase("reading the data", _reading_s(asked.data))
    assert asked.data is not None  # noqa: S101 - the command line checks this
    data = reading.read(asked.data, asked.declared, network.graph.input)
    work = _Work(network, cuts, asked, tell, data)
    work.split(folder)


def _reading_s(path: Path | None) -> float:
    """Return the seconds after which reading a file counts as hanging, at ten megabytes per second."""
    size = path.stat().st_size if path is not None and path.exists() else 0
    return 60.0 + size / 10e6


@dataclass(slots=True)
class _Work:
    """One split in progress."""

    network: Network
    cuts: tuple[Cut, ...]
    asked: Asked
    tell: Teller
    data: Examples

    def split(self, folder: Path) -> None:
        """Find the input's range, train heads, choose thresholds, prove the segments and write the bundle."""
        network, asked, tell = self.network, self.asked, self.tell
        reading.check_count(self.data)
        ending = network.ending
        classes = reading.name_classes(asked.labels, self.data.names, ending.classes, ending.is_single_sigmoid)
        labels = reading.class_labels(self.data, classes, anyway=asked.force)
        for line in report.chosen_cuts(network.graph, self.cuts, network.plans):
            tell.line(line)
        self._prove_random()
        manifest, prepared = self._prepare(classes.names, labels)
        plans = [network.plans[cut.after] for cut in self.cuts]
        training = HeadTraining(seed=asked.seed)
        learner = Learner(Probe(network.graph, ending, plans), prepared, plans, training, tell)
        given = learner.answers(self.data.inputs, "inputs")
        answers = given.logits.argmax(axis=1)
        reading.check_answers(answers, labels, classes, anyway=asked.force, say=tell.line)
        others = self._others()
        learned = learner.learn(self.data.inputs, given, None if others is None else others.inputs)
        scored, costs = score(learned.logits, labels), split_costs(self.cuts, plans, network.graph.macs)
        row = self._choose(scored, costs, labels)
        segments = writing.serve_segments(network, self.cuts, learned.heads)
        tolerances = self._prove_served(segments, prepared, given)
        made = writing.Made(
            segments, tolerances, row.of(asked.rule).thresholds, writing.golden_inputs(self.data.inputs)
        )
        tell.phase("writing the bundle", 300.0)
        draft = writing.write_segments(manifest, made, network, self.cuts, folder)
        self._finish(draft, scored, costs, row, labels, others, learned)

    # ---------------------------------------------------------------- proof

    def _trunk(self) -> list[bytes]:
        """Write the segments without heads, and what comes after the scores as one more, where there is any."""
        graph, logits = self.network.graph, self.network.ending.logits.index
        ends = [graph.inputs[0], *(cut.boundary.index for cut in self.cuts), logits]
        if logits != graph.outputs[0]:
            ends.append(graph.outputs[0])
        return [cut_segment(graph, start, end) for start, end in itertools.pairwise(ends)]

    def _prove_random(self) -> None:
        self.tell.phase(f"comparing the cut network with the whole one on {_RANDOM_INPUTS:,} random inputs", _long(4))
        chain = [Link(content) for content in self._trunk()]
        given = random_tensors(self.network.graph.input, _RANDOM_INPUTS, self.asked.seed)
        self._require(prove(self.network.content, chain, given, self._step(_RANDOM_INPUTS)), "random")

    def _prove_served(self, segments: Sequence[bytes], prepared: Preprocessor, given: Answers) -> tuple[int, ...]:
        """Compare the segments as served with the whole network on all of the data; return their tolerances."""
        graph, count = self.network.graph, len(self.data)
        self.tell.phase(f"comparing the stages with the whole network on all {count:,} inputs", _long(4, count))
        last = cut_segment(graph, self.cuts[-1].boundary.index, graph.outputs[0])
        chain = [*(Link(content) for content in segments[:-1]), Link(last)]
        self._require(prove(self.network.content, chain, self._tensors(prepared), self._step(count)), "given")
        self._check_scores(segments, prepared, given)
        few = min(count, _TOLERANCE_INPUTS)
        self.tell.phase("measuring how much results differ between runtimes", _long(3, few))
        served = [Link(content) for content in segments]
        return measure_tolerances(served, self._tensors(prepared, few), self._step(few))

    def _check_scores(self, segments: Sequence[bytes], prepared: Preprocessor, given: Answers) -> None:
        """Compare the last stage's scores with the network's own, on some inputs: it ends before the probabilities."""
        few = min(len(self.data), _RANDOM_INPUTS)
        runners = [Runner(content) for content in segments]
        for row, tensor in enumerate(self._tensors(prepared, few)):
            flowing = tensor
            for runner in runners:
                flowing = runner(flowing)[0]
            found = flowing.reshape(1, -1)
            if self.network.ending.is_single_sigmoid:
                found = found[:, 1:]
            if not np.array_equal(class_logits(found, self.network.ending)[0], given.logits[row]):
                raise SplitError(
                    f"the last stage and the whole network have different scores on input {row}", "please report this"
                )

    def _tensors(self, prepared: Preprocessor, count: int | None = None) -> Iterable[Array]:
        return (prepared.tensor(one) for one in self.data.inputs[:count])

    def _step(self, count: int) -> Callable[[int], None]:
        return lambda done: self.tell.step(done, count)

    def _require(self, proof: Proof, which: str) -> None:
        self.tell.line(f"{proof.inputs:,} {which} inputs: stages and whole network differ on {proof.mismatches}")
        if proof.mismatches:
            raise SplitError(
                f"the stages differ from the whole network on {proof.mismatches} of {proof.inputs} {which} inputs, "
                "so it cannot be cut there",
                "try other cuts from --list",
            )

    # ---------------------------------------------------------------- inputs

    def _prepare(self, names: tuple[str, ...], labels: Labels | None) -> tuple[Manifest, Preprocessor]:
        """Find out how inputs become tensors; return the draft of the manifest that says so, and the preprocessor."""
        tensor, data = self.network.graph.input, self.data
        fit = fit_inputs(data.inputs, tensor, self.asked.declared)
        draft = writing.manifest_of(self.network, self.asked, names, fit)
        ways = differing(
            input_ways(data.inputs, fit, tensor, self.asked.value_range), draft, data.inputs[:_WIDTH_TRIED]
        )
        self.tell.phase("finding the range of values", _long(len(ways)))
        whole = Runner(self.network.content)
        accuracy = None
        if labels is not None:
            places = some(labels, np.random.default_rng(self.asked.seed))
            single = self.network.ending.is_single_sigmoid

            def accuracy(way: InputWay) -> float:
                prepared = preprocessor(draft, way)
                right = 0
                for place in places.tolist():
                    scores = whole(prepared.tensor(data.inputs[place]))[0].reshape(-1)
                    right += int(_answer(scores, single, self.network) == labels[place])
                return right / len(places)

        way = find_way(ways, accuracy, tensor, self.tell.line)
        prepared = preprocessor(draft, way)
        return replace(draft, preprocess=way.preprocess), prepared

    def _read(self, path: Path) -> Examples:
        return reading.read(path, self.asked.declared, self.network.graph.input)

    def _others(self) -> Examples | None:
        if self.asked.unlabelled is None:
            return None
        self.tell.phase("reading the unlabelled inputs", _reading_s(self.asked.unlabelled))
        found = self._read(self.asked.unlabelled)
        reading.check_same_kind(found, self.data)
        return found

    # ---------------------------------------------------------------- thresholds

    def _choose(self, scored: ExitScores, costs: Costs, labels: Labels | None) -> Row:
        """Print the table and choose thresholds; SplitError if they save nothing."""
        asked, tell = self.asked, self.tell
        tell.phase("choosing thresholds", 600.0)
        for line in report.savings(table(scored, costs), costs, labels is not None):
            tell.print(line)
        row = choose(scored, costs, asked.max_drop)
        if asked.seen:
            tell.print(report.SEEN)
        if len(self.data) < report.FEW_INPUTS:
            tell.print(report.few_inputs(len(self.data)))
        if saved(row.of(asked.rule), costs) <= 0 and not asked.force:
            raise SplitError(
                f"exits save nothing within an accuracy drop of {report.points_text(asked.max_drop)}",
                "allow more with --max-drop, give more inputs, or write the bundle anyway with --force",
            )
        return row

    # ---------------------------------------------------------------- the bundle

    def _finish(
        self,
        draft: Bundle,
        scored: ExitScores,
        costs: Costs,
        row: Row,
        labels: Labels | None,
        others: Examples | None,
        learned: Learned,
    ) -> None:
        asked, data = self.asked, self.data
        use = DataUse(data=data.source, inputs=len(data), labelled=labels is not None, seen=asked.seen)
        # Heads learn the network's answers, never labels.
        heads_from: tuple[DataUse, ...] = () if learned.apart else (replace(use, labelled=False),)
        if others is not None:
            heads_from += (DataUse(data=others.source, inputs=len(others), labelled=False),)
        choice = row.of(asked.rule)
        promise = Promise(
            max_drop=asked.max_drop,
            rule=asked.rule,
            drop=round(choice.drop, 6),
            drop_bound=round(max(choice.drop_bound, choice.drop), 6),
            saved=round(saved(choice, costs), 6),
        )
        measured = None
        if labels is not None:
            evaluation = summarise(scored, costs_of(draft.stages), CRITERION, choice.thresholds)
            how = "on which the heads were not trained" if learned.apart else "each scored by heads not trained on it"
            measured = measured_on(f"{data.source}, {len(data)} inputs, {how}", evaluation)
        tested_on = None
        if asked.test is not None:
            measured, tested_on = self._test(draft, asked.test)
        split_from = writing.origin(self.network, asked, self.cuts, heads_from, use, promise, tested_on)
        writing.finish(draft, measured, split_from)

    def _test(self, draft: Bundle, path: Path) -> tuple[MeasuredFigures, DataUse]:
        """Open the test inputs once, and run them through the bundle as boards would."""
        self.tell.phase("reading the test inputs, once", _reading_s(path))
        test = self._read(path)
        reading.check_same_kind(test, self.data)
        labels = reading.class_labels(test, reading.Classes(draft.labels), anyway=True)
        if labels is None:
            raise SplitError(f"{path}: has no labels, but --test needs them", "add labels, or leave --test out")
        self.tell.phase("measuring on the test inputs", _long(2, len(test)))
        images = LabelledExamples(test.inputs, labels, np.arange(len(test)), test.source)
        scored = score_exits(collect_logits(draft, images), CRITERION)
        costs = costs_of(draft.stages)
        evaluation = summarise(scored, costs, CRITERION, draft.thresholds)
        self.tell.print(report.tested(test.source, evaluation))
        use = DataUse(data=test.source, inputs=len(test), labelled=True)
        return measured_on(f"{test.source}, {len(test)} inputs, opened once", evaluation), use


def _answer(scores: Array, single: bool, network: Network) -> int:
    """Return the class in the whole network's output; for a single probability, whether it is above one half."""
    if not single:
        return int(scores.argmax())
    output = network.graph.output
    value = float(scores[0])
    if output.dtype != "float32":
        value = (value - output.zero_point) * output.scale
    return int(value > 0.5)


def _long(runs: int, inputs: int = _RANDOM_INPUTS) -> float:
    """Return the seconds after which this many runs per input count as hanging: one second each."""
    return 60.0 + runs * inputs
