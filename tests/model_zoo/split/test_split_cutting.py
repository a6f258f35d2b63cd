"""Segments give what the whole network gives, byte for byte, and are files as runtimes expect them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import whole_networks as whole

from model_zoo.split.bundle import serve_segments
from model_zoo.split.cuts import find_cuts
from model_zoo.split.cutting import cut_segment
from model_zoo.split.ending import find_ending
from model_zoo.split.graph import read_graph
from model_zoo.split.head_plan import plan_head
from model_zoo.split.network import Network
from model_zoo.split.proof import Link, measure_tolerances, prove
from model_zoo.split.quantised import Weights, served_head
from model_zoo.split.running import Runner
from model_zoo.split.schema import read_model

NETWORKS = {
    "chain": whole.chain(),
    "chain-float32": whole.chain("float32"),
    "residual": whole.residual(),
    "residual-float32": whole.residual("float32"),
    "yes-or-no": whole.yes_or_no(),
    "yes-or-no-float32": whole.yes_or_no("float32"),
    "vector": whole.vector(),
    "fashion": whole.fashion(),
}


def network_of(content, hidden=16):
    graph = read_graph(read_model(content))
    ending = find_ending(graph)
    cuts = find_cuts(graph, ending.logits.index)
    plans = {cut.after: plan_head(cut.boundary, ending.classes, hidden, graph.macs) for cut in cuts.legal}
    return Network(content, "", graph, ending, cuts, plans)


def tensors(graph, count, seed=0):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        if graph.input.dtype == "float32":
            yield generator.normal(size=graph.input.shape).astype(np.float32)
        else:
            yield generator.integers(-128, 128, graph.input.shape).astype(np.int8)


def some_heads(network, cuts, seed=0):
    generator = np.random.default_rng(seed)
    heads = []
    for cut in cuts:
        plan = network.plans[cut.after]
        pooled = generator.integers(-128, 128, (50, plan.inputs)).astype(np.int8)
        if cut.boundary.dtype == "float32":
            pooled = generator.normal(size=(50, plan.inputs)).astype(np.float32)
        layers = [(plan.inputs, plan.hidden), (plan.hidden,), (plan.hidden, plan.classes), (plan.classes,)]
        heads.append(
            served_head(plan, Weights(*(generator.normal(size=of).astype(np.float32) for of in layers)), pooled)
        )
    return heads


@pytest.mark.parametrize("name", NETWORKS)
def test_every_legal_cut_changes_nothing(name):
    network = network_of(NETWORKS[name])
    graph = network.graph
    assert network.cuts.legal
    for cut in network.cuts.legal:
        parts = [(graph.inputs[0], cut.boundary.index), (cut.boundary.index, graph.outputs[0])]
        chain = [Link(cut_segment(graph, *part)) for part in parts]
        proof = prove(NETWORKS[name], chain, tensors(graph, 20))
        assert (proof.inputs, proof.mismatches) == (20, 0), cut.after


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_leave_the_trunk_as_it_is(name):
    network = network_of(NETWORKS[name])
    graph, cuts = network.graph, network.cuts.legal[:2]
    segments = serve_segments(network, cuts, some_heads(network, cuts))
    last = cut_segment(graph, cuts[-1].boundary.index, graph.outputs[0])
    chain = [*(Link(content) for content in segments[:-1]), Link(last)]
    assert prove(NETWORKS[name], chain, tensors(graph, 20)).mismatches == 0
    assert all(2 <= steps <= 30 for steps in measure_tolerances([Link(one) for one in segments], tensors(graph, 20)))


def test_a_segment_that_differs_is_found():
    network = network_of(NETWORKS["chain"])
    graph, cut = network.graph, network.cuts.legal[0]

    def spoil(model):
        model.buffers[-2].data = np.asarray(model.buffers[-2].data) ^ 1

    spoilt = whole.changed(cut_segment(graph, cut.boundary.index, graph.outputs[0]), spoil)
    chain = [Link(cut_segment(graph, graph.inputs[0], cut.boundary.index)), Link(spoilt)]
    assert prove(NETWORKS["chain"], chain, tensors(graph, 20)).mismatches > 0


@pytest.mark.parametrize("name", ["yes-or-no", "yes-or-no-float32"])
def test_one_sigmoid_becomes_two_scores_whose_softmax_it_is(name):
    network = network_of(NETWORKS[name])
    (cut,) = network.cuts.legal[:1]
    first, last = serve_segments(network, [cut], some_heads(network, [cut]))
    runners, probability = (Runner(first), Runner(last)), Runner(NETWORKS[name])
    logits, seen = network.ending.logits, set()
    for tensor in tensors(network.graph, 60):
        no, yes = runners[1](runners[0](tensor)[0])[0][0].tolist()
        zero, scale = (logits.zero_point, logits.scale) if logits.dtype == "int8" else (0, 1.0)
        assert no == zero
        out = network.graph.output
        told = float(probability(tensor)[0].ravel()[0])
        told = told if out.dtype == "float32" else (told - out.zero_point) * out.scale
        assert told == pytest.approx(1 / (1 + np.exp(-(yes - zero) * scale)), abs=2 / 256)
        seen.add(yes)
    assert len(seen) > 5


@pytest.mark.parametrize("name", ["chain", "chain-float32", "fashion"])
def test_heads_reckon_as_the_interpreter_does(name):
    network = network_of(NETWORKS[name])
    cut = network.cuts.legal[1]
    (head,) = some_heads(network, [cut])
    plan = network.plans[cut.after]
    first = serve_segments(network, [cut], [head])[0]
    from model_zoo.split.features import Probe
    from model_zoo.split.supervision import Teller

    given = list(tensors(network.graph, 50))
    pooled = Probe(network.graph, network.ending, [plan]).answers(iter(given), len(given), Teller()).pooled[0]
    runner = Runner(first)
    found = np.concatenate([runner(tensor)[1] for tensor in given]).astype(np.float64)
    scale, zero = (head.classes.out_scale, head.classes.out_zero) if plan.boundary.dtype == "int8" else (1.0, 0)
    # A step of the hidden layer that is rounded the other way can move a score by a step.
    assert np.abs(head.logits(pooled) - (found - zero) * scale).max() <= 2.01 * scale * (
        1 if zero or scale < 1 else 1e-3
    )


def test_a_file_is_aligned_and_always_the_same():
    network = network_of(NETWORKS["chain"])
    ends = [network.graph.inputs[0], *(cut.boundary.index for cut in network.cuts.legal[:2]), network.graph.outputs[0]]
    for start, end in itertools.pairwise(ends):
        content = cut_segment(network.graph, start, end)
        assert content == cut_segment(network.graph, start, end)
        for buffer in read_model(content).buffers:
            if buffer.data is not None and len(buffer.data):
                at = buffer.data.__array_interface__["data"][0] - np.frombuffer(content, np.uint8).ctypes.data
                assert at % 16 == 0, at


def test_boundaries_of_uint8_get_heads_of_int8():
    """As older converters quantised; the head starts by moving the zero point."""

    net = whole.Net()
    pooled = net.tensor("pooled0", (1, 4, 4, 3), net.scales[net.input], -128)
    options = net.editor.options("Pool2DOptions")
    options.padding, options.strideH, options.strideW = whole.VALID, 2, 2
    options.filterHeight = options.filterWidth = 2
    net.editor.add_operator("AVERAGE_POOL_2D", 2, [net.input], pooled, options, "Pool2DOptions")
    moved = net.tensor("pooled1", (1, 2, 2, 3), net.scales[net.input], -128)
    net.editor.add_operator("AVERAGE_POOL_2D", 2, [pooled], moved, options, "Pool2DOptions")
    scores = net.reshape(moved, (1, 12))

    def all_unsigned(model):
        for tensor in model.subgraphs[0].tensors:
            if tensor.type == 9:
                tensor.type = 3
                tensor.quantization.zeroPoint = np.asarray([0], np.int64)

    content = whole.changed(net.finish(scores), all_unsigned)
    network = network_of(content)
    cut = network.cuts.legal[0]
    assert cut.boundary.dtype == "uint8"
    (head,) = some_heads(network, [cut])
    segments = serve_segments(network, [cut], [head])
    generator = np.random.default_rng(0)
    given = [generator.integers(0, 256, (1, 8, 8, 3)).astype(np.uint8) for _ in range(20)]
    assert prove(content, [Link(one) for one in segments], iter(given)).mismatches == 0
    features, logits = Runner(segments[0])(given[0])
    assert (features.dtype, logits.dtype) == (np.uint8, np.int8)
