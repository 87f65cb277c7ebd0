"""Weights computed at compile time, by running their own kernels on the machine that compiles, whatever the target.

Results of large weights are programs of their own, so that memory holds one of them at a time. The layers of a model are alike: programs
of one text are compiled once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmos.compiler.analysis.generic import captured
from llmos.compiler.backends.base import Planned
from llmos.compiler.backends.lowering import lower
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.registry import get_backend
from llmos.compiler.execution.native import call_entry
from llmos.compiler.ir.attributes import FOLD, INPUT, tensor_attributes
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.cloning import clone_ops
from llmos.compiler.ir.functions import EntryFunc, Func, create_private, make_public
from llmos.compiler.ir.weights import Weight
from llmos.passes import PipelineOptions, run_pipeline
from llmos.runtime.artifact.dtypes import DTYPES

HOST = "cpu"  # backend whose code runs in the compiler's process
LARGE_BYTES = 16 << 20  # what is made of more has a program of its own
KEPT_BYTES = 1 << 20  # what such a program makes that is smaller is kept: scales, which are read at another time than their numbers


def folded_weights(module: ir.Module, weights: Mapping[str, Weight], options: CompileOptions) -> dict[str, Weight]:
    """What fold-weight-computation put aside, compiled for this machine and run when it is read; the function leaves the module."""
    fold = next((op.operation for op in module.body.operations if FOLD in op.operation.attributes), None)
    if fold is None:
        return {}
    found: dict[str, Weight] = {}
    programs: dict[str, _Program] = {}
    with module.context, ir.Location.unknown():
        for part in _parts(Func(fold)):
            text = str(part.module)
            if text not in programs:
                programs[text] = _Program.planned(part.module, options)
            found |= programs[text].on_demand(part, weights)
    fold.erase()
    return found


# -- parts of the function


@dataclass(frozen=True)
class _Part:
    """Some results of the function as a module of its own, in which inputs and outputs have numbers; and their names outside.

    is_large: whether what is made isn't kept once it was read.
    """

    module: ir.Module
    inputs: Sequence[str]
    outputs: Sequence[str]
    is_large: bool


def _parts(func: Func) -> Iterator[_Part]:
    """A part for all results that share inputs, where these are large; one for all other results."""
    cones = [_cone(value) for value in func.returned]
    inputs = [{each for op in cone for each in captured(op) if isinstance(each.owner, ir.Block)} for cone in cones]
    small: list[int] = []
    for group in _connected(inputs):
        if sum(map(_num_bytes, set().union(*[inputs[number] for number in group]))) > LARGE_BYTES:
            yield _part(func, group, cones, True)
        else:
            small += group
    if small:
        yield _part(func, sorted(small), cones, False)


def _connected(inputs: Sequence[set[ir.Value]]) -> list[list[int]]:
    """Numbers of the sets, those together that have common elements."""
    groups: list[tuple[set[ir.Value], list[int]]] = []
    for number, own in enumerate(inputs):
        joined = [group for group in groups if group[0] & own]
        groups = [group for group in groups if group not in joined]
        groups.append((own.union(*[group[0] for group in joined]), [*[n for group in joined for n in group[1]], number]))
    return [sorted(numbers) for _, numbers in groups]


def _cone(value: ir.Value) -> list[ir.Operation]:
    """The ops that a value is made by."""
    found: dict[ir.Operation, None] = {}
    pending = [value]
    while pending:
        owner = pending.pop().owner
        if isinstance(owner, ir.Block) or owner.operation in found:
            continue
        found[owner.operation] = None
        pending += captured(owner.operation)
    return list(found)


def _num_bytes(value: ir.Value) -> int:
    return int(math.prod(value.type.shape)) * max(1, int(getattr(value.type.element_type, "width", 64)) // 8)


def _part(func: Func, numbers: Sequence[int], cones: Sequence[Sequence[ir.Operation]], is_large: bool) -> _Part:
    needed = {op for number in numbers for op in cones[number]}
    ops = [op for op in func.ops if op in needed]
    used = {value for op in ops for value in captured(op)}
    arguments = [each for each in func.arguments if each.value in used]
    results = [func.returned[number] for number in numbers]
    names = [(each.name, each.dtype) for each in EntryFunc(func.op).results]
    kind = ir.FunctionType.get([each.value.type for each in arguments], [each.type for each in results])
    given = [tensor_attributes(f"i{n}", each.dtype, kind=INPUT, shape=each.value.type.shape) for n, each in enumerate(arguments)]
    made = ir.ArrayAttr.get([tensor_attributes(f"o{n}", names[number][1]) for n, number in enumerate(numbers)])
    module = ir.Module.create()
    main = create_private(module, "main", kind, given, {"res_attrs": made})
    make_public(main)
    mapping = dict(zip([each.value for each in arguments], main.regions[0].blocks[0].arguments, strict=True))
    with ir.InsertionPoint(main.regions[0].blocks[0]):
        clone_ops(ops, mapping)
        ir.Operation.create("func.return", operands=[mapping[each] for each in results])
    return _Part(module, [each.name for each in arguments], [names[number][0] for number in numbers], is_large)


# -- running them


@dataclass(frozen=True)
class _Program:
    """A planned part; its code is made when it is first run."""

    plan: Planned
    options: CompileOptions

    @classmethod
    def planned(cls, module: ir.Module, options: CompileOptions) -> _Program:
        host = get_backend(HOST)
        plain = CompileOptions(target="native", cache=options.cache, repro=options.repro)
        passes = [*host.dispatch_passes(plain), *host.plan_passes(plain)]
        run_pipeline(module, passes, options=PipelineOptions(None, options.repro), context=host.context(plain))
        return cls(host.plan(module, {}, [str(step) for step in passes]), plain)

    @functools.cached_property
    def code(self) -> bytes:
        """Return a shared object for this machine."""
        host = get_backend(HOST)
        code = lower(self.plan, host.targets(self.options.target)[0], self.options, host)
        assert isinstance(code, bytes)
        return code

    def on_demand(self, part: _Part, weights: Mapping[str, Weight]) -> dict[str, Weight]:
        """The part's results by name, run when the first of them is read."""
        entry = self.plan.record.entries[0]
        kept: dict[int, np.ndarray] = {}

        def load(number: int) -> Callable[[], np.ndarray]:
            def read() -> np.ndarray:
                if number not in kept:
                    kept.update(enumerate(self._run([weights[name].load() for name in part.inputs])))
                return kept.pop(number) if part.is_large and kept[number].nbytes > KEPT_BYTES else kept[number]

            return read

        return {
            name: Weight(spec.dtype, tuple(int(d) for d in spec.shape), load(number))
            for number, (name, spec) in enumerate(zip(part.outputs, entry.outputs, strict=True))
        }

    def _run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        entry = self.plan.record.entries[0]
        arrays = [np.empty([int(d) for d in spec.shape], DTYPES[spec.dtype].storage) for spec in entry.outputs]
        call_entry(self.code, entry.symbol, [np.ascontiguousarray(each) for each in inputs], arrays)
        return arrays
