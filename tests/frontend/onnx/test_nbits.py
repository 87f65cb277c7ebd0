"""MatMulNBits: onnxruntime's numbers for files of its own quantizer, and weights that stay packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.frontend.onnx import import_onnx
from llmos.runtime.errors import UserError
from tests.codegen.programs import load
from tests.reference import Executor


@dataclass(frozen=True)
class Case:
    """A product of [rows, k] by a weight [k, n]."""

    k: int
    n: int
    bits: int = 4
    block: int = 32
    symmetric: bool = False

    def model(self) -> onnx.ModelProto:
        """What onnxruntime's quantizer makes of the product of floats."""
        weight = np.random.default_rng(self.k).standard_normal((self.k, self.n)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", self.k])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", self.n])],
            [numpy_helper.from_array(weight, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        quantizer = MatMulNBitsQuantizer(model, bits=self.bits, block_size=self.block, is_symmetric=self.symmetric)
        quantizer.process()
        made: onnx.ModelProto = quantizer.model.model
        assert [node.op_type for node in made.graph.node] == ["MatMulNBits"]
        return made

    def input(self, rows: int) -> np.ndarray:
        return np.random.default_rng(rows).standard_normal((rows, self.k)).astype(np.float32)


CASES = (
    Case(128, 48),
    Case(96, 40, block=16, symmetric=True),
    Case(100, 33),  # the last block is shorter
    Case(160, 24, block=128),  # an odd number of blocks in bytes of zero points
    Case(512, 20, block=256),
    Case(128, 40, bits=8),
    Case(70, 17, bits=8, block=64, symmetric=True),
)


def reference(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def merged(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One model with the inputs and outputs of all, in order."""
    whole, *rest = (onnx.compose.add_prefix(model, f"m{number}_") for number, model in enumerate(models))
    for each in rest:
        for part in ("node", "input", "output", "initializer"):
            getattr(whole.graph, part).extend(getattr(each.graph, part))
    return whole


def test_numbers_are_those_of_onnxruntime() -> None:
    models = [case.model() for case in CASES]
    imported = import_onnx(merged(models))
    execute = Executor(imported.module, imported.weights)
    for rows in (1, 3):
        inputs = [case.input(rows) for case in CASES]
        for case, model, x, found in zip(CASES, models, inputs, execute(inputs), strict=True):
            np.testing.assert_allclose(found, reference(model, x), rtol=1e-4, atol=1e-3, err_msg=str(case))


@pytest.mark.parametrize("quant", ["", "w4a8"])
def test_weights_stay_packed(quant: str, tmp_path: Path) -> None:
    case = CASES[0]
    model = case.model()
    onnx.save(model, tmp_path / "m.onnx")
    program = load(llmos.compile(tmp_path / "m.onnx", options=CompileOptions(target="native", quant=quant, repro=None, cache=False)))
    assert program.manifest.kernels[-1].details["label"].startswith("matmul_w4a8" if quant else "matmul_w4")
    assert max(int(np.prod(weight.shape)) for weight in program.manifest.weights) == case.k * case.n // 2
    x = case.input(5)
    want = reference(model, x)
    assert np.abs(np.asarray(program(x)) - want).max() <= (0.02 if quant else 1e-5) * np.abs(want).max()


def with_input(position: int, array: np.ndarray, **attributes: int) -> onnx.ModelProto:
    """A model whose node has another input and attributes."""
    model = CASES[0].model()
    (node,) = model.graph.node
    node.input.extend([""] * (position + 1 - len(node.input)))
    node.input[position] = "other"
    model.graph.initializer.append(numpy_helper.from_array(array, "other"))
    for name, value in attributes.items():
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
    return model


def test_zero_points_of_floats_and_a_bias() -> None:
    rng = np.random.default_rng(0)
    for position, array in ((3, rng.uniform(6, 9, (48, 4)).astype(np.float32)), (5, rng.standard_normal(48).astype(np.float32))):
        model, x = with_input(position, array), CASES[0].input(3)
        imported = import_onnx(model)
        np.testing.assert_allclose(
            Executor(imported.module, imported.weights)([x])[0], reference(model, x), rtol=1e-4, atol=1e-3, err_msg=str(position)
        )


def test_a_scale_that_says_nothing_is_one_line() -> None:
    for bad in (np.nan, np.inf):
        model = CASES[0].model()
        name = model.graph.node[0].input[2]
        [tensor] = [each for each in model.graph.initializer if each.name == name]
        scales = numpy_helper.to_array(tensor).copy()
        scales.reshape(-1)[3] = bad
        tensor.CopyFrom(numpy_helper.from_array(scales, name))
        with pytest.raises(UserError, match=rf"\(MatMulNBits\) has NaN or infinity in its scale '{name}'; quantize the model again$"):
            import_onnx(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: with_input(4, np.arange(128, dtype=np.int32) // 32), "MatMulNBits with g_idx isn't supported"),
        (lambda: with_input(5, np.zeros(48, np.float32), bits=2), "MatMulNBits of 2 bits isn't supported, only of 4 and 8"),
    ],
)
def test_what_is_not_supported_is_one_line(model: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        import_onnx(model())  # type: ignore[operator]
    assert "\n" not in str(error.value)
