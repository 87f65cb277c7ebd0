"""The reference interpreter: a program on tensors run op by op, each by MLIR's reference lowering (compiler/execution/reference.py).

Runs the linalg stage of docs/architecture.md and the module after any pass, up to the planned dispatches. Every intermediate value is
kept, so that two stages of a compile, or a stage and the compiled code, can be compared. Identical ops are compiled once, also across
programs that share an `OpCache`: the layers of a model, and the stages of its compile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llmos.compiler.execution.reference import OPT_LEVEL, CompiledFunctions, Result, element_dtype
from llmos.compiler.ir.attributes import strip
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import Argument, EntryFunc, callee_of, functions_of
from llmos.compiler.ir.ops import REMATERIALIZABLE
from llmos.compiler.ir.weights import Weight
from llmos.runtime.artifact.bfloat16 import to_bfloat16

# Cloned into their users, since they compute no tensors.
_FREE = REMATERIALIZABLE | {"linalg.fill"}
_NAME = "reference_op"
FOLD = "fold"  # the function of compile-time computations: its results are weights by name


@dataclass(frozen=True)
class Step:
    """One executed op of a function, with its tensors."""

    op: ir.Operation
    operands: tuple[ir.Value, ...]  # all tensors that the op depends on, also through scalars and in regions
    outputs: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Trace:
    """One run: every tensor value of the function, its steps in order, and its results."""

    values: Mapping[ir.Value, np.ndarray]
    steps: tuple[Step, ...]
    outputs: tuple[np.ndarray, ...]


@dataclass
class OpCache:
    """Compiled ops by text. opt_level: of LLVM."""

    opt_level: int = OPT_LEVEL
    _functions: dict[str, tuple[CompiledFunctions, str]] = field(default_factory=dict)

    def add(self, wanted: Iterable[str], ctx: ir.Context) -> None:
        """Compile the missing ops together. Raises UnsupportedError if upstream can't lower one."""
        missing = [text for text in dict.fromkeys(wanted) if text not in self._functions]
        if not missing:
            return
        named = [text.replace(f"@{_NAME}", f"@op{number}") for number, text in enumerate(missing)]
        with ctx:
            compiled = CompiledFunctions(ir.Module.parse("\n".join(named)), self.opt_level)
        self._functions |= {text: (compiled, f"op{number}") for number, text in enumerate(missing)}

    def call(self, text: str, arrays: Sequence[np.ndarray], results: Sequence[Result]) -> list[np.ndarray]:
        functions, name = self._functions[text]
        return functions.call(name, arrays, results)


@dataclass(frozen=True)
class _Outlined:
    """An op outlined as a function of tensors."""

    text: str
    operands: tuple[ir.Value, ...]
    results: tuple[Result, ...]


def reference_of(
    module: ir.Module, weights: Mapping[str, Weight | np.ndarray], opt_level: int = OPT_LEVEL
) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Return the module's current content as a function of its inputs, independent of later passes. opt_level: of LLVM."""
    interpreter = Interpreter(ir.Module.parse(str(module), module.context), OpCache(opt_level))
    return lambda inputs: list(interpreter.run(inputs, weights, is_traced=False).outputs)


