"""Programs whose indices lie inside and outside, run in guarded memory: `python -m tests.properties.index_bounds --calls 100000`.

Several cases are one program, each with inputs of its own. A call changes the sizes and draws new data, and puts one index of some cases
outside. Then the program must report it, nothing beside a buffer may be touched (guarded.py), and all other cases must be as right as ever.

The process ends by a fault where memory is touched that isn't a buffer's; the last line says which program ran.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import helper

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.errors import LlmosError
from llmos.runtime.native.abi import INDEX_OUT_OF_RANGE

from .guarded import GuardedProgram
from .index_cases import OUTSIDE, Case, Given, Sizes, torch_case
from .index_cases_onnx import OPSET, PROTO, onnx_case

CASES = 6  # of a program
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}
OPTIONS = CompileOptions(target="native", cache=False, repro=None, accuracy_report=False)
LOOSE_FLOATS = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, -5e9, 1e19, -1.0, 0.3, 0.99, 2.5, 7.0)


class _Pack(torch.nn.Module):
    """Cases side by side."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        self._cases = cases

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        rest, results = list(inputs), []
        for case in self._cases:
            results.append(case.function(*rest[: len(case.inputs)]))
            rest = rest[len(case.inputs) :]
        return results


@dataclass
class Data:
    """The inputs of one case in a call."""

    arrays: list[np.ndarray]
    is_broken: bool


@dataclass
class Tally:
    """What was run, and what was wrong."""

    calls: int = 0
    broken: int = 0
    programs: int = 0
    cases: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


# -- data


