"""What a network is made of, where it can be cut, and which cuts are taken."""

from __future__ import annotations

import numpy as np
import pytest
import whole_networks as whole

from model_zoo.errors import SplitError
from model_zoo.split import report
from model_zoo.split.cuts import choose_cuts, cuts_after, find_cuts, paying_cuts
from model_zoo.split.ending import find_ending
from model_zoo.split.graph import read_graph
from model_zoo.split.head_plan import plan_head
from model_zoo.split.network import open_network
from model_zoo.split.schema import read_model
from model_zoo.split.supervision import Teller


@pytest.fixture(autouse=True)
def no_limits(monkeypatch):
    """These tests run in the process of the tests, whose memory is nobody's to bound."""
    monkeypatch.setattr("model_zoo.split.network.limit_memory", lambda _: None)


def opened(tmp_path, content, hidden=128):
    path = tmp_path / "net.tflite"
    path.write_bytes(content)
    return open_network(path, hidden, Teller())


def test_the_list_is_as_it_always_was(tmp_path):
    network = opened(tmp_path, whole.residual(), hidden=8)
    lines = [report.describe("net.tflite", network.graph, network.ending)]
    lines += report.list_cuts(network.graph, network.cuts, network.plans, network.paying)
    assert "\n".join(lines) == (
        "net.tflite: 11 operators, 0.161 MMACs, input 1x8x8x3 int8, 4 classes, softmax\n"
        "after  operator                MMACs before  boundary                    bytes  radio ms  head %\n"
        "    0  CONV_2D                 0.014    9 %  1x8x8x8 int8                  512      0.08     0.7\n"
        "    3  ADD                     0.088   54 %  1x8x8x8 int8                  512      0.08     0.7\n"
        "    6  ADD                     0.161  100 %  1x8x8x8 int8                  512      0.08     0.7  *\n"
        "    7  AVERAGE_POOL_2D         0.161  100 %  1x1x1x8 int8                    8      0.00     0.1  *\n"
        "    8  RESHAPE                 0.161  100 %  1x8 int8                        8      0.00     0.1  *\n"
        "raw input: 192 values; radio at 50 Mbit/s\n"
        "* saves nothing: the exit head and the hop cost more than the work left after the cut, on a board with 500 MMACs per second\n"
        "4 other points are crossed by more than one tensor, as next to a skip connection"
    )


def test_work_is_what_the_bundle_says_that_was_put_together():
    """The dead exit heads of its first stages do not count."""
    graph = read_graph(read_model(whole.fashion()))
    assert graph.macs == 7_410_176
    assert [operator.index for operator in graph.operators] != list(range(len(graph.operators)))


@pytest.mark.parametrize(
    ("shape", "kernel", "expected"),
    [((1, 8, 8, 3), 3, 8 * 8 * 8 * 3 * 9), ((1, 5, 7, 2), 1, 5 * 7 * 8 * 2)],
)
def test_a_convolution_counts_kernel_times_depth_for_each_value(shape, kernel, expected):
    net = whole.Net("float32", shape)
    content = net.finish(net.softmax(net.dense(net.mean(net.conv(net.input, 8, kernel=kernel)), 4)))
    assert read_graph(read_model(content)).macs == expected + 8 * 4


def test_depthwise_convolutions_see_one_channel_each():
    net = whole.Net("float32", (1, 8, 8, 3))
    content = net.finish(net.softmax(net.dense(net.mean(net.depthwise(net.input)), 4)))
    assert read_graph(read_model(content)).macs == 8 * 8 * 3 * 9 + 3 * 4


def test_a_chain_can_be_cut_everywhere_before_its_scores():
    graph = read_graph(read_model(whole.chain()))
    cuts = find_cuts(graph, find_ending(graph).logits.index)
    assert [cut.after for cut in cuts.legal] == [0, 1, 2, 3, 4, 5]
    assert not cuts.crossed
    assert [cut.macs + cut.left for cut in cuts.legal] == [graph.macs] * 6


def test_what_crosses_beside_a_skip_connection_is_told_with_the_nearest_cuts():
    graph = read_graph(read_model(whole.residual()))
    cuts = find_cuts(graph, find_ending(graph).logits.index)
    with pytest.raises(
        SplitError, match=r"--after 4: 2 tensors cross there .* cut after 3 or after 6, which are nearest$"
    ):
        cuts_after(cuts, [0, 4])
    with pytest.raises(SplitError, match="--after 99: the network has no such point"):
        cuts_after(cuts, [99])
    assert [cut.after for cut in cuts_after(cuts, [3, 0, 3])] == [0, 3]


