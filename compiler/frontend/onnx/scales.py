"""Stored scales of quantized ONNX models: finite, and not 0 but of blocks of zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, external_data_helper, numpy_helper

from llmos.runtime.errors import UserError

# Positions among the inputs of an op.
SCALES: Mapping[str, tuple[int, ...]] = {
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul"), (1, 4, 6)),
    **dict.fromkeys(("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax"), (1, 3)),
    "QLinearWhere": (2, 5, 7),
    "QGemm": (1, 4, 7),
    "MatMulNBits": (2,),
}
OF_BLOCKS = ("MatMulNBits",)  # whose scale of a block of zeros is 0


def _positions(node: NodeProto) -> Sequence[int]:
    return range(0, len(node.input), 3) if node.op_type == "QLinearConcat" else SCALES.get(node.op_type, ())


def check_scales(graph: GraphProto) -> None:
    """Check each scale that is stored in a graph or is a Constant, branches and bodies aside.

    Raises UserError that names the node and the scale.
    """
    stored = {each.name: each for each in graph.initializer if not external_data_helper.uses_external_data(each)}
    stored |= {
        node.output[0]: each.t for node in graph.node if node.op_type == "Constant" for each in node.attribute if each.name == "value"
    }
    for node in graph.node:
        for position in _positions(node):
            name = node.input[position] if position < len(node.input) else ""
            if name in stored:
                _check(node, name, stored[name])


def _check(node: NodeProto, name: str, tensor: TensorProto) -> None:
    values = numpy_helper.to_array(tensor).astype(np.float32)
    is_zero = not values.all() and node.op_type not in OF_BLOCKS
    what = "NaN or infinity" if not np.isfinite(values).all() else "0" if is_zero else ""
    if what:
        raise UserError(f"node '{node.name or node.output[0]}' ({node.op_type}) has {what} in its scale '{name}'; quantize the model again")
