"""Sizes that data decides: every op that has them, chained with others, at counts of none, one, some and all, in their exact shapes.

A program holds several ops, so that a compile serves all of them. `LLMOS_DATA_SIZES` says how many random programs are tried.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import llmos
from llmos.compiler.devtools.bench.work import total_flops
from llmos.runtime.engine import load_model
from llmos.runtime.engine.model import Batching
from llmos.runtime.errors import InputError, UnsupportedError
from llmos.runtime.native.binding import core
from llmos.runtime.program import Program
from llmos.runtime.server.oip import InferRequest, infer_reply

NUM_PROGRAMS = int(os.environ.get("LLMOS_DATA_SIZES", "3"))
OPS_OF_A_PROGRAM = 5
ROWS = torch.export.Dim("rows", min=1, max=64)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)


def limited(x: Tensor, most: int = 400) -> Tensor:
    torch._check(x.shape[0] <= most)
    return x


def rows_of(y: Tensor) -> Tensor:
    return y.flatten(1) if y.dim() > 1 else y[:, None]


# Of x [rows, 3] or [rows, 2, 3], a mask [rows] and counts [rows] of 0 to 4.
OPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "nonzero": lambda x, mask, counts: x.nonzero(),
    "argwhere": lambda x, mask, counts: torch.argwhere(mask),
    "nonzero_tuple": lambda x, mask, counts: torch.nonzero(x, as_tuple=True)[1],
    "where": lambda x, mask, counts: torch.where(mask)[0],
    "masked_select": lambda x, mask, counts: torch.masked_select(x, x != 0),
    "masked_select_broadcast": lambda x, mask, counts: torch.masked_select(x, mask.reshape(-1, *[1] * (x.dim() - 1))),
    "mask": lambda x, mask, counts: x[mask],
    "mask_of_all": lambda x, mask, counts: x[x > 0],
    "mask_of_last": lambda x, mask, counts: x[..., (counts[:1] + torch.tensor([0, 1, 2])) % 2 == 0].movedim(-1, 0),
    "unique": lambda x, mask, counts: torch.unique(x),
    "unique_inverse": lambda x, mask, counts: torch.unique(x, return_inverse=True)[1].reshape(-1),
    "unique_counts": lambda x, mask, counts: torch.unique(counts, return_counts=True)[1],
    "unique_rows": lambda x, mask, counts: torch.unique(x, dim=0),
    "unique_columns": lambda x, mask, counts: torch.unique(x, dim=-1).movedim(-1, 0),
    "unique_consecutive": lambda x, mask, counts: torch.unique_consecutive(counts),
    "unique_consecutive_rows": lambda x, mask, counts: torch.unique_consecutive(x, dim=0),
    "repeat_interleave": lambda x, mask, counts: limited(torch.repeat_interleave(x, counts, dim=0)),
    "bincount": lambda x, mask, counts: limited(torch.bincount(counts)),
    "bincount_least": lambda x, mask, counts: torch.bincount(counts.to(torch.uint8), minlength=7),
    "arange": lambda x, mask, counts: limited(torch.arange(counts.sum().item())),  # type: ignore[arg-type]
    "slice": lambda x, mask, counts: x[: counts[0].item()],
    "slice_from_the_end": lambda x, mask, counts: x[-counts[0].item() - 1 :],
}
# What is done behind: of a tensor whose first dimension data decides.
CHAINS: dict[str, Callable[[Tensor], Any]] = {
    "itself": lambda y: y,
    "elementwise": lambda y: y.to(torch.float32) * 2 + 1,
    "sum": lambda y: y.to(torch.float32).sum(0),
    "softmax": lambda y: torch.softmax(y.to(torch.float32), 0),
    "twice": lambda y: torch.cat([y, y]),
    "reshape": lambda y: y.reshape(-1, 1) + 0,
    "outer": lambda y: y.reshape(-1).to(torch.float32)[:, None] * torch.arange(3.0),
    "matmul": lambda y: rows_of(y).to(torch.float32) @ rows_of(y).to(torch.float32).T,
    "again": lambda y: y[rows_of(y).sum(1) > 1],
    "sort": lambda y: torch.sort(y.to(torch.float32), 0)[0],
}


class Drawn(nn.Module):
    """Some ops, each with a chain behind it."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.parts = [(str(rng.choice(list(OPS))), str(rng.choice(list(CHAINS)))) for _ in range(OPS_OF_A_PROGRAM)]

    def forward(self, x: Tensor, mask: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        return tuple(CHAINS[chain](OPS[op](x, mask, counts)) for op, chain in self.parts)


def inputs_of(rows: int, kind: str, dtype: torch.dtype, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """kind: how many elements are not 0 and how many places of the mask hold: "none", "one", "some", "all"."""
    shape = (rows, 2, 3)[:1] + (2, 3)[3 - rank :]
    keep = {"none": 0.0, "one": 0.0, "some": 0.5, "all": 1.0}[kind]
    chosen = torch.rand(shape, generator=generator) < keep
    mask = torch.rand(rows, generator=generator) < keep
    if kind == "one":
        chosen.view(-1)[-1], mask[0] = True, True
    values = torch.randint(1, 4, shape, generator=generator) * chosen
    counts = torch.randint(0, 5, (rows,), generator=generator) * mask
    return values.to(dtype), mask, counts


def compiled(module: nn.Module, examples: Sequence[Tensor], dynamic_shapes: Any, path: Path) -> Program:
    llmos.compile(module, tuple(examples), dynamic_shapes=dynamic_shapes).save(path)
    return llmos.load(path, poison_arena=True)


def assert_same(got: Any, want: Any, what: str) -> None:
    answers = got if isinstance(got, tuple) else (got,)
    for number, (ours, theirs) in enumerate(zip(answers, want, strict=True)):
        assert ours.shape == tuple(theirs.shape), f"{what}, output {number}"
        np.testing.assert_allclose(
            ours.astype(np.float64),
            np.asarray(theirs, np.float64),
            rtol=2e-3 if ours.dtype == np.float16 else 1e-5,
            atol=1e-5,
            err_msg=what,
        )


@pytest.mark.parametrize("seed", range(NUM_PROGRAMS))
def test_random_programs(seed: int, tmp_path: Path) -> None:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    module = Drawn(rng).eval()
    dtype, rank, is_dynamic = DTYPES[seed % len(DTYPES)], 2 + seed % 2, seed % 4 != 3
    dims = ({0: ROWS}, {0: ROWS}, {0: ROWS}) if is_dynamic else None
    program = compiled(module, inputs_of(5, "some", dtype, rank, generator), dims, tmp_path / "m.llmos")
    for rows in (1, 2, 5, 23) if is_dynamic else (5,):
        for kind in ("none", "one", "some", "all"):
            given = inputs_of(rows, kind, dtype, rank, generator)
            assert_same(program(*[each.numpy() for each in given]), module(*given), f"{module.parts}, {dtype}, {rows} rows, {kind}")
    program.check_integrity()


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x [rows, 3] to (rows of x where a mask holds, their places), and a sum that every call gives."""

    class Selection(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
            return x[mask] * 2, mask.nonzero(), x.sum(0)

    path = tmp_path_factory.mktemp("selection") / "selection.llmos"
    compiled(Selection(), (torch.randn(4, 3), torch.tensor([True, False, True, True])), ({0: ROWS}, {0: ROWS}), path)
    return path


X = np.arange(12, dtype=np.float32).reshape(4, 3)
MASK = np.array([True, False, True, False])


def test_the_manifest_names_what_the_entry_computes(selection: Path) -> None:
    manifest = llmos.load(selection).manifest
    assert manifest.format == 2
    first, second = (each.name for each in manifest.computed)
    assert [spec.shape for spec in manifest.entries[0].outputs] == [(first, 3), (second, 1), (3,)]
    assert [(each.min, each.bound) for each in manifest.computed] == [(0, "rows"), (0, "rows")]
    assert total_flops(manifest, {"rows": 4}) is not None  # of the sizes of the inputs alone


def test_outputs_take_no_part_of_one_another(selection: Path) -> None:
    program = llmos.load(selection)
    first = program(X, MASK)
    kept = [array.copy() for array in first]
    program(X + 1, np.ones(4, bool))
    assert [array.tolist() for array in first] == [array.tolist() for array in kept]
    assert first[0].flags.c_contiguous


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


def _tensor(array: np.ndarray) -> _Tensor:
    codes = {"f": 2, "i": 0, "b": 6}
    sizes = (ctypes.c_int64 * array.ndim)(*array.shape)
    return _Tensor(array.ctypes.data, 1, 0, array.ndim, codes[array.dtype.kind], 8 * array.itemsize, 1, sizes, None, 0)


def test_the_c_api_lowers_the_shapes_in_place(selection: Path) -> None:
    program = llmos.load(selection)
    handle = program["main"].handle
    assert handle is not None
    inputs = [_tensor(X), _tensor(MASK)]
    pointers = (ctypes.c_void_p * 2)(*[ctypes.addressof(each) for each in inputs])
    dims = (ctypes.c_int64 * 5)()
    core().check(core().shapes(handle.value, 0, pointers, 2, dims))
    assert list(dims) == [4, 3, 4, 1, 3]  # bounds
    arrays = [np.full((4, 3), -1, np.float32), np.full((4, 1), -1, np.int64), np.empty(3, np.float32)]
    outputs = [_tensor(array) for array in arrays]
    places = (ctypes.c_void_p * 3)(*[ctypes.addressof(each) for each in outputs])
    core().check(core().run(handle.value, 0, pointers, 2, places, 3, 0, None))
    assert [each.shape[: each.ndim] for each in outputs] == [[2, 3], [2, 1], [3]]
    assert arrays[0][:2].tolist() == (X[MASK] * 2).tolist() and (arrays[0][2:] == -1).all()
    with pytest.raises(InputError, match="expected shape"):  # the bounds again before the next run
        core().check(core().run(handle.value, 0, pointers, 2, places, 3, 0, None))


def test_the_server_answers_in_exact_shapes_and_joins_no_requests(selection: Path) -> None:
    model = load_model(selection)
    reply = infer_reply(InferRequest({}, [(0, False), (1, False)]), "m", "1", model.signature, model([X, MASK]))
    assert Batching.of(model) == Batching()
    outputs = json.loads(reply.body)["outputs"]
    assert [(each["shape"], each["data"]) for each in outputs] == [([2, 3], (X[MASK] * 2).reshape(-1).tolist()), ([2, 1], [0, 2])]


def test_dispatches_are_compared_and_verified(selection: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmos.runtime.cli", "verify", str(selection)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run(
        [sys.executable, "-m", "llmos.runtime.cli", "inspect", str(selection)], capture_output=True, text=True, check=True
    )
    assert "sizes that data decides" in shown.stdout and "at most rows" in shown.stdout


def test_data_that_gives_no_size_is_an_error_of_the_call(tmp_path: Path) -> None:
    class Sized(nn.Module):
        def forward(self, counts: Tensor, x: Tensor, at: Tensor) -> tuple[Tensor, ...]:
            return torch.repeat_interleave(counts).sum(), torch.bincount(counts, minlength=1).sum(), x.narrow(0, at.item(), 2)  # type: ignore[arg-type]

    x = np.arange(5, dtype=np.float32)
    program = compiled(Sized(), (torch.tensor([1, 2, 0]), torch.from_numpy(x), torch.tensor(1)), None, tmp_path / "m.llmos")
    good = np.array([2, 0, 1])
    assert [each.tolist() for each in program(good, x, np.array(3))] == [2, 3, [3.0, 4.0]]  # type: ignore[union-attr]
    for counts, at in (([1, -1, 0], 0), ([1, 1 << 62, 1 << 62], 0), ([1, 1, 1], 4), ([1, 1, 1], -6), ([1, 1, 1], 1 << 60)):
        with pytest.raises((InputError, llmos.ExecutionError), match=r"out of range|out of memory"):
            program(np.array(counts), x, np.array(at))
    assert [each.tolist() for each in program(good, x, np.array(-2))] == [2, 3, [3.0, 4.0]]  # type: ignore[union-attr]
    program.check_integrity()


def test_a_size_that_data_makes_negative_is_an_error_of_the_call(tmp_path: Path) -> None:
    class Neighbours(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            kept = x[mask]
            torch._check(kept.shape[0] >= 1)
            return nn.functional.conv1d(kept.T[None], torch.ones(2, 3, 3))

    program = compiled(Neighbours(), (torch.randn(6, 3), torch.ones(6, dtype=torch.bool)), None, tmp_path / "m.llmos")
    x = np.ones((6, 3), np.float32)
    assert program(x, np.array([True, True, True, False, True, False])).tolist() == [[[9.0, 9.0]] * 2]  # type: ignore[union-attr]
    for count in (0, 1):
        with pytest.raises(InputError, match=r"size that the data gives is out of range"):
            program(x, np.arange(6) < count)


def test_an_output_without_a_bound_is_refused_with_what_to_write() -> None:
    class Range(nn.Module):
        def forward(self, n: Tensor) -> Tensor:
            return torch.arange(n.item())  # type: ignore[arg-type]

    with pytest.raises(UnsupportedError, match=r"has no bound .* torch\._check"):
        llmos.compile(Range(), (torch.tensor(3),))


# -- detectors


def boxes_of(rng: np.random.Generator, num: int, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    corners = np.sort(rng.random((1, num, 2, 2), np.float32), axis=2).reshape(1, num, 4)
    return corners, rng.random((1, kinds, num), np.float32)


def detector() -> onnx.ModelProto:
    """Decoded boxes and scores, suppression, and the boxes, classes and scores of what is left."""
    constants = {
        "most": np.int64([5]),
        "overlap": np.float32([0.4]),
        "least": np.float32([0.3]),
        "column": np.int64([2]),
        "last": np.int64(2),
    }
    constants |= {"half": np.float32(0.5), "pairs": np.int64([0, 2])}
    nodes = [
        helper.make_node("Sigmoid", ["raw"], ["scores"]),
        helper.make_node("Mul", ["boxes", "half"], ["scaled"]),
        helper.make_node("NonMaxSuppression", ["scaled", "scores", "most", "overlap", "least"], ["chosen"]),
        helper.make_node("Gather", ["chosen", "last"], ["place"], axis=1),
        helper.make_node("Gather", ["scaled", "place"], ["kept"], axis=1),
        helper.make_node("GatherND", ["scores", "chosen"], ["sure"]),
        helper.make_node("Shape", ["chosen"], ["size"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "num", 4]),
            helper.make_tensor_value_info("raw", TensorProto.FLOAT, [1, 3, "num"]),
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in (("chosen", 7), ("kept", 1), ("sure", 1), ("size", 7))],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_detector_of_onnx(tmp_path: Path) -> None:
    model = detector()
    onnx.save(model, tmp_path / "m.onnx")
    llmos.compile(tmp_path / "m.onnx").save(tmp_path / "m.llmos")
    program, session = llmos.load(tmp_path / "m.llmos", poison_arena=True), onnxruntime.InferenceSession(model.SerializeToString())
    rng = np.random.default_rng(0)
    for num, lift in ((1, 0), (2, 0), (7, 0), (60, 0), (60, -9)):
        boxes, raw = boxes_of(rng, num, 3)
        want = session.run(None, {"boxes": boxes, "raw": raw * 4 - 2 + lift})
        assert_same(program(boxes, raw * 4 - 2 + np.float32(lift)), want, f"{num} boxes, scores {lift} higher")


def test_a_detector_of_torch(tmp_path: Path) -> None:
    """YOLO's head with suppression as matrices: a box goes where a better one of its class overlaps it."""

    class Head(nn.Module):
        def forward(self, predicted: Tensor) -> tuple[Tensor, ...]:
            scores, kinds = predicted[:, 4:].max(1)
            sure = scores > 0.5
            boxes, scores, kinds = predicted[sure, :4], scores[sure], kinds[sure]
            order = torch.argsort(scores, descending=True, stable=True)
            boxes, scores, kinds = boxes[order], scores[order], kinds[order]
            low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
            shared = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0).prod(-1)
            area = boxes[:, 2:].prod(-1)
            overlap = shared / (area[:, None] + area - shared)
            worse = torch.arange(boxes.shape[0])[:, None] < torch.arange(boxes.shape[0])
            hidden = ((overlap > 0.3) & worse & (kinds[:, None] == kinds)).any(0)
            return boxes[~hidden], scores[~hidden], kinds[~hidden]

    generator = torch.Generator().manual_seed(0)
    module = Head()
    dims = ({0: torch.export.Dim("anchors", min=1, max=500)},)
    program = compiled(module, (torch.rand(20, 7, generator=generator),), dims, tmp_path / "m.llmos")
    for anchors, lift in ((1, 0.0), (3, 0.0), (40, 0.0), (40, -1.0), (120, 0.4)):
        predicted = torch.rand(anchors, 7, generator=generator) + lift
        assert_same(program(predicted.numpy()), module(predicted), f"{anchors} anchors, {lift} higher")


def test_onnx_sizes_from_data(tmp_path: Path) -> None:
    """Slice, TopK, Range, Expand and Tile by numbers that are inputs, or counts of what a threshold leaves."""
    constants = {"axis": np.int64([0]), "zero": np.int64(0), "one": np.int64(1), "ones": np.int64([1]), "most": np.int64([4])}
    nodes = [
        helper.make_node("Slice", ["x", "start", "end", "axis"], ["sliced"]),
        helper.make_node("TopK", ["x", "end"], ["best", "where"]),
        helper.make_node("Squeeze", ["end", "axis"], ["number"]),
        helper.make_node("Range", ["zero", "number", "one"], ["range"]),
        helper.make_node("ReduceSum", ["range"], ["range_sum"], keepdims=0),
        helper.make_node("Concat", ["end", "ones"], ["pair"], axis=0),
        helper.make_node("Expand", ["x", "pair"], ["wide"]),
        helper.make_node("Tile", ["x", "end"], ["long"]),
        *[helper.make_node("ReduceSum", [name], [f"{name}_sum"], keepdims=0) for name in ("wide", "long")],
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Squeeze", ["places", "axis"], ["found"]),
        helper.make_node("Gather", ["x", "found"], ["values"]),
        helper.make_node("Shape", ["values"], ["count"]),
        helper.make_node("Min", ["count", "most"], ["few"]),
        helper.make_node("TopK", ["values", "few"], ["most_of_few", "their_places"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
        *[helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("start", "end")],
    ]
    floats, integers = ("sliced", "best", "wide_sum", "long_sum", "most_of_few"), ("where", "range_sum", "count", "their_places")
    outputs = [helper.make_tensor_value_info(name, kind, None) for names, kind in ((floats, 1), (integers, 7)) for name in names]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    llmos.compile(tmp_path / "m.onnx").save(tmp_path / "m.llmos")
    program, session = llmos.load(tmp_path / "m.llmos", poison_arena=True), onnxruntime.InferenceSession(model.SerializeToString())
    x = np.float32([2, 0, 5, 0, 1, 7, 3, 4])
    for given, start, end in ((x, 1, 3), (x, -3, 8), (x * 0, 5, 2), (x[:2], 0, 1)):
        feed = {"x": given, "start": np.int64([start]), "end": np.int64([end])}
        assert_same(program(**feed), session.run(None, feed), f"{start}:{end} of {len(given)}")
    with pytest.raises(InputError, match="out of range"):
        program(x=x, start=np.int64([0]), end=np.int64([9]))  # TopK of 9 of 8


@pytest.mark.parametrize("kept", [[], [1], [0, 2, 3]])
def test_onnx_selections(kept: list[int], onnx_selections: tuple[Program, Any]) -> None:
    program, session = onnx_selections
    x = np.float32([[3, 0, 1], [1, 2, 0], [3, 0, 1], [0, 0, 0]])[:, :3]
    condition = np.isin(np.arange(4), kept)
    assert_same(program(x, condition), session.run(None, {"x": x, "condition": condition}), f"{kept}")


@pytest.fixture(scope="module")
def onnx_selections(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Any]:
    """NonZero, Compress and Unique of x [rows, 3]."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Transpose", ["places"], ["pairs"]),
        helper.make_node("GatherND", ["x", "pairs"], ["found"]),
        helper.make_node("Compress", ["x", "condition"], ["rows_kept"], axis=0),
        helper.make_node("ReduceSum", ["rows_kept"], ["total"]),
        helper.make_node("Unique", ["x"], ["values", "first", "inverse", "counts"]),
        helper.make_node("Unique", ["x"], ["rows_once", "row_first", "row_inverse", "row_counts"], axis=0, sorted=0),
    ]
    floats, integers = (
        ("found", "rows_kept", "total", "values", "rows_once"),
        ("places", "first", "inverse", "counts", "row_first", "row_inverse"),
    )
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in floats]
    outputs += [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in (*integers, "row_counts")]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3]),
        helper.make_tensor_value_info("condition", TensorProto.BOOL, ["rows"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("onnx") / "m.llmos"
    onnx.save(model, path.with_suffix(".onnx"))
    llmos.compile(path.with_suffix(".onnx")).save(path)
    return llmos.load(path, poison_arena=True), onnxruntime.InferenceSession(model.SerializeToString())
