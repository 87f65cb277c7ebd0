"""The `kernels` stage to LLVM IR text: MLIR's conversions to the LLVM dialect, and its translation."""

from llmos.compiler.codegen.llvm_text import for_llvm_22
from llmos.compiler.ir.bindings import PassManager, ir, translate_module_to_llvmir
from llmos.runtime.errors import PassError

LOWERING = (
    # A copy between strided buffers would call a function of MLIR's runtime; as loops it needs none.
    "func.func(refback-munge-memref-copy)",
    "convert-linalg-to-loops",
    "convert-vector-to-scf",
    "lower-affine",
    "convert-scf-to-cf",
    "expand-strided-metadata",
    "lower-affine",  # again: expand-strided-metadata computes offsets with affine.apply
    "convert-vector-to-llvm{enable-x86=true}",
    "convert-math-to-llvm",  # what expand-math leaves to the processor: sqrt, fma, floor, ctlz, ...
    "convert-complex-to-llvm",
    "convert-arith-to-llvm",
    "finalize-memref-to-llvm",
    "convert-index-to-llvm",
    "convert-func-to-llvm",
    "convert-cf-to-llvm",
    "convert-ub-to-llvm",
    "reconcile-unrealized-casts",
)


def lower_to_llvm_dialect(module: ir.Module) -> None:
    """Rewrite a `kernels` stage module (func, arith, scf, cf, vector, math, memref, affine, index, llvm) in place to the LLVM dialect.

    Raises PassError if an operation is left that has no lowering.
    """
    with module.context:
        try:
            manager = PassManager.parse(f"builtin.module({','.join(LOWERING)})")
            manager.enable_verifier(False)  # after each pass it takes half of the time; the result is verified below
            manager.run(module.operation)
            module.operation.verify()
        except ir.MLIRError as error:
            raise PassError(f"the lowering to LLVM failed: {error}") from error
    left = sorted({op.name for op in _foreign_operations(module.operation)})
    if left:
        raise PassError(f"no lowering to LLVM for {', '.join(left)}; expand or replace it before the LLVM stage")


def _foreign_operations(root: ir.Operation) -> list[ir.Operation]:
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if not op.name.startswith(("llvm.", "builtin.module")):
            found.append(op)
        return ir.WalkResult.ADVANCE

    root.walk(visit)
    return found


def to_llvm_ir(module: ir.Module) -> str:
    """LLVM IR text that llvmlite reads, from a module in the LLVM dialect."""
    return for_llvm_22(translate_module_to_llvmir(module.operation))
