"""Passes for all targets: from what a front end gives to generics that every backend forms its dispatches of."""

from __future__ import annotations

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.quant.scheme import parse_scheme
from llmos.passes import Pass, Upstream
from llmos.passes.channels_last import ChannelsLast
from llmos.passes.fold_weight_computation import FoldWeightComputation
from llmos.passes.hoist_extensions import HoistExtensions
from llmos.passes.quant.fuse_dequantize import FuseDequantize
from llmos.passes.quant.keep_quantized_weights import KeepQuantizedWeights
from llmos.passes.quant.lower_zero_points import LowerZeroPoints
from llmos.passes.quant.quantize_contractions import QuantizeContractions
from llmos.passes.quant.quantize_tables import QuantizeTables
from llmos.passes.quant.quantize_weights import QuantizeWeights
from llmos.passes.split_reductions import SplitReductions


def common_passes(options: CompileOptions) -> list[Pass]:
    """All of them, in order; they end before dispatches are formed."""
    return [*generalization(), *layout(), *quantization(options), FoldWeightComputation(), SplitReductions()]


def generalization() -> list[Pass]:
    """To linalg.generic ops alone."""
    return [
        Upstream("canonicalize"),
        Upstream("cse"),
        Upstream("convert-elementwise-to-linalg", anchor="func.func"),
        Upstream("linalg-generalize-named-ops", anchor="func.func"),
        Upstream("canonicalize"),  # again: generalizing leaves constants and dead destinations behind
        Upstream("cse"),
        HoistExtensions(),
    ]


def layout() -> list[Pass]:
    """To images whose channels lie innermost."""
    return [
        ChannelsLast(),
        Upstream("canonicalize"),  # again: moves that undo each other
        Upstream("cse"),
    ]


def quantization(options: CompileOptions) -> list[Pass]:
    """To products of integers: those that the model has, and those of options.quant."""
    return [
        FuseDequantize(),
        LowerZeroPoints(),
        *asked_quantization(options),
        Upstream("canonicalize"),  # again: zero points and scales that several products share
        Upstream("cse"),
        KeepQuantizedWeights(),
    ]


def asked_quantization(options: CompileOptions) -> list[Pass]:
    """The passes of options.quant."""
    if not options.quant:
        return []
    scheme = parse_scheme(options.quant)
    if scheme.numbers == "w8a8":
        return [QuantizeContractions(), QuantizeTables()]
    return [QuantizeWeights(group=scheme.group) if scheme.group else QuantizeWeights(bits=8), QuantizeTables()]
