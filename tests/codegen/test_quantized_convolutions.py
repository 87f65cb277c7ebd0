"""Quantized convolutions of ONNX files run in integers: exact sums from every variant of the kernels, whatever the windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import llmos
from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.frontend.onnx import import_onnx
from llmos.compiler.ir.weights import Weight
from llmos.runtime.artifact.manifest import WeightSpec
from llmos.runtime.program import Program

from .programs import V3, V4, options, runnable

TARGETS = ("x86-64-v4-vnni", V3, *(pytest.param(each, marks=pytest.mark.slow) for each in ("x86-64-v4-amx", V4, "x86-64-v3-vnni")))
Array = np.ndarray


@dataclass(frozen=True)
class Conv:
    """One QLinearConv of x [batch, c, h, w] to [batch, n, ...].

    in_integers: whether bytes are multiplied by a packed weight. Convolutions in groups are summed along channels instead. So is one
    with nothing around it whose channels aren't worth being moved innermost (channels-last).
    """

    c: int
    n: int
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    group: int = 1
    left: type[np.integer] = np.uint8
    right: type[np.integer] = np.int8
    zeros: tuple[int, int, int] = (3, 0, 7)  # of x, w and y
    per_channel: bool = True
    image: tuple[int, int] = (9, 11)
    in_integers: bool = True

    def operands(self, number: int) -> dict[str, Array]:
        rng = np.random.default_rng(number)
        ranges = {np.uint8: (0, 256), np.int8: (-128, 128)}
        w = rng.integers(*ranges[self.right], (self.n, self.c // self.group, *self.kernel)).astype(self.right)
        scales = rng.random(self.n if self.per_channel else 1).astype(np.float32) * 0.01 + 0.001
        bias = rng.integers(-2000, 2000, self.n).astype(np.int32)
        zx, zw, zy = self.zeros
        parts = {
            "sx": np.float32(0.05), "zx": self.left(zx), "w": w, "sw": scales if self.per_channel else scales[0],
            "zw": np.full(self.n, zw, self.right) if self.per_channel else self.right(zw),
            "sy": np.float32(w.size / self.n * 0.02), "zy": self.left(zy), "bias": bias,
        }  # fmt: skip
        return {f"{name}{number}": np.asarray(value) for name, value in parts.items()}

    def node(self, number: int) -> onnx.NodeProto:
        names = [f"{each}{number}" for each in ("x", "sx", "zx", "w", "sw", "zw", "sy", "zy", "bias")]
        windows = {"strides": self.strides, "dilations": self.dilations, "pads": self.pads, "group": self.group}
        return helper.make_node("QLinearConv", names, [f"y{number}"], **windows)

    def expected(self, x: Array, number: int) -> Array:
        """In exact integers, then scaled in float32 as onnxruntime does."""
        o = {name.rstrip("0123456789"): each for name, each in self.operands(number).items()}
        centered = np.pad(x.astype(np.int64) - int(o["zx"]), [(0, 0), (0, 0), (self.pads[0], self.pads[2]), (self.pads[1], self.pads[3])])
        w = o["w"].astype(np.int64) - o["zw"].astype(np.int64).reshape(-1, 1, 1, 1)
        sums = _convolved(centered, w, self) + o["bias"].reshape(1, -1, 1, 1)
        factor = (o["sx"] * o["sw"] / o["sy"]).astype(np.float32).reshape(1, -1, 1, 1)
        info = np.iinfo(self.left)
        y = np.rint(sums.astype(np.float32) * factor) + np.float32(o["zy"])
        made: Array = np.clip(y, info.min, info.max).astype(self.left)
        return made


def _convolved(x: Array, w: Array, conv: Conv) -> Array:
    (sh, sw), (dh, dw), (kh, kw) = conv.strides, conv.dilations, conv.kernel
    height, width = (x.shape[2] - (kh - 1) * dh - 1) // sh + 1, (x.shape[3] - (kw - 1) * dw - 1) // sw + 1
    of_group, filters = conv.c // conv.group, conv.n // conv.group
    total = np.zeros((x.shape[0], conv.n, height, width), np.int64)
    for u, v in np.ndindex(kh, kw):
        part = x[:, :, u * dh : u * dh + (height - 1) * sh + 1 : sh, v * dw : v * dw + (width - 1) * sw + 1 : sw]
        for g in range(conv.group):
            channels, out = slice(g * of_group, (g + 1) * of_group), slice(g * filters, (g + 1) * filters)
            total[:, out] += np.einsum("bchw,nc->bnhw", part[:, channels], w[out, :, u, v])
    return total


U8, S8 = np.uint8, np.int8
CONVS = (
    Conv(1, 8, in_integers=False),
    Conv(3, 24, strides=(2, 2), pads=(1, 1, 1, 1), zeros=(114, 0, 3)),
    Conv(4, 33, pads=(1, 1, 1, 1), left=S8, zeros=(-5, 0, 9), in_integers=False),
    Conv(8, 16, kernel=(1, 1), in_integers=False),
    Conv(20, 40, kernel=(1, 1), strides=(2, 2), per_channel=False, in_integers=False),
    Conv(65, 50, kernel=(1, 1), zeros=(200, 0, 0), in_integers=False),
    Conv(16, 48, kernel=(3, 2), dilations=(2, 3), pads=(1, 0, 2, 3)),
    Conv(12, 64, kernel=(5, 5), strides=(2, 1), pads=(2, 2, 2, 2), zeros=(128, 0, 128)),
    Conv(32, 17, pads=(0, 1, 2, 0), left=S8, zeros=(7, 0, -8), per_channel=False),
    Conv(8, 24, kernel=(4, 4), right=U8, zeros=(11, 120, 5), pads=(1, 2, 1, 2)),
    Conv(16, 32, pads=(1, 1, 1, 1), left=S8, right=U8, zeros=(-128, 3, 0)),
    Conv(6, 20, pads=(1, 1, 1, 1), zeros=(9, -7, 5)),
    Conv(64, 64, pads=(1, 1, 1, 1), image=(5, 4), zeros=(255, 0, 1)),
    Conv(20, 20, group=20, pads=(1, 1, 1, 1), zeros=(77, 0, 5), in_integers=False),
    Conv(24, 24, group=24, kernel=(5, 5), strides=(2, 2), pads=(2, 2, 2, 2), left=S8, zeros=(-3, 0, 5), in_integers=False),
    Conv(16, 32, group=4, pads=(1, 1, 1, 1), in_integers=False),
    Conv(9, 9, group=9, kernel=(7, 7), pads=(3, 3, 3, 3), zeros=(200, 0, 5), in_integers=False),
    Conv(128, 16, group=2, pads=(1, 1, 1, 1), zeros=(9, 0, 5), image=(5, 4), in_integers=False),  # sums in int32
)


def model_of(convs: Sequence[Conv]) -> onnx.ModelProto:
    """One model of many convolutions, each of an input of its own; batches of any size."""
    kinds = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}
    inputs, outputs, tensors = [], [], []
    for number, conv in enumerate(convs):
        inputs.append(helper.make_tensor_value_info(f"x{number}", kinds[conv.left], ["batch", conv.c, *conv.image]))
        outputs.append(helper.make_tensor_value_info(f"y{number}", kinds[conv.left], ["batch", conv.n, f"h{number}", f"w{number}"]))
        tensors += [numpy_helper.from_array(array, name) for name, array in conv.operands(number).items()]
    graph = helper.make_graph([conv.node(number) for number, conv in enumerate(convs)], "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def compiled(convs: Sequence[Conv], target: str, folder: Path) -> Program:
    onnx.save(model_of(convs), folder / "m.onnx")
    llmos.compile(folder / "m.onnx", options=options(runnable(target))).save(folder / "m.llmos")
    return llmos.load(folder / "m.llmos", poison_arena=True)


def expect_exact(convs: Sequence[Conv], program: Program, batch: int) -> None:
    rng = np.random.default_rng(batch)
    inputs = []
    for conv in convs:
        info = np.iinfo(conv.left)
        inputs.append(rng.integers(info.min, info.max + 1, (batch, conv.c, *conv.image)).astype(conv.left))
    made = program(*inputs)
    made = list(made.values()) if isinstance(made, dict) else list(made) if isinstance(made, (tuple, list)) else [made]
    for number, (conv, x, y) in enumerate(zip(convs, inputs, made, strict=True)):
        np.testing.assert_array_equal(np.asarray(y), conv.expected(x, number), err_msg=str(conv))


# Each convolution on one of two processors; all on all among the slow tests.
HALVES = [
    ("x86-64-v4-vnni", CONVS[::2]),
    (V3, CONVS[1::2]),
    *(pytest.param(target, CONVS, marks=pytest.mark.slow) for target in ("x86-64-v4-vnni", V3, "x86-64-v4-amx", V4, "x86-64-v3-vnni")),
]


@pytest.mark.parametrize(("target", "convs"), HALVES)
def test_every_window_gives_the_exact_sum(target: str, convs: Sequence[Conv], tmp_path: Path) -> None:
    program = compiled(convs, target, tmp_path)
    for batch in (1, 3):
        expect_exact(convs, program, batch)


@pytest.mark.parametrize("target", TARGETS)
def test_stores_of_one_lane_leave_the_next_row_alone(target: str, tmp_path: Path) -> None:
    """17 channels: the last vector has one, and the pixel behind it may be another thread's."""
    conv = Conv(32, 17, left=S8)
    program = compiled([conv], target, tmp_path)
    for _ in range(20):
        expect_exact([conv], program, 3)


