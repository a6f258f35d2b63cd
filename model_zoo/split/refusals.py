"""Why a network cannot be cut into stages with exits, in one line that says what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from distree.errors import Problem
from model_zoo.errors import SplitError
from model_zoo.split.graph import Graph, OperatorInfo

INPUT_DTYPES = ("uint8", "int8", "float32")
BOUNDARY_DTYPES = ("int8", "uint8", "float32")
SUPPORTED = "give a classifier with one input and one vector of scores, one score per class"

_CONTROL_FLOW = {"IF", "WHILE", "CALL", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_CASE", "STABLEHLO_COMPOSITE"}
_STATE = {
    "READ_VARIABLE", "ASSIGN_VARIABLE", "VAR_HANDLE", "LSTM", "RNN", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN", "HASHTABLE",
    "HASHTABLE_FIND", "HASHTABLE_IMPORT", "HASHTABLE_SIZE",
}  # fmt: skip
_CHANCE = {"RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "MULTINOMIAL", "STABLEHLO_RNG_BIT_GENERATOR"}
_DETECTION = {"NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5"}
_COMPILED_FOR = {"edgetpu-custom-op": "the Edge TPU", "ethos-u": "an Ethos-U by Vela"}


def check_network(graph: Graph) -> None:
    """Raise SplitError, with the first reason, for a network that cannot be cut or is not a classifier."""
    for reason in _reasons(graph):
        raise SplitError(*reason)


def _reasons(graph: Graph) -> Iterator[Problem]:
    for operator in graph.operators:
        yield from _of_operator(operator)
    if graph.subgraphs > 1:
        yield Problem(
            f"contains {graph.subgraphs} networks, but only one can be cut at a time", "convert it with one signature"
        )
    yield from _of_ends(graph)
    yield from _of_tensors(graph)
    yield from _of_output(graph)


def _of_operator(operator: OperatorInfo) -> Iterator[Problem]:
    where = f"operator {operator.index}, {operator.name}"
    if operator.name == "CUSTOM":
        yield _custom(operator)
    elif operator.name in _CONTROL_FLOW:
        yield Problem(
            f"{where}: control flow runs another part of the file, which cannot be cut",
            "convert the network without it",
        )
    elif operator.name in _STATE:
        yield Problem(
            f"{where}: it keeps state from one input to the next, but stages on several boards see inputs out of order",
            "give a network without state",
        )
    elif operator.name in _CHANCE:
        yield Problem(
            f"{where}: its output is random, so stages cannot be compared with the whole network",
            "convert the network without it",
        )
    elif operator.name in _DETECTION:
        yield Problem(f"{where}: this is a detection model", SUPPORTED)


def _custom(operator: OperatorInfo) -> Problem:
    name = operator.custom_name
    for known, target in _COMPILED_FOR.items():
        if name == known:
            return Problem(
                f"was compiled for {target} into one custom operator", "give the file that this compiler was run on"
            )
    if "Detection_PostProcess" in name:
        return Problem(f"operator {operator.index}, {name}: this is a detection model", SUPPORTED)
    return Problem(
        f"operator {operator.index}, custom operator {name!r}: boards run only built-in operators",
        "convert the network without it",
    )


def _of_ends(graph: Graph) -> Iterator[Problem]:
    for count, what in ((len(graph.inputs), "inputs"), (len(graph.outputs), "outputs")):
        if count != 1:
            yield Problem(f"has {count} {what}", SUPPORTED)
    if graph.input.dtype == "int16" or graph.output.dtype == "int16":
        yield _int16(graph.input.name if graph.input.dtype == "int16" else graph.output.name)
    if graph.input.dtype not in INPUT_DTYPES:
        yield Problem(f"expects {graph.input.dtype} inputs", f"convert it to one of {', '.join(INPUT_DTYPES)}")
    if graph.outputs[0] not in graph.live():
        yield Problem("has an output that does not depend on its input", "convert it again")


def _int16(name: str) -> Problem:
    return Problem(
        f"tensor {name!r} is int16: 16-bit activations cannot be served", "quantise to int8, or convert to float32"
    )


def _of_tensors(graph: Graph) -> Iterator[Problem]:
    live = graph.live()
    for tensor in graph.tensors:
        if tensor.is_variable:
            yield Problem(f"tensor {tensor.name!r} is a variable", "give a network without state")
        if tensor.index not in live:
            continue
        if tensor.dtype == "int16":
            yield _int16(tensor.name)
        if tensor.dtype not in ("bool", "int32", "int64") and tensor.has_unknown_size:
            yield Problem(f"tensor {tensor.name!r} has no fixed shape", "convert the network with a fixed input shape")
        if any(size < 1 for size in tensor.shape):
            yield Problem(
                f"tensor {tensor.name!r} has shape {tensor.shape}, which is not fixed",
                "convert it with a fixed input shape",
            )
    for buffer in graph.model.buffers or ():
        if buffer.offset > 1:
            yield Problem("stores its weights outside the flatbuffer, as files above 2 GB do", "give a smaller network")
    if not graph.input.shape or graph.input.shape[0] != 1:
        yield Problem(
            f"expects inputs of shape {graph.input.shape}, but inputs are run one at a time",
            "convert it with a first axis (batch size) of 1",
        )


def _of_output(graph: Graph) -> Iterator[Problem]:
    output = graph.output
    if output.dtype not in BOUNDARY_DTYPES:
        yield Problem(f"outputs {output.dtype} values", SUPPORTED)
    if output.values != max(output.shape, default=1):
        yield Problem(f"outputs {output}, as models for detection, segmentation or reconstruction do", SUPPORTED)
    if output.values == 1 and graph.operators[-1].name != "LOGISTIC":
        yield Problem(
            "outputs one value that is not a probability, as a regression does", f"{SUPPORTED}, or a single sigmoid"
        )
