"""label-dispatches: say what each dispatch computes, in the field's own words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.contraction import root_contraction
from llmos.compiler.analysis.generic import Generic, combiner_of, dim_positions, is_fill
from llmos.compiler.analysis.grouped_rows import is_grouped_rows
from llmos.compiler.analysis.quantized_weights import quantized_weight_of
from llmos.compiler.ir.attributes import DEQUANTIZE, LABEL
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc, dispatch_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import DISPATCHED, LABELED
from llmos.passes._pass import Pass
from llmos.passes._property import Property


@dataclass(frozen=True)
class LabelDispatches(Pass):
    """Profiles and `llmos inspect --kernels` show the labels; no kernel depends on them.

    Before:
        func.func private @d8_row_reduction(...) attributes {llmos.dispatch = "row_reduction"} { sum, mean, rsqrt, scale and shift }
    After:
        func.func private @d8_row_reduction(...) attributes {llmos.dispatch = "row_reduction", llmos.label = "layer_norm"}

    A contraction is "matmul", "batch_matmul", "conv" or "winograd" (a convolution by that algorithm), with what its epilogue holds:
    "matmul+bias+gelu", "matmul+bias+add".
    """

    requires: ClassVar[frozenset[Property]] = frozenset({DISPATCHED})
    ensures: ClassVar[frozenset[Property]] = frozenset({LABELED})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Set LABEL of every dispatch."""
        for func in dispatch_functions(module):
            func.attributes[LABEL] = ir.StringAttr.get(label_of(func))


def label_of(func: ir.Operation) -> str:
    """Return the label of one dispatch function."""
    kind = DispatchFunc(func).kind
    generics = [
        Generic(op.operation) for op in func.regions[0].blocks[0].operations if op.name == "linalg.generic" and not is_fill(op.operation)
    ]
    if kind in ("attention", "paged_attention", "scatter"):
        return kind
    if kind in ("contraction", "winograd"):
        root = "winograd" if kind == "winograd" else _contraction(generics)
        return "+".join([root, *_epilogue(generics)]).replace("sigmoid+scale", "silu")
    if kind == "grouped_contraction":
        return "+".join([f"grouped_{_contraction(generics)}", *_epilogue([each for each in generics if not is_grouped_rows(each.op)])])
    if kind == "contraction_window":
        windows = [i for i, g in enumerate(generics) if g.reduction_dims][1]  # behind the contraction
        parts = [
            _contraction(generics),
            *_epilogue(generics[:windows]),
            _windows(generics[windows : windows + 1]),
            *_epilogue(generics[windows:]),
        ]
        return "+".join(parts)
    if kind == "scan":
        return "scan"
    if kind == "sort":
        return "top_k" if any(op.name == "tensor.extract_slice" for op in func.regions[0].blocks[0].operations) else "sort"
    if kind == "row_reduction":
        return _row(generics)
    if kind == "elementwise":
        return _elementwise(func, generics)
    return "+".join(sorted({op.name for op in func.regions[0].blocks[0].operations} - {"func.return", "arith.constant", "tensor.empty"}))


def _contraction(generics: list[Generic]) -> str:
    root = root_contraction(g.op for g in generics)
    if any(
        p is None and not isinstance(e, ir.AffineConstantExpr)
        for a in (root.lhs_map, root.rhs_map)
        for p, e in zip(dim_positions(a), a.results, strict=True)
    ):
        return "conv"
    shared = {d for d in root.batch if d in dim_positions(root.lhs_map) and d in dim_positions(root.rhs_map)}
    numbers = quantized_weight_of(root)
    if shared or numbers is None:
        return "batch_matmul" if shared else "matmul"
    return f"matmul_w{numbers.format.bits}{'a8' if root.has_byte_rows else ''}"


def _epilogue(generics: list[Generic]) -> list[str]:
    """Bias, activation, residual and the like, in order."""
    found: list[str] = []
    for generic in generics:
        if generic.is_elementwise and DEQUANTIZE not in generic.op.attributes:
            found += _activation(generic) or _arithmetic(generic)
    return found


def _activation(generic: Generic) -> list[str]:
    names = Counter(op.name for op in generic.body.operations)
    if names["math.erf"]:
        return ["gelu"]
    if names["math.tanh"]:
        return ["gelu_tanh"] if names["arith.mulf"] >= 3 else ["tanh"]
    if names["math.exp"] and names["arith.divf"]:
        quotient = next(op for op in generic.body.operations if op.name == "arith.divf")
        gated = names["arith.mulf"] or isinstance(quotient.operands[0].owner, ir.Block)  # x * sigmoid(x), or x / (1 + exp(-x))
        return ["silu"] if gated else ["sigmoid"]
    if names["arith.maximumf"]:
        return ["clamp"] if names["arith.minimumf"] else ["relu"]
    return []


def _arithmetic(generic: Generic) -> list[str]:
    """An addition of a vector is a bias, one of a full tensor a residual."""
    found: list[str] = []
    for op in generic.body.operations:
        if op.name in ("arith.addf", "arith.subf"):
            ranks = [len(v.type.shape) for v in generic.inputs if isinstance(v.type, ir.RankedTensorType)]
            found.append("bias" if ranks and min(ranks) < max(*ranks, generic.rank) else "add")
        elif op.name == "arith.mulf":
            found.append("scale")
    return found[:1]


def _row(generics: list[Generic]) -> str:
    names = Counter(op.name for g in generics for op in g.body.operations)
    reductions = [c.name for g in generics if not g.is_elementwise for i in range(len(g.inits)) if (c := combiner_of(g, i)) is not None]
    maxima = sum(1 for name in reductions if name.startswith("arith.max"))
    sums = sum(1 for name in reductions if name == "arith.addf")
    if maxima and sums and names["math.exp"]:
        return "log_softmax" if names["math.log"] else "softmax"
    if sums >= 2 and (names["math.rsqrt"] or names["math.sqrt"]):
        return "layer_norm"
    if sums == 1 and names["math.rsqrt"]:
        return "rms_norm"
    if sums == 1 and names["math.sqrt"]:
        return "l2_norm"
    if names["linalg.index"] and reductions[1:] == ["arith.minsi"]:
        return "argmax" if reductions[0].startswith("arith.max") else "argmin"
    return "reduce_" + "_".join(sorted({name.removeprefix("arith.").rstrip("fi") for name in reductions})) if reductions else "reduce"


def _windows(generics: list[Generic]) -> str:
    """A reduction with lanes along the output, and what is fused with it."""
    multiplies = any(op.name == "arith.mulf" for g in generics for op in g.body.operations)
    return "conv_depthwise" if multiplies and any(g.num_inputs == 2 for g in generics if not g.is_elementwise) else "pool_or_reduce"


def _elementwise(func: ir.Operation, generics: list[Generic]) -> str:
    names = Counter(op.name for g in generics for op in g.body.operations)
    ops = {op.name for op in func.regions[0].blocks[0].operations}
    if any(not g.is_elementwise for g in generics):
        return _windows(generics)
    if "tensor.pad" in ops:
        return "pad"
    if "tensor.concat" in ops:
        return "concat"
    if names["tensor.extract"]:
        return "gather"
    arithmetic = [activation for g in generics for activation in _activation(g)]
    return "+".join(arithmetic) if arithmetic else "elementwise" if sum(names.values()) > names["linalg.yield"] else "copy"
