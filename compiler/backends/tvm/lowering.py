"""A scheduled function of TIR to LLVM IR text that joins the module of other kernels.

Of TVM only passes and the translation to LLVM run; optimization and code generation are those of all kernels (codegen/llvm.py), since
TVM's own would let LLVM fuse multiplications with additions as it likes. Nothing of TVM's runtime is called.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import llvmlite.binding as llvmlite
import tvm
from tvm import s_tir, tirx
from tvm.ir import PointerType

from llmos.compiler.backends.tvm.expressions import Expr
from llmos.compiler.backends.tvm.schedules import Scheduled
from llmos.runtime.errors import PassError, UnsupportedError

# Indices stay 64 bits wide, and nothing decides what is unsafe to compute: a select's both sides are computed anyway.
_TO_LOOPS = (
    tirx.transform.ConvertSSA,
    s_tir.transform.LowerInitBlock,
    s_tir.transform.PlanAndUpdateBufferAllocationLocation,
    s_tir.transform.ConvertBlocksToOpaque,
    s_tir.transform.CompactBufferAllocation,
    s_tir.transform.StmtSimplify,
    s_tir.transform.LowerOpaqueBlock,
    tirx.transform.FlattenBuffer,
)
_TO_LLVM = (
    tirx.transform.StmtSimplify,
    s_tir.transform.LoopPartition,
    tirx.transform.VectorizeLoop,
    tirx.transform.StorageRewrite,
    tirx.transform.UnrollLoop,
    tirx.transform.StmtSimplify,
    tirx.transform.RemoveNoOp,
    tirx.transform.LowerIntrin,
)

# What TVM writes that is not the function: debugging information, tables that its runtime fills, for which processor it is, and where it
# takes buffers to lie. Integers wrap, as those of arith do; a multiply-add is one.
_DROPPED = re.compile(
    r"^    #dbg_.*\n|^@__.*\n|^@llvm\.global_ctors.*\n|^define [^@\n]*@__tvm_module_startup\([\s\S]*?^}\n|^!llvm\..*\n|^target .*\n"
    r"|^ +(?:tail )?call void @llvm\.assume\(.*\n"
    r"|^attributes #.*\n| #\d+\b|,? !dbg !\d+|(?<= )dllexport |(?<= )(?:nuw |nsw )+",
    re.MULTILINE,
)
_ALIGNED = re.compile(r"^( +(?:%\S+ = load|store) .*, align )\d+", re.MULTILINE)
_DECLARED = re.compile(r"^declare [^@\n]*@([\w.]+)", re.MULTILINE)


def llvm_of(made: Scheduled, name: str) -> str:
    """Return the function of one tile as LLVM IR text: its parameters are those of the function, buffers as pointers, then the grid's axes.

    Raises UnsupportedError for one that needs TVM's runtime, such as memory of a size that isn't known.
    """
    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
    try:
        module = tirx.transform.BindTarget(target)(tvm.IRModule({name: made.func.with_attr("global_symbol", name)}))
        for each in _TO_LOOPS:
            module = each()(module)
        module = tvm.IRModule({name: _of_one_tile(module[name], made.unit_axes)})
        for each in _TO_LLVM:
            module = each()(module)
        module = tvm.IRModule({name: _by_pointers(module[name])})
        text: str = tvm.get_global_func("target.build.llvm")(module, target).inspect_source("ll")
    except (RuntimeError, ValueError, TypeError) as error:
        raise UnsupportedError(f"TVM's lowering fails ({str(error).splitlines()[-1]})") from error
    return _own_function(text)


def _of_one_tile(func: Expr, unit_axes: Sequence[bool]) -> Expr:
    """The function without its outermost loops, whose variables it gets from its last parameters; those of no loop are 0."""
    axes = [tirx.Var(f"grid{number}", "int64") for number in range(len(unit_axes))]
    found = []
    statement, outside = func.body, []
    for axis, is_unit in zip(axes, unit_axes, strict=True):
        if is_unit:
            continue
        while isinstance(statement, tirx.SeqStmt):
            outside += list(statement)[:-1]
            statement = statement[len(statement) - 1]
        if not isinstance(statement, tirx.For):
            raise UnsupportedError("a dispatch of several loops")
        # That no coordinate is negative is not to be seen from a parameter, and saves corrections of divisions.
        found.append(tirx.Bind(statement.loop_var, tirx.Max(axis, tirx.IntImm("int64", 0))))
        statement = statement.body
    return tirx.PrimFunc([*func.params, *axes], tirx.SeqStmt([*outside, *found, statement]), func.ret_type, func.attrs)


def _by_pointers(func: Expr) -> Expr:
    """The function with pointers in the place of buffers."""
    params, declared = [], []
    for param in func.params:
        if tirx.is_buffer_var(param):
            pointer = tirx.Var(f"{param.name}_data", PointerType(param.ty.dtype))
            declared.append(tirx.DeclBuffer(param, data=pointer))
            params.append(pointer)
        else:
            params.append(param)
    return tirx.PrimFunc(params, tirx.SeqStmt([*declared, func.body]), func.ret_type, func.attrs)


def _own_function(text: str) -> str:
    """The text with the one function alone, of which LLVM decides everything again for our target."""
    text = _ALIGNED.sub(r"\g<1>1", _DROPPED.sub("", text)).replace("@llvm.fmuladd.", "@llvm.fma.")
    foreign = [each for each in _DECLARED.findall(text) if not each.startswith("llvm.")]
    used = sorted(each for each in foreign if text.count(f"@{each}(") > 1)
    if used:
        raise UnsupportedError(f"calls of {', '.join(used)}")
    return text


def linked(text: str, others: list[str]) -> str:
    """Return LLVM IR text with the functions of other modules in it, which see no other callers. Raises PassError."""
    context = llvmlite.create_context()
    try:
        module = llvmlite.parse_assembly(text, context)
        for other in others:
            part = llvmlite.parse_assembly(other, context)
            part.triple, part.data_layout = module.triple, module.data_layout
            module.link_in(part)
    except RuntimeError as error:
        raise PassError(f"LLVM refuses what TVM gave: {error}") from error
    return str(module)