def test_each_convolution_has_the_kernel_that_it_should() -> None:
    backend, chosen = CpuBackend(), options(V4)
    for conv in CONVS:
        record = run_passes(import_onnx(model_of([conv])), chosen, backend).record
        kinds = {kernel.kind for kernel in record.kernels}
        assert kinds <= {"contraction", "elementwise"}, conv
        assert _multiplies_bytes(record.weights.values()) == conv.in_integers, conv


def _multiplies_bytes(weights: Iterable[Weight | WeightSpec]) -> bool:
    """Whether a weight is packed in words of bytes, [n/w][k/4][w][4]."""
    return any(str(each.dtype) in ("int8", "uint8") and tuple(each.shape)[3:] == (4,) for each in weights)


CHAIN = (  # 1x1, depthwise and strided ones among others, as in a network: channels lie innermost all along
    Conv(3, 24, strides=(2, 2), pads=(1, 1, 1, 1), zeros=(114, 0, 0)),
    Conv(24, 40, kernel=(1, 1), zeros=(0, 0, 12)),
    Conv(40, 40, group=40, pads=(1, 1, 1, 1), strides=(2, 2), zeros=(12, 0, 5)),
    Conv(40, 58, kernel=(1, 1), strides=(2, 2), zeros=(5, 0, 0)),
    Conv(58, 33, pads=(1, 1, 1, 1), zeros=(0, 0, 9)),
)


