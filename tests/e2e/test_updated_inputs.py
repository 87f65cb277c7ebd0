"""Models that change their inputs, against eager torch: arrays of the caller are written where they lie."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.runtime.artifact.accuracy import accuracy_report_of
from llmos.runtime.cli.verify import findings_of
from llmos.runtime.engine.model import ProgramModel
from llmos.runtime.errors import InputError
from llmos.runtime.native import binding
from llmos.runtime.native.binding import core
from llmos.runtime.program import Program

OPTIONS = CompileOptions(target="native", cache=False, repro=None)
Tensors = tuple[torch.Tensor, ...]
BATCH = torch.export.Dim("batch", min=1, max=64)


class Function(nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(*inputs)


def compiled(model: nn.Module, inputs: Tensors, folder: Path, shapes: object = None) -> Program:
    path = folder / "model.llmos"
    given = tuple(each.clone() for each in inputs)
    llmos.compile(model, given, dynamic_shapes=shapes, options=OPTIONS).save(path)
    assert all(torch.equal(a, b) for a, b in zip(given, inputs, strict=True)), "a compile changes the examples"
    return llmos.load(path, poison_arena=True)


def check(program: Program, model: nn.Module, inputs: Tensors) -> None:
    """A call gives what eager gives, and leaves the inputs as eager does."""
    ours, theirs = [each.clone().numpy() for each in inputs], [each.clone() for each in inputs]
    got, want = program(*ours), model(*theirs)
    outputs = got if isinstance(got, tuple) else (got,)
    expected = () if want is None else want if isinstance(want, tuple) else (want,)
    for a, b in zip([*outputs, *ours], [*expected, *theirs], strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)
    program.check_integrity()


def step(cache: torch.Tensor, row: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Writes a row and attends to all of them."""
    cache.index_copy_(0, at, row)
    return (row @ cache.T).softmax(-1) @ cache


@pytest.fixture(scope="module")
def stepper(tmp_path_factory: pytest.TempPathFactory) -> Program:
    shapes = ((({0: torch.export.Dim("slots", min=2, max=1 << 22)}, {}, {})),)
    return compiled(Function(step), (torch.randn(8, 4), torch.randn(1, 4), torch.tensor([3])), tmp_path_factory.mktemp("step"), shapes)


@pytest.mark.parametrize("slots", [2, 8, 1000])
def test_at_other_sizes_than_the_traced_one(stepper: Program, slots: int) -> None:
    check(stepper, Function(step), (torch.randn(slots, 4), torch.randn(1, 4), torch.tensor([slots - 1])))
    assert stepper.manifest.format == 3 and [spec.updated for spec in stepper["main"].inputs] == [True, False, False]


def test_it_verifies_and_the_engine_refuses_it(stepper: Program) -> None:
    accuracy_report = accuracy_report_of(stepper.artifact)
    assert accuracy_report is not None
    findings = list(findings_of(stepper, accuracy_report.cases))
    assert {finding.output for finding in findings} == {"output", "updated.inputs_0"}
    assert all(finding.deviation.within(accuracy_report.allowed(finding)) for finding in findings)
    with pytest.raises(InputError, match='input "inputs_0"'):
        ProgramModel(stepper)


def test_a_write_into_a_large_array_makes_no_copy(tmp_path: Path) -> None:
    """Of two entries with one weight. No memory is planned for 256 MiB of the caller's, and a call from Python or from C takes less than a
    hundredth of what a copy of them takes."""
    table = nn.Embedding(100, 64)

    def write(cache: torch.Tensor, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        row = table(ids)
        cache.index_copy_(0, at, row)
        return row.sum(1)

    class Write(Function):
        def __init__(self) -> None:
            super().__init__(write)
            self.table = table

    inputs = {"write": (torch.zeros(8, 64), torch.tensor([1]), torch.tensor([3])), "embed": (torch.tensor([1, 2]),)}
    shapes = {"write": ((({0: torch.export.Dim("slots", min=2, max=1 << 22)}, {}, {})),)}
    llmos.compile({"write": Write(), "embed": table}, inputs, dynamic_shapes=shapes, options=OPTIONS).save(tmp_path / "two.llmos")
    program = llmos.load(tmp_path / "two.llmos")
    assert len(program.manifest.weights) == 1 and program.manifest.plan["slots"]["write"] == ["256"]  # a row
    cache = np.zeros((1 << 20, 64), np.float32)
    address, copy_s = cache.ctypes.data, _fastest_s(lambda: cache.copy(), 3)
    assert _fastest_s(lambda: program["write"](cache, np.array([1]), np.array([3])), 30) < copy_s / 100
    row = program["embed"](np.array([1, 1]))
    assert cache.ctypes.data == address and cache[3].tolist() == row[0].tolist() and not cache[4].any()
    assert _seconds_from_c(tmp_path, "write", len(cache)) < copy_s / 100


def _fastest_s(call: Callable[[], object], times: int) -> float:
    fastest = float("inf")
    for _ in range(times):
        begin = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - begin)
    return fastest


