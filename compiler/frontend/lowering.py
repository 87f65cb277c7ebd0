"""torch-mlir's lowering as a child process of fallback subgraphs.py: torch ops on stdin, linalg on stdout. Doesn't import torch."""

from __future__ import annotations

from llmos.compiler.ir.bindings import PassManager, context, ir
from llmos.runtime.children import serve
from llmos.runtime.errors import UnsupportedError

TO_BACKEND = "builtin.module(func.func(torch-match-quantized-custom-ops),torchdynamo-export-to-torch-backend-pipeline{extra-library=})"
TO_LINALG = (
    "builtin.module("
    "torch-backend-to-linalg-on-tensors-backend-pipeline{allow-non-finites=true},"
    "func.func(canonicalize,resolve-ranked-shaped-type-result-dims,canonicalize,cse))"
)
_VIEWS = ("torch.aten.view", "torch.aten.reshape", "torch.aten._unsafe_view", "torch.aten._reshape_alias")


def answer(request: bytes) -> bytes:
    """Lower a module of torch ops, as text, to linalg text. Raises UnsupportedError with torch-mlir's first error."""
    module = ir.Module.parse(request.decode(), context())
    try:
        lower(module)
    except ir.MLIRError as error:
        reason = next((str(each.message) for each in error.error_diagnostics), str(error))
        raise UnsupportedError(reason.splitlines()[0].split(": %")[0]) from None
    lowered: str = module.operation.get_asm(enable_debug_info=False)
    return lowered.encode()


def lower(module: ir.Module) -> None:
    """Lower torch ops to linalg in place. Raises MLIRError, or UnsupportedError for a view that torch-mlir miscompiles."""
    PassManager.parse(TO_BACKEND, module.context).run(module.operation)
    reject_dynamic_views(module)
    PassManager.parse(TO_LINALG, module.context).run(module.operation)


def reject_dynamic_views(module: ir.Module) -> None:
    """Raise UnsupportedError for a view of two dynamic dims, which torch-mlir silently miscompiles."""
    bad: list[str] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name in _VIEWS and any(_num_dynamic(value) > 1 for value in (op.operands[0], op.results[0])):
            bad.append(f"{op.name}: {op.operands[0].type} to {op.results[0].type}")
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    if bad:
        raise UnsupportedError(
            f"an op decomposes to a reshape of dynamic sizes that can't be lowered safely ({bad[0]}); give it static sizes"
        )


def _num_dynamic(value: ir.Value) -> int:
    """Count the dynamic dimensions of a `!torch.vtensor<[?,4],f32>`; an unknown rank counts as many."""
    text = str(value.type)
    return text.split("]")[0].count("?") if "[" in text else 2


if __name__ == "__main__":
    serve(answer)