def _numbers(given: Given, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if given.dtype == torch.bool:
        return rng.random(shape) < 0.5
    if given.dtype.is_floating_point:
        return rng.choice([-1.0, 0.5, 1.0, 2.0], shape)
    return rng.integers(0 if given.counts or given.dtype == torch.uint8 else -2, 4, shape)


def _array(given: Given, sizes: Sizes, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in given.shape)
    if given.is_index:
        assert given.low is not None and given.high is not None
        low, high = given.low(sizes), given.high(sizes)
        made: np.ndarray = rng.integers(low, high, shape) if low < high else np.zeros(shape)
    elif given.loose and given.dtype.is_floating_point:
        made = rng.choice(LOOSE_FLOATS, shape)
    elif given.loose and given.dtype != torch.bool:
        limits = torch.iinfo(given.dtype)
        made = rng.choice([*[v for v in OUTSIDE if limits.min <= v <= limits.max], -1, 0, 1, 2, 3, 4, 5], shape)
    else:
        made = _numbers(given, shape, rng)
    return torch.tensor(made, dtype=given.dtype).contiguous()  # type: ignore[return-value]


def _break(case: Case, arrays: list[Any], sizes: Sizes, rng: random.Random) -> bool:
    """Put one element of an index outside; whether there is one to change."""
    indices = [i for i, each in enumerate(case.inputs) if each.is_index and arrays[i].numel()]
    if not indices:
        return False
    number = rng.choice(indices)
    given = case.inputs[number]
    assert given.low is not None and given.high is not None
    low, high, limits = given.low(sizes), given.high(sizes), torch.iinfo(given.dtype)
    outside = [v for v in (low - 1, high, high + 7, *OUTSIDE) if limits.min <= v <= limits.max and not low <= v < high and v != -100]
    # Slices of several axes are as long as the shortest: an index there may be right for another.
    arrays[number].view(-1)[rng.randrange(arrays[number].numel())] = rng.choice(outside[3:] if "ND" in case.name else outside)
    return True


def _data(case: Case, seed: int, break_it: bool) -> Data:
    rng = random.Random(seed)
    sizes = case.sizes(rng)
    generator = np.random.default_rng(seed)
    arrays = [_array(each, sizes, generator) for each in case.inputs]
    is_hopeless = any(_admits_none(each, sizes) and array.numel() for each, array in zip(case.inputs, arrays, strict=True))
    return Data(arrays, is_hopeless or (break_it and _break(case, arrays, sizes, rng)))


def _admits_none(given: Given, sizes: Sizes) -> bool:
    """Whether an index lies outside whatever it is, since the dim is empty."""
    return given.low is not None and given.high is not None and given.low(sizes) >= given.high(sizes)


def _stored(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return array


# -- programs


def _compiled(cases: Sequence[Case], folder: Path) -> GuardedProgram:
    path = folder / "program.llmos"
    path.unlink(missing_ok=True)
    artifact = _compile_onnx(cases, folder) if cases[0].kind == "onnx" else _compile_torch(cases)
    artifact.save(path)
    return GuardedProgram(path)


def _compile_torch(cases: Sequence[Case]) -> Any:
    example = [array for case in cases for array in _traced(case)]
    dims = [
        {axis: torch.export.Dim(f"c{i}_{dim}", min=1, max=512) for axis, dim in enumerate(each.shape) if dim in case.dynamic}
        for i, case in enumerate(cases)
        for each in case.inputs
    ]
    return compile_model(_Pack(cases).eval(), tuple(example), dynamic_shapes={"inputs": tuple(dims)}, options=OPTIONS)


def _traced(case: Case) -> list[Any]:
    generator = np.random.default_rng(0)
    return [_array(replace(each, loose=each.dtype == torch.bool), case.traced, generator) for each in case.inputs]


def _compile_onnx(cases: Sequence[Case], folder: Path) -> Any:
    nodes, values, results = [], [], []
    for i, case in enumerate(cases):
        names = [f"c{i}_x{j}" for j in range(len(case.inputs))]
        for name, each in zip(names, case.inputs, strict=True):
            shape = [f"c{i}_{dim}" if dim in case.dynamic else case.traced[dim] if isinstance(dim, str) else dim for dim in each.shape]
            values.append(helper.make_tensor_value_info(name, PROTO[each.dtype], shape))
        outputs = [f"c{i}_y{j}" for j in range(case.node["outputs"])]
        nodes.append(helper.make_node(case.node["op"], names, outputs, **case.node["attributes"]))
        results.append(helper.make_tensor_value_info(outputs[0], PROTO[case.inputs[0].dtype], None))
    graph = helper.make_graph(nodes, "cases", values, results)
    model = folder / "model.onnx"
    opset = [helper.make_opsetid("", OPSET)]
    model.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())
    return compile_model(model, options=OPTIONS)


def programs(seed: int, tally: Tally, folder: Path) -> Iterator[tuple[list[Case], GuardedProgram]]:
    """Programs of cases that compile; what doesn't is noted, and tried with fixed sizes."""
    for number in range(1 << 30):
        rng = random.Random(f"{seed}-{number}")
        make = onnx_case if rng.random() < 0.4 else torch_case
        is_loose = rng.random() < 0.2
        cases: list[Case] = []
        while len(cases) < CASES:
            case = make(rng)
            if is_loose == any(each.loose for each in case.inputs):
                cases.append(case)
        print(f"program {seed}-{number}: {', '.join(case.name for case in cases)}", file=sys.stderr, flush=True)
        yield from _compile_what_can(cases, tally, folder)


def _compile_what_can(cases: list[Case], tally: Tally, folder: Path) -> Iterator[tuple[list[Case], GuardedProgram]]:
    try:
        yield cases, _compiled(cases, folder)
        return
    except LlmosError as error:
        if len(cases) == 1 and not cases[0].dynamic:
            tally.refused[f"{cases[0].name}: {str(error).splitlines()[0][:160]}"] += 1
            return
    halves = [[replace(cases[0], dynamic=frozenset())]] if len(cases) == 1 else [cases[: len(cases) // 2], cases[len(cases) // 2 :]]
    for half in halves:
        yield from _compile_what_can(half, tally, folder)


# -- calls


def call(cases: Sequence[Case], program: GuardedProgram, seed: int, tally: Tally) -> None:
    """One call; what is wrong joins the tally."""
    rng = random.Random(seed)
    wanted = rng.randrange(len(cases)) if rng.random() < 0.6 else -1
    data = [_data(case, rng.randrange(1 << 31), i == wanted or (wanted >= 0 and rng.random() < 0.1)) for i, case in enumerate(cases)]
    codes, outputs = program([_stored(array) for each in data for array in each.arrays], at_end=bool(seed % 2))
    is_broken = any(each.is_broken for each in data)
    tally.calls += 1
    tally.broken += is_broken
    is_loose = any(each.loose for case in cases for each in case.inputs)
    allowed = {0, INDEX_OUT_OF_RANGE} if is_broken or is_loose else {0}
    names = ", ".join(case.name + "!" * each.is_broken for case, each in zip(cases, data, strict=True))
    must_tell = any(each.is_broken and all(array.numel() for array in each.arrays) for each in data)  # else the index may be of no use
    if not set(codes) <= allowed or (must_tell and INDEX_OUT_OF_RANGE not in codes):
        tally.wrong.append(f"seed {seed}: {names}: codes {sorted(set(codes))}")
    for case, each, found in zip(cases, data, outputs, strict=True):
        tally.cases[case.name] += 1
        if not each.is_broken and not is_loose and (difference := _difference(case, each.arrays, found)):
            tally.wrong.append(f"seed {seed}: {case.name} {case.node or ''} {[tuple(a.shape) for a in each.arrays]}: {difference}")


def _eager(case: Case, arrays: Sequence[Any]) -> Any:
    """Torch's result; of half floats in float32, rounded once: its own sums of many may stop growing."""
    kinds = [each.dtype for each in case.inputs if each.dtype in TOLERANCE]
    made = case.function(*[array.float() if array.dtype in TOLERANCE else array for array in arrays])
    return made.to(kinds[0]) if kinds and made.dtype == torch.float32 else made


def _difference(case: Case, arrays: Sequence[Any], found: np.ndarray) -> str:
    with torch.no_grad(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            made = case.function(*[a.numpy() for a in arrays]) if case.kind == "onnx" else _eager(case, arrays)
        except RuntimeError as error:
            if "INTERNAL ASSERT" in str(error):  # of torch, at sizes of 1
                return ""
            raise
        except ValueError:
            if case.kind == "onnx" and not all(array.numel() for array in arrays):  # ONNX's evaluator doesn't take every size of 0
                return ""
            raise
    expected = torch.as_tensor(np.asarray(made)) if case.kind == "onnx" else made
    got = torch.from_numpy(found.view(np.int16)).view(torch.bfloat16) if expected.dtype == torch.bfloat16 else torch.from_numpy(found)
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"{got.dtype}{tuple(got.shape)} instead of {expected.dtype}{tuple(expected.shape)}"
    rtol = TOLERANCE.get(expected.dtype, 1e-5) if expected.dtype.is_floating_point else 0
    same = torch.isclose(got, expected, rtol=rtol, atol=rtol, equal_nan=expected.dtype.is_floating_point)
    return "" if bool(same.all()) else f"{int((~same).sum())} of {same.numel()} wrong, {case.inputs[0].dtype}"


def run(seed: int, calls: int, calls_of_program: int, tally: Tally) -> None:
    with tempfile.TemporaryDirectory(prefix="llmos-index-") as folder:
        for cases, program in programs(seed, tally, Path(folder)):
            tally.programs += 1
            for _ in range(calls_of_program):
                call(cases, program, seed * 1_000_003 + tally.calls, tally)
                if tally.calls >= calls:
                    return


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.properties.index_bounds")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--calls-of-program", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faulthandler.enable()
    torch.set_num_threads(1)
    tally, started = Tally(), time.monotonic()
    run(arguments.seed, arguments.calls, arguments.calls_of_program, tally)
    print(f"{tally.calls} calls of {tally.programs} programs in {time.monotonic() - started:.0f} s, {tally.broken} with an index outside")
    _print(tally.cases, tally.refused)
    for line in tally.wrong[:50]:
        print(f"WRONG {line}")
    print(f"wrong: {len(tally.wrong)}")
    return int(bool(tally.wrong))


def _print(cases: Mapping[str, int], refused: Mapping[str, int]) -> None:
    for name, count in sorted(cases.items()):
        print(f"  {count:7} {name}")
    for name, count in sorted(refused.items()):
        print(f"  refused {count} times: {name}")


if __name__ == "__main__":
    sys.exit(main())
