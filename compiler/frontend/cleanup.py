"""The last step to the linalg stage: drop checks, take sizes from function arguments, remove unused weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from llmos.compiler.ir.bindings import PassManager, func, ir
from llmos.runtime.errors import PassError, UnsupportedError

T = TypeVar("T")

TIDY = "builtin.module(func.func(canonicalize,cse))"
RESOLVE = "builtin.module(func.func(resolve-ranked-shaped-type-result-dims,canonicalize,cse))"
ALLOWED = ("linalg", "tensor", "arith", "math", "affine", "func", "scf", "tm_tensor", "builtin", "complex")


def clean(module: ir.Module, num_inputs: int, weights: Sequence[T]) -> list[T]:
    """Clean up `main` in place; return those of `weights` (its arguments after the inputs) that it still takes.

    Raises UnsupportedError for ops that the linalg stage doesn't allow, PassError for IR that MLIR refuses.
    """
    drop_assertions(module)
    _run(TIDY, module)
    if _has_inner_dims(module):
        _run(RESOLVE, module)
    used = drop_unused_arguments(module, num_inputs, weights)
    check_dialects(module)
    if not module.operation.verify():
        raise AssertionError("the imported module doesn't verify")
    return used


def _run(pipeline: str, module: ir.Module) -> None:
    try:
        PassManager.parse(pipeline, module.context).run(module.operation)
    except ir.MLIRError as error:
        raise PassError(f"the front end made IR that MLIR refuses: {' '.join(str(error).split())}") from None


def main_function(module: ir.Module) -> func.FuncOp:
    """Return the module's public function."""
    return next(op for op in module.body.operations if isinstance(op, func.FuncOp) and op.name.value == "main")


def drop_assertions(module: ir.Module) -> None:
    """Drop cf.assert, which guards what export has proved (shapes) or what the kernel checks itself (indices)."""
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name == "cf.assert":
            found.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    for op in found:
        op.erase()


def _has_inner_dims(module: ir.Module) -> bool:
    inner: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name == "tensor.dim" and not isinstance(op.operands[0].owner, ir.Block):
            inner.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return bool(inner)


def drop_unused_arguments(module: ir.Module, num_inputs: int, weights: Sequence[T]) -> list[T]:
    """Erase the arguments of `main` after the first `num_inputs` that nothing uses; return the weights of the others."""
    function = main_function(module)
    block = function.entry_block
    used = [i for i, argument in enumerate(block.arguments) if i < num_inputs or any(True for _ in argument.uses)]
    for i in reversed(range(len(block.arguments))):
        if i not in used:
            block.erase_argument(i)
    old = ir.FunctionType(function.type)
    with module.context:
        function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([a.type for a in block.arguments], old.results))
    return [weights[i - num_inputs] for i in used if i >= num_inputs]


def check_dialects(module: ir.Module) -> None:
    """Raise UnsupportedError for ops that the linalg stage doesn't allow."""
    foreign: set[str] = set()

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name.split(".")[0] not in ALLOWED or op.name in ("func.call", "scf.while"):  # nothing bounds these
            foreign.add(op.name)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    if foreign:
        raise UnsupportedError(f"these ops are left after lowering: {', '.join(sorted(foreign))}")