def test_at_equal_work_the_cut_with_the_fewest_bytes_is_taken():
    net = whole.Net(shape=(1, 32, 32, 3))
    at = net.conv(net.input, 16)
    at = net.conv(at, 16)
    pooled = net.tensor("half", (1, 16, 16, 16), 0.02, -128)
    options = net.editor.options("Pool2DOptions")
    options.padding, options.strideH, options.strideW = whole.VALID, 2, 2
    options.filterHeight = options.filterWidth = 2
    net.editor.add_operator("AVERAGE_POOL_2D", 2, [at], pooled, options, "Pool2DOptions")
    at = net.conv(net.conv(pooled, 32), 32)
    graph = read_graph(read_model(net.finish(net.softmax(net.dense(net.mean(at), 4)))))
    cuts = find_cuts(graph, find_ending(graph).logits.index)
    heads = {cut.after: plan_head(cut.boundary, 4, 16, graph.macs).macs for cut in cuts.legal}
    (chosen,) = choose_cuts(paying_cuts(cuts, heads), heads, 2)
    assert (chosen.after, chosen.boundary.bytes) == (2, 16 * 16 * 16)
    same_work = [cut for cut in cuts.legal if cut.macs == chosen.macs]
    assert {cut.after for cut in same_work} == {1, 2}


def test_the_choice_is_the_best_of_all(tmp_path):
    """Against trying every pair."""
    network = opened(tmp_path, whole.fashion(), hidden=32)
    usable, heads = network.paying, {after: plan.macs for after, plan in network.plans.items()}

    def cost(way):
        total, hop, done, share = 0.0, 0.0, 0, 1.0
        for cut in way:
            total += share * (hop + cut.macs - done + heads[cut.after])
            hop, done, share = cut.hop_macs, cut.macs, cut.left / (cut.macs + cut.left)
        return total + share * (hop + way[-1].left)

    pairs = [(one, other) for one in usable for other in usable if one.macs < other.macs]
    assert cost(network.chosen(3, (), anyway=False)) == pytest.approx(min(map(cost, pairs)))
    assert cost(network.chosen(2, (), anyway=False)) == pytest.approx(min(cost((one,)) for one in usable))


def test_cuts_that_cost_more_than_they_can_save_are_not_taken(tmp_path):
    network = opened(tmp_path, whole.vector())
    assert not network.paying
    with pytest.raises(SplitError, match=r"no cut that saves anything.*--force"):
        network.chosen(None, (), anyway=False)
    assert len(network.chosen(None, (), anyway=True)) == 2
    assert [cut.after for cut in network.chosen(None, (0,), anyway=False)] == [0]


def test_more_stages_than_cuts_are_refused(tmp_path):
    network = opened(tmp_path, whole.residual(), hidden=8)
    with pytest.raises(SplitError, match=r"--stages 4: needs 3 cuts, but only 2 would pay off"):
        network.chosen(4, (), anyway=False)
    with pytest.raises(SplitError, match="--stages: 1 is out of range"):
        network.chosen(1, (), anyway=False)


def test_shapes_are_those_of_a_run_whatever_the_file_says(tmp_path):
    def lie(model):
        for tensor in model.subgraphs[0].tensors:
            if tensor.name and tensor.name.startswith(b"depthwise"):
                tensor.shape = np.asarray([1, 1, 1, 1], np.int32)

    network = opened(tmp_path, whole.changed(whole.chain(), lie))
    assert network.cuts.legal[1].boundary.shape == (1, 8, 8, 8)


@pytest.mark.parametrize(
    ("shape", "window", "grid"),
    [
        ((1, 32, 32, 16), (4, 4), (8, 8)),
        ((1, 25, 5, 64), (5, 5), (5, 1)),
        ((1, 7, 7, 32), (1, 1), (7, 7)),
        ((1, 100, 8), (2, 1), (50, 1)),
        ((1, 64), (1, 1), (1, 1)),
    ],
)
def test_heads_see_a_grid_that_is_not_too_dear(shape, window, grid):
    from model_zoo.split.graph import TensorInfo

    boundary = TensorInfo(0, "", "int8", shape, 0.1, 0, is_constant=False, is_variable=False, has_unknown_size=False)
    plan = plan_head(boundary, 10, 128, network_macs=12_500_000 if shape[-1] != 64 else 2_650_000)
    assert (plan.window, plan.grid) == (window, grid)
    assert plan.macs == np.prod(grid) * shape[-1] * 128 + 128 * 10