def _seconds_from_c(folder: Path, entry: str, size: int) -> float:
    """The fastest of 30 calls by the C example, on `two.llmos` of a folder with its one symbol set to `size`."""
    library, native = core().path, Path(binding.__file__).parent
    example = native / "examples" / "run.c"
    linked = [f"-I{native / 'include'}", example, library, f"-Wl,-rpath,{library.parent}", "-o", folder / "run"]
    subprocess.run(["cc", "-O2", *linked], check=True)
    command = [folder / "run", folder / "two.llmos", "--entry", entry, "--times", "30", str(size)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"([0-9.]+) ms", printed)
    assert found is not None, printed
    return float(found[1]) / 1e3


def slices(whole: torch.Tensor, part: torch.Tensor, row: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Slices of each dim, rows from either end, and one place that data gives."""
    whole[:, 1:3] = part
    whole[-1] = row
    whole[:, 2] = row[0]
    whole[:, :, 3] = row[0, 0]
    whole[:, at] = row[:1]
    return part + part


@pytest.mark.sample(0, 1, 6)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool, torch.uint8, torch.int64, torch.float64, torch.complex64])
def test_slices_of_every_width(dtype: torch.dtype, tmp_path: Path) -> None:
    shapes = (({0: BATCH}, {0: BATCH}, {}, {}),)

    def inputs(batch: int) -> Tensors:
        drawn = [torch.randn(batch, 4, 6), torch.randn(batch, 2, 6), torch.randn(4, 6)]
        return (*[(10 * each).to(dtype) if dtype != torch.bool else each > 0 for each in drawn], torch.tensor([1]))

    program = compiled(Function(slices), inputs(3), tmp_path, shapes)
    if not dtype.is_complex:  # a part of a pair of numbers is written in another way
        assert {each.kind for each in program.manifest.kernels} >= {"insert", "scatter"}
    for batch in (3, 1, 5):
        check(program, Function(slices), inputs(batch))


# -- random programs

STATEMENTS = (
    "{a}.index_copy_(0, at, row)",
    "{a}[at] = row * 2",
    "{a}.index_add_(0, at, row)",
    "{a}.view(-1, 2, 4)[:, 1][at // 2] = row",
    "{a}.scatter_(0, at.view(-1, 1).expand(-1, 4), row)",
    "{a}[1:3] = row[:1]",
    "{a}[:, 1] = row[0, 0]",
    "{a}[-1] = row[0]",
    "{a}.add_(1)",
    "{a}.mul_({a}.amax())",
    "{a}.copy_({b}.flip(0))",
    "{a}.index_copy_(0, at, {b}[2:4])",
    "{a}.index_copy_(0, at, {a}[2:4].clone())",
    "kept.append({a}.sum(0))",
    "kept.append({a}.clone())",
    "kept.append({a} @ {b}.T)",
    "row = row + {a}[:2]",
)


def random_program(seed: int) -> tuple[str, Callable[..., Tensors]]:
    """Four to six statements on two arrays; returns what it kept, and at times what it changed."""
    draw = random.Random(seed)
    lines = []
    for _ in range(draw.randint(4, 6)):
        first, second = draw.sample("ab", 2)
        lines.append(draw.choice(STATEMENTS).format(a=first, b=second))
    ends = draw.choice(["*kept, row", "*kept, row, a", "*kept, row, b + a"])
    source = "def function(a, b, row, at):\n  kept = []\n" + "".join(f"  {line}\n" for line in lines) + f"  return {ends},\n"
    scope: dict[str, Callable[..., Tensors]] = {}
    exec(source, scope)
    return source, scope["function"]


@pytest.mark.sample(0, 2, 4, 6, 8, 10)
@pytest.mark.parametrize("seed", range(12))
def test_random_programs(seed: int, tmp_path: Path) -> None:
    source, function = random_program(seed)
    torch.manual_seed(seed)
    inputs = (torch.randn(8, 4), torch.randn(8, 4), torch.randn(2, 4), torch.tensor([5, 2]))
    print(source)
    program = compiled(Function(function), inputs, tmp_path)
    check(program, Function(function), inputs)
    check(program, Function(function), (*[torch.randn_like(each) for each in inputs[:3]], torch.tensor([0, 7])))
