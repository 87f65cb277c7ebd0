"""The net below every other kernel: any op that MLIR can bufferize, as plain loops on one thread.

Slow is allowed here, wrong is not. The dispatch's own function is bufferized by upstream passes and called with memref descriptors; temporaries inside
come from malloc.
"""

from __future__ import annotations

from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Launch
from llmos.compiler.ir import PassManager, ir
from llmos.runtime.errors import UnsupportedError

BUFFERIZE = (
    "linalg-generalize-named-ops",
    "convert-shape-to-std",
    "refback-generalize-tensor-pad",
    "refback-generalize-tensor-concat",
    "tm-tensor-bufferize",
    "one-shot-bufferize{copy-before-write bufferize-function-boundaries function-boundary-type-conversion=identity-layout-map}",
    "buffer-results-to-out-params{hoist-static-allocs=true}",
    "func.func(buffer-deallocation-pipeline)",
    "func.func(tm-tensor-to-loops)",
    "func.func(refback-munge-memref-copy)",
    "func.func(convert-linalg-to-loops)",
    "func.func(lower-affine)",
)


def emit_fallback(module: ir.Module, dispatch: Dispatch) -> Launch:
    """Append the kernel of a `fallback` dispatch."""
    raise UnsupportedError(f"no kernel yet for {_names(dispatch)}")


def _names(dispatch: Dispatch) -> str:
    return ", ".join(sorted({op.name for op in dispatch.block.operations if op.name not in ("func.return", "arith.constant", "tensor.empty")}))


__all__ = ["BUFFERIZE", "PassManager", "emit_fallback"]
