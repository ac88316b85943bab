from __future__ import annotations

import json

from deploy.agent.engine_layers import layers_from_inspector, layers_from_log

LOG = """Layers:
Name: shape_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:
Name: cast, LayerType: kgen, Inputs: [ { Name: input, Dimensions: [-1,3,4,4], Strides: [48,16,4,1], Datatype: Float, \
Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: a, Dimensions: [-1,4,4,4], Datatype: \
Half, Format: (NHWC) Channel major format }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: cast]
Name: conv, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [-1,4,4,4], Datatype: Int8, Format: f }, { \
Name: r, Dimensions: [1], Datatype: Half, Format: f }], Constants: [ { Name: w, Dimensions: [1], Datatype: Float, \
Format: f }], Outputs: [ { Name: b, Dimensions: [-1,4], Datatype: Half, Format: f }], TacticName: t, StreamId: 0, \
Metadata: [ONNX Layer: conv]
Name: fill, LayerType: kgen, Inputs: [], Constants: [], Outputs: [ { Name: c, Dimensions: [1], Datatype: Half, \
Format: f }], TacticName: t, StreamId: 0, Metadata:
"""

COUNTS = {
    "num": 4,
    "by_kind": {"correlation": 1, "kgen": 2, "shape_call": 1},
    "by_type": {"fp16": 1, "fp32": 1, "int8": 1, "none": 1},
    "of": {"correlation": {"int8": 1}, "kgen": {"fp16": 1, "fp32": 1}, "shape_call": {"none": 1}},
}


def test_layers_are_counted_by_kind_and_by_the_type_they_read() -> None:
    assert layers_from_log(LOG) == COUNTS


def test_without_the_message_nothing_is_counted() -> None:
    assert layers_from_log("") is None
    assert layers_from_log("Layers:\n") is None


def test_an_inspector_says_the_same_in_the_words_of_each_release() -> None:
    """TensorRT 8 and 10 describe a format in a sentence, newer ones name the type alone."""

    def layer(kind: str, inputs: list[str], outputs: list[str]) -> dict[str, object]:
        tensors = [[{"Name": "x", "Format/Datatype": text} for text in texts] for texts in (inputs, outputs)]
        return {"Name": kind, "LayerType": kind, "Inputs": tensors[0], "Outputs": tensors[1]}

    layers = [
        layer("shape_call", [], []),
        layer("kgen", ["Row major linear FP32"], ["Half"]),
        layer("correlation", ["Thirty-two wide channel vectorized row major Int8 format."], ["Half"]),
        layer("kgen", [], ["Channel major FP16 format where channel % 8 == 0"]),
    ]
    assert layers_from_inspector(json.dumps({"Layers": layers, "Bindings": []})) == COUNTS


def test_an_engine_built_without_detail_says_no_types() -> None:
    assert layers_from_inspector(json.dumps({"Layers": ["conv1 + relu1", "fc"]})) is None
    assert layers_from_inspector(json.dumps({"Layers": []})) is None


def test_an_inspector_with_control_characters_is_read_and_one_that_is_no_json_says_nothing() -> None:
    layers = [{"Name": "conv", "LayerType": "kgen", "Inputs": [{"Format/Datatype": "Half"}], "Metadata": "[A]?[B]"}]
    text = json.dumps({"Layers": layers})
    plain = layers_from_inspector(text)
    assert plain is not None
    assert layers_from_inspector(text.replace("?", "\x1e\x1f")) == plain
    assert layers_from_inspector(text[:-1]) is None
