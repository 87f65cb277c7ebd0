"""Sizes that data decides: every op that has them, chained with others, at counts of none, one, some and all, in their exact shapes.

A program holds several ops, so that a compile serves all of them. `LLMOS_DATA_SIZES` says how many random programs are tried.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.bench.work import total_flops
from llmos.runtime.engine import load_model
from llmos.runtime.engine.model import Batching
from llmos.runtime.errors import InputError, UnsupportedError, UserError
from llmos.runtime.native.binding import core
from llmos.runtime.program import Program
from llmos.runtime.server.inference.infer import InferRequest, infer_reply
from tests.properties.data_sizes import assert_same, compiled

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


@pytest.mark.sample(0)
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


def test_dimensions_may_be_renamed(tmp_path: Path) -> None:
    class Places(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.nonzero()

    program = torch.export.export(Places(), (torch.ones(3, 2),), dynamic_shapes=({0: torch.export.Dim("rows")},))
    torch.export.save(program, tmp_path / "m.pt2")
    llmos.compile(tmp_path / "m.pt2", options=CompileOptions(dynamic=("points",))).save(tmp_path / "m.llmos")
    manifest = llmos.load(tmp_path / "m.llmos").manifest
    assert [(each.name, each.bound) for each in manifest.computed] == [("u0", "2*points")]
    with pytest.raises(UserError, match="another dimension that is called u0"):
        llmos.compile(tmp_path / "m.pt2", options=CompileOptions(dynamic=("u0",)))


STAGE = """module attributes {llmos.symbols = {n = array<i64: 0, 9>}, llmos.computed = {u0 = FIELDS}} {
  func.func @main(%x: tensor<?xi64> {llmos.kind = "input", llmos.name = "x", llmos.dtype = "int64", llmos.shape = ["n"]},
                  %c: tensor<i64> {llmos.kind = "input", llmos.name = "c", llmos.dtype = "int64", llmos.shape = []})
      -> (tensor<?xi64> {llmos.name = "y", llmos.dtype = "int64"}) {
    %count = tensor.extract %c[] {llmos.computes = "NAME"} : tensor<i64>
    %size = arith.index_cast %count : i64 to index
    %y = tensor.extract_slice %x[0] [%size] [1] : tensor<?xi64> to tensor<?xi64>
    return %y : tensor<?xi64>
  }
}"""
FIELDS = 'range = array<i64: 0, 9>, bound = "n", equals = ""'


def test_a_size_may_be_written_in_mlir(tmp_path: Path) -> None:
    def loaded(fields: str, name: str = "u0") -> Program:
        (tmp_path / "m.mlir").write_text(STAGE.replace("FIELDS", fields).replace("NAME", name))
        llmos.compile(tmp_path / "m.mlir").save(tmp_path / "m.llmos")
        return llmos.load(tmp_path / "m.llmos")

    program = loaded("{" + FIELDS + "}")
    assert program(np.arange(5), np.array(3)).tolist() == [0, 1, 2]  # type: ignore[union-attr]
    with pytest.raises(InputError, match="out of range"):
        program(np.arange(5), np.array(6))
    for fields, name in (("5", "u0"), ("{}", "u0"), ('{range = array<i64: 0, 9>, bound = "n"}', "u0"), ("{" + FIELDS + "}", "u1")):
        with pytest.raises(UserError, match=r"llmos\.compute"):
            loaded(fields, name)


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
    module = program["main"].module
    assert module is not None
    inputs = [_tensor(X), _tensor(MASK)]
    pointers = (ctypes.c_void_p * 2)(*[ctypes.addressof(each) for each in inputs])
    dims = (ctypes.c_int64 * 5)()
    core().check(module.shapes(0, pointers, 2, dims))
    assert list(dims) == [4, 3, 4, 1, 3]  # bounds
    arrays = [np.full((4, 3), -1, np.float32), np.full((4, 1), -1, np.int64), np.empty(3, np.float32)]
    outputs = [_tensor(array) for array in arrays]
    places = (ctypes.c_void_p * 3)(*[ctypes.addressof(each) for each in outputs])
    core().check(module.run(0, pointers, 2, places, 3, 0, None))
    assert [each.shape[: each.ndim] for each in outputs] == [[2, 3], [2, 1], [3]]
    assert arrays[0][:2].tolist() == (X[MASK] * 2).tolist() and (arrays[0][2:] == -1).all()
    with pytest.raises(InputError, match="expected shape"):  # the bounds again before the next run
        core().check(module.run(0, pointers, 2, places, 3, 0, None))


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


@pytest.mark.parametrize("num_rows", [1, 2, 3, 63, 64, 65, 1025])
def test_distinct_rows_of_any_count(num_rows: int, tmp_path: Path) -> None:
    """Runs of every length that a merge can leave, with many equal rows and with none."""

    class Distinct(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.unique(x, dim=0, return_inverse=True, return_counts=True)

    rows = {0: torch.export.Dim("n", min=1, max=4096)}
    program = compiled(Distinct(), [torch.zeros(5, 3, dtype=torch.int64)], (rows,), tmp_path / "distinct.llmos")
    for high in (1, 3, 1000):
        x = torch.from_numpy(np.random.default_rng(high).integers(-high, high, (num_rows, 3)))
        assert_same(program(x.numpy()), Distinct()(x), f"{num_rows} rows below {high}")
