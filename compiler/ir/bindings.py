"""MLIR's Python bindings: the only module that imports torch_mlir, so that a change of wheel touches one file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torch_mlir import ir
from torch_mlir._mlir_libs._mlirDialectsLLVM import translate_module_to_llvmir
from torch_mlir._mlir_libs._torchMlir import register_dialect
from torch_mlir.passmanager import PassManager

if TYPE_CHECKING:
    from torch_mlir.dialects import arith, cf, func, linalg, math, scf, tensor

__all__ = [
    "PassManager",
    "arith",
    "cf",
    "context",
    "execution_engine",
    "func",
    "fx_importer",
    "ir",
    "linalg",
    "math",
    "scf",
    "tensor",
    "torch_decompositions",
    "translate_module_to_llvmir",
]

_DIALECTS = ("arith", "cf", "func", "linalg", "math", "scf", "tensor")


def __getattr__(name: str) -> Any:
    """A dialect's Python ops, loaded when first named: a process that only runs passes (frontend/lowering.py) starts in half the time."""
    if name not in _DIALECTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"torch_mlir.dialects.{name}")


def context() -> ir.Context:
    """A fresh context with every upstream dialect and torch-mlir's registered."""
    fresh = ir.Context()
    register_dialect(fresh)
    fresh.allow_unregistered_dialects = False
    with fresh, ir.Location.unknown():
        # tm_tensor is in no registry: a pass that needs it brings it along, so that text with its ops can be parsed.
        PassManager.parse("builtin.module(func.func(convert-torch-to-tmtensor))").run(ir.Module.create().operation)
    return fresh


def fx_importer(context: ir.Context) -> Any:
    """torch-mlir's importer of FX graphs; it imports torch, so it is loaded when first needed."""
    from torch_mlir.extras.fx_importer import FxImporter

    return FxImporter(context=context)


def torch_decompositions() -> dict[Any, Any]:
    """The decompositions of aten ops that torch-mlir's lowering expects."""
    from torch_mlir.extras.fx_decomp_util import get_decomposition_table

    return dict(get_decomposition_table())


def execution_engine(module: ir.Module, opt_level: int) -> Any:
    """Return MLIR's just-in-time engine for a module in the LLVM dialect (tests' reference executor); `opt_level` is LLVM's, 0 to 3."""
    from torch_mlir.execution_engine import ExecutionEngine

    return ExecutionEngine(module, opt_level=opt_level)