@pytest.mark.sample(0)
@pytest.mark.parametrize("target", TARGETS)
def test_a_chain_has_the_bits_of_onnxruntime(target: str, tmp_path: Path) -> None:
    """Pixels go from one to the next in bytes, through a pool, too."""
    size, tensors, nodes = (37, 41), [], []
    for number, conv in enumerate(CHAIN):
        tensors += [numpy_helper.from_array(array, name) for name, array in conv.operands(number).items()]
        node = conv.node(number)
        node.input[0] = f"pooled{number - 1}" if number == 1 else f"y{number - 1}" if number else "x"
        nodes.append(node)
        if number == 0:
            nodes.append(helper.make_node("MaxPool", ["y0"], ["pooled0"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.UINT8, ["n", c, *hw]) for name, c, hw in (("x", 3, size), ("y4", 33, "hw")))
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    llmos.compile(tmp_path / "m.onnx", options=options(runnable(target))).save(tmp_path / "m.llmos")
    program = llmos.load(tmp_path / "m.llmos", poison_arena=True)
    assert "fallback" not in {kernel.kind for kernel in program.manifest.kernels}
    assert _multiplies_bytes(program.manifest.weights)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 2):
        image = np.random.default_rng(batch).integers(0, 256, (batch, 3, *size), np.uint8)
        np.testing.assert_array_equal(np.asarray(program(image)), session.run(None, {"x": image})[0])


@pytest.mark.parametrize("c", [8, 64])  # sums that float32 holds, and more
def test_conv_integer(c: int, tmp_path: Path) -> None:
    conv = Conv(c, 32, pads=(1, 1, 1, 1), zeros=(250, 0, 0))
    tensors = [numpy_helper.from_array(array, name) for name, array in conv.operands(0).items() if name in ("w0", "zx0")]
    node = helper.make_node("ConvInteger", ["x", "w0", "zx0"], ["y"], pads=conv.pads)
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", c, 9, 11])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, ["n", 32, 9, 11])
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    llmos.compile(tmp_path / "m.onnx", options=options(runnable(V3))).save(tmp_path / "m.llmos")
    program = llmos.load(tmp_path / "m.llmos", poison_arena=True)
    assert _multiplies_bytes(program.manifest.weights)
    image = np.random.default_rng(0).integers(0, 256, (2, c, 9, 11), np.uint8)
    centered = np.pad(image.astype(np.int64) - 250, [(0, 0), (0, 0), (1, 1), (1, 1)])
    np.testing.assert_array_equal(np.asarray(program(image)), _convolved(centered, conv.operands(0)["w0"].astype(np.int64), conv))
