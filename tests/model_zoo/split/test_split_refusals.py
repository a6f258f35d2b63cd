"""What cannot be cut is refused in one line that says why, and nothing is written."""

from __future__ import annotations

import numpy as np
import pytest
import whole_networks as whole

from model_zoo.errors import SplitError
from model_zoo.split.graph import read_graph
from model_zoo.split.refusals import check_network
from model_zoo.split.schema import load_schema, read_model

INT16, FLOAT32 = 7, 0


def operator_becomes(name, custom_name=None):
    """Make the second operator one of another kind."""

    def edit(model):
        schema = load_schema()
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.customCode = min(code.builtinCode, 127), custom_name
        model.operatorCodes.append(code)
        model.subgraphs[0].operators[1].opcodeIndex = len(model.operatorCodes) - 1

    return edit


def second_subgraph(model):
    model.subgraphs.append(model.subgraphs[0])


def tensor_named(model, name):
    return next(tensor for tensor in model.subgraphs[0].tensors if tensor.name and tensor.name.startswith(name))


def int16_activations(model):
    tensor_named(model, b"depthwise").type = INT16


def int16_input(model):
    tensor_named(model, b"given").type = INT16


def unknown_width(model):
    tensor_named(model, b"given").shapeSignature = np.asarray([-1, 8, -1, 3], np.int32)


def unknown_batch(model):
    tensor_named(model, b"given").shapeSignature = np.asarray([-1, 8, 8, 3], np.int32)


def batch_of_two(model):
    tensor_named(model, b"given").shape = np.asarray([2, 8, 8, 3], np.int32)


def variable(model):
    tensor_named(model, b"depthwise").isVariable = True


def two_outputs(model):
    outputs = model.subgraphs[0].outputs
    model.subgraphs[0].outputs = np.asarray([outputs[0], outputs[0] - 1], np.int32)


def two_inputs(model):
    inputs = model.subgraphs[0].inputs
    model.subgraphs[0].inputs = np.asarray([inputs[0], 2], np.int32)


def weights_elsewhere(model):
    model.buffers[1].offset, model.buffers[1].size = 1000, 10


def stops_before_the_mean(model):
    main = model.subgraphs[0]
    main.outputs = main.operators[3].outputs


def stops_before_softmax_with_one_value(model):
    main = model.subgraphs[0]
    main.outputs = main.operators[-2].outputs


@pytest.mark.parametrize(
    ("content", "edit", "why"),
    [
        (whole.chain(), operator_becomes("CUSTOM", "edgetpu-custom-op"), "compiled for the Edge TPU"),
        (whole.chain(), operator_becomes("CUSTOM", "ethos-u"), "by Vela into one custom operator; give the file that this compiler was run on"),
        (whole.chain(), operator_becomes("CUSTOM", "FlexErf"), "operator 1, custom operator 'FlexErf': boards run"),
        (whole.chain(), operator_becomes("CUSTOM", "TFLite_Detection_PostProcess"), "a detection model; give a"),
        (whole.chain(), operator_becomes("IF"), "operator 1, IF: control flow"),
        (whole.chain(), operator_becomes("WHILE"), "operator 1, WHILE: control flow"),
        (whole.chain(), operator_becomes("CALL_ONCE"), "operator 1, CALL_ONCE: control flow"),
        (whole.chain(), operator_becomes("READ_VARIABLE"), "READ_VARIABLE: it keeps state"),
        (whole.chain(), operator_becomes("UNIDIRECTIONAL_SEQUENCE_LSTM"), "LSTM: it keeps state"),
        (whole.chain(), operator_becomes("SVDF"), "SVDF: it keeps state"),
        (whole.chain(), operator_becomes("RANDOM_UNIFORM"), "RANDOM_UNIFORM: its output is random"),
        (whole.chain(), operator_becomes("NON_MAX_SUPPRESSION_V5"), "a detection model"),
        (whole.chain(), second_subgraph, "contains 2 networks"),
        (whole.chain(), two_inputs, "has 2 inputs; give a classifier with one input"),
        (whole.chain(), two_outputs, "has 2 outputs; give a classifier with one input"),
        (whole.chain(), int16_activations, "is int16: 16-bit activations cannot be served"),
        (whole.chain(), int16_input, "tensor 'given' is int16"),
        (whole.chain(), unknown_width, "'given' has no fixed shape; convert"),
        (whole.chain(), batch_of_two, "inputs are run one at a time"),
        (whole.chain(), variable, "is a variable; give a network without state"),
        (whole.chain(), weights_elsewhere, "stores its weights outside"),
        (whole.chain(), stops_before_the_mean, "as models for detection, segmentation or reconstruction do"),
        (whole.yes_or_no(), stops_before_softmax_with_one_value, "one value that is not a probability, as a regression does"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_says_why(content, edit, why):
    with pytest.raises(SplitError) as caught:
        check_network(read_graph(read_model(whole.changed(content, edit))))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [whole.chain(), whole.changed(whole.chain(), unknown_batch), whole.yes_or_no()])
def test_what_can_be_cut_is_not_refused(content):
    check_network(read_graph(read_model(content)))


def damaged_tensor_number(model):
    model.subgraphs[0].operators[0].inputs = np.asarray([10_000, 1, 2], np.int32)


def damaged_buffer_number(model):
    model.subgraphs[0].tensors[0].buffer = 10_000


def damaged_code_number(model):
    model.subgraphs[0].operators[0].opcodeIndex = 99


def wrong_order(model):
    model.subgraphs[0].operators.reverse()


def no_operators(model):
    model.subgraphs[0].operators = []


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (damaged_tensor_number, "names tensors that are not in it"),
        (damaged_buffer_number, "a tensor's data is not in the file"),
        (damaged_code_number, "refers to a kind that the file does not list"),
        (wrong_order, "runs before its inputs are computed"),
        (no_operators, "contains no network"),
    ],
)
def test_what_does_not_fit_together_says_so(edit, why):
    with pytest.raises(SplitError, match=why):
        read_graph(read_model(whole.changed(whole.chain(), edit)))


def test_another_file_is_no_network():
    with pytest.raises(SplitError, match=r"not a \.tflite file"):
        read_model(b"PK\x03\x04" + bytes(100))