class Interpreter:
    """Runs the functions of one module, which must not change."""

    def __init__(self, module: ir.Module, cache: OpCache | None = None) -> None:
        self.module = module
        self._cache = cache or OpCache()
        self._functions = functions_of(module)
        self._outlined: dict[ir.Operation, _Outlined] = {}

    @property
    def main(self) -> ir.Operation:
        return EntryFunc.of(self.module).op

    def run(self, inputs: Sequence[np.ndarray], weights: Mapping[str, Weight | np.ndarray], is_traced: bool = True) -> Trace:
        """Run the entry; bfloat16 as uint16. is_traced: whether values that nothing reads any more are kept.

        Raises UnsupportedError if upstream can't lower an op.
        """
        given = {**weights, **self.folded(weights)}
        queue = iter([_as_pairs(array) for array in inputs])
        entry = EntryFunc(self.main)
        arguments = [next(queue) if each.is_input else _bound(each, given) for each in entry.arguments]
        trace = self.run_function(entry.op, arguments, is_traced)
        declared = [_as_declared(array, each.dtype) for array, each in zip(trace.outputs, entry.results, strict=True)]
        return replace(trace, outputs=tuple(declared))

    def folded(self, weights: Mapping[str, Weight | np.ndarray]) -> dict[str, np.ndarray]:
        """Return the weights that the module's function `fold` computes, by name."""
        if FOLD not in self._functions:
            return {}
        fold = EntryFunc(self._functions[FOLD])
        outputs = self.run_function(fold.op, [_bound(each, weights) for each in fold.arguments], is_traced=False).outputs
        return {each.name: array for each, array in zip(fold.results, outputs, strict=True)}

    def run_function(self, function: ir.Operation, arguments: Sequence[np.ndarray], is_traced: bool = True) -> Trace:
        """Run one function on tensors. is_traced: as for `run`."""
        block = function.regions[0].blocks[0]
        steps = [op.operation for op in block.operations if self._is_step(op.operation)]
        self._prepare(steps)
        values: dict[ir.Value, np.ndarray] = dict(zip(block.arguments, arguments, strict=True))
        returned = list(list(block.operations)[-1].operands)
        dead = {} if is_traced else self._dead_after(steps, returned)
        done = []
        for op in steps:
            outlined = self._outlined[op]
            outputs = self.apply(op, [values[value] for value in outlined.operands])
            values.update(zip([r for r in op.results if _is_tensor(r)], outputs, strict=True))
            if is_traced:
                done.append(Step(op, outlined.operands, tuple(outputs)))
            for value in dead.get(op, ()):
                values.pop(value, None)
        return Trace(values, tuple(done), tuple(self._returned(value, values) for value in returned))

    def _dead_after(self, steps: Sequence[ir.Operation], returned: Sequence[ir.Value]) -> dict[ir.Operation, list[ir.Value]]:
        """Return the values that each step reads last."""
        owners = [value.owner.operation for value in returned if not isinstance(value.owner, ir.Block)]
        unstepped = [op for op in owners if not self._is_step(op)]
        self._prepare(unstepped)
        kept = {*returned, *(value for op in unstepped for value in self._outlined[op].operands)}
        last = {value: op for op in steps for value in self._outlined[op].operands if value not in kept}
        found: dict[ir.Operation, list[ir.Value]] = {}
        for value, op in last.items():
            found.setdefault(op, []).append(value)
        return found

    def apply(self, op: ir.Operation, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run one op of an executed function on other tensors than `Step.operands`."""
        outlined = self._outlined[op]
        return self._cache.call(outlined.text, arrays, outlined.results)

    def _prepare(self, steps: Sequence[ir.Operation]) -> None:
        fresh = {op: self._outline(op) for op in steps if op not in self._outlined}
        self._cache.add([each.text for each in fresh.values()], self.module.context)
        self._outlined |= fresh

    def _is_step(self, op: ir.Operation) -> bool:
        return op.name not in _FREE and op.name != "func.return" and any(_is_tensor(result) for result in op.results)

    def _returned(self, value: ir.Value, values: dict[ir.Value, np.ndarray]) -> np.ndarray:
        """Return a returned value; one without a step is a constant or a fill."""
        if value not in values:
            op = value.owner.operation
            self._prepare([op])
            outlined = self._outlined[op]
            [values[value]] = self.apply(op, [values[each] for each in outlined.operands])
        return values[value]

    def _outline(self, op: ir.Operation) -> _Outlined:
        """Outline an op as a function that computes it and the scalars that it needs."""
        order: list[ir.Operation] = []
        tensors: dict[ir.Value, None] = {}
        _need(op, order, tensors)
        results = [result for result in op.results if _is_tensor(result)]
        callees = {name: f"{_NAME}_callee{i}" for i, name in enumerate(dict.fromkeys(name for each in order for name in _callees(each)))}
        with self.module.context, ir.Location.unknown():
            holder = ir.Module.create()  # the module owns the function
            function = _function(holder, list(tensors), order, results, callees)
            texts = [function.get_asm(use_local_scope=True), *[self._callee_text(name, new) for name, new in callees.items()]]
        return _Outlined("\n".join(texts), tuple(tensors), tuple(Result(len(r.type.shape), element_dtype(r.type)) for r in results))

    def _callee_text(self, name: str, new_name: str) -> str:
        copy = self._functions[name].clone()
        strip(copy)
        copy.attributes["sym_name"] = ir.StringAttr.get(new_name)
        if "arg_attrs" in copy.attributes:
            del copy.attributes["arg_attrs"]
        return str(copy.get_asm(use_local_scope=True))


def _need(op: ir.Operation, order: list[ir.Operation], tensors: dict[ir.Value, None]) -> None:
    """Order the op and the ops cloned with it, and collect the tensors that it reads."""
    if op in order:
        return
    for value in _captured(op):
        owner = value.owner
        if isinstance(owner, ir.Block) or (_is_tensor(value) and owner.operation.name not in _FREE):
            tensors.setdefault(value)
        else:
            _need(owner.operation, order, tensors)
    order.append(op)


def _captured(op: ir.Operation) -> list[ir.Value]:
    """Return the operands of an op and of ops inside it that are defined outside."""
    found: dict[ir.Value, None] = {}
    inner: set[ir.Value] = set()

    def visit(each: ir.Operation) -> None:
        for operand in each.operands:
            if operand not in inner:
                found.setdefault(operand)
        inner.update(each.results)
        for region in each.regions:
            for block in region.blocks:
                inner.update(block.arguments)
                for child in block.operations:
                    visit(child.operation)

    visit(op)
    return list(found)


def _function(
    holder: ir.Module, tensors: Sequence[ir.Value], order: Sequence[ir.Operation], results: Sequence[ir.Value], callees: Mapping[str, str]
) -> ir.Operation:
    """Build a public function of tensors with clones of ops."""
    kind = ir.FunctionType.get([value.type for value in tensors], [result.type for result in results])
    attributes = {
        "sym_name": ir.StringAttr.get(_NAME),
        "function_type": ir.TypeAttr.get(kind),
        "llvm.emit_c_interface": ir.UnitAttr.get(),
    }
    with ir.InsertionPoint(holder.body):
        function = ir.Operation.create("func.func", regions=1, attributes=attributes)
    block = function.regions[0].blocks.append(*kind.inputs)
    mapping: dict[ir.Value, ir.Value] = dict(zip(tensors, block.arguments, strict=True))
    with ir.InsertionPoint(block):
        for op in order:
            copy = op.clone()
            _adapt(copy, mapping, callees)
            mapping.update(zip(op.results, copy.results, strict=True))
        ir.Operation.create("func.return", operands=[mapping[result] for result in results])
    return function


def _adapt(op: ir.Operation, mapping: Mapping[ir.Value, ir.Value], callees: Mapping[str, str]) -> None:
    """Remap a clone and the ops inside it to the function's values and callees; drop attributes of our passes."""
    for i, operand in enumerate(op.operands):
        if operand in mapping:
            op.operands[i] = mapping[operand]
    if op.name == "func.call":
        op.attributes["callee"] = ir.FlatSymbolRefAttr.get(callees[callee_of(op)])
    strip(op)  # what our passes note on an op would make ops that are alike look different
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                _adapt(inner.operation, mapping, callees)


def _callees(op: ir.Operation) -> Iterator[str]:
    if op.name == "func.call":
        yield callee_of(op)
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield from _callees(inner.operation)


def _bound(argument: Argument, weights: Mapping[str, Weight | np.ndarray]) -> np.ndarray:
    """Return the weight of an argument, truncated to bfloat16 if the argument is."""
    weight = weights[argument.name]
    array = weight.array if isinstance(weight, Weight) else weight
    return to_bfloat16(array) if argument.dtype == "bfloat16" and array.dtype == np.float32 else array


def _as_declared(array: np.ndarray, dtype: str) -> np.ndarray:
    """Convert to the dtype that the entry declares: unsigned integers and complex numbers, which the module's types can't express."""
    if dtype.startswith("complex"):
        return np.ascontiguousarray(array).view(dtype).reshape(array.shape[:-1])
    return array.view(dtype) if dtype.startswith("uint") else array


def _as_pairs(array: np.ndarray) -> np.ndarray:
    """Convert complex numbers to the module's form [..., 2], real and imaginary part."""
    if array.dtype.kind != "c":
        return array
    return np.ascontiguousarray(array).reshape(*array.shape, 1).view(array.real.dtype)


def _is_tensor(value: ir.Value) -> bool:
    return isinstance(value.type, ir.RankedTensorType)
