"""Passes for all targets: from what a front end gives to generics that every backend forms its dispatches of."""

from __future__ import annotations

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.quant.scheme import AUTO, FP8, STATIC, Scheme, parse_scheme
from llmos.passes import Pass, Upstream
from llmos.passes.channels_last import ChannelsLast
from llmos.passes.fold_weight_computation import FoldWeightComputation
from llmos.passes.hoist_extensions import HoistExtensions
from llmos.passes.quant.equalize_channels import EqualizeChannels
from llmos.passes.quant.fuse_dequantize import FuseDequantize
from llmos.passes.quant.hoist_quantize import HoistQuantize
from llmos.passes.quant.keep_quantized_weights import KeepQuantizedWeights
from llmos.passes.quant.lower_zero_points import LowerZeroPoints
from llmos.passes.quant.quantize_activations import QuantizeActivations
from llmos.passes.quant.quantize_contractions import QuantizeContractions
from llmos.passes.quant.quantize_static import QuantizeStatic
from llmos.passes.quant.quantize_tables import QuantizeTables
from llmos.passes.quant.quantize_weights import QuantizeWeights
from llmos.passes.quant.sink_dequantize import SinkDequantize
from llmos.passes.split_reductions import SplitReductions


def common_passes(options: CompileOptions) -> list[Pass]:
    """All of them, in order; they end before dispatches are formed."""
    return [*quantized_passes(options), *after_quantization()]


def quantized_passes(options: CompileOptions) -> list[Pass]:
    """To a model with all that is quantized in it."""
    return [*before_integers(options), *static_quantization(options), *integers(), *quantization(options)]


def float_passes(options: CompileOptions) -> list[Pass]:
    """Those of `quantized_passes` that come before what options.quant asks for."""
    return before_integers(options) if static_quantization(options) else before_quantization(options)


def before_quantization(options: CompileOptions) -> list[Pass]:
    """To what quantize-contractions takes: products of integers, where the model has them, and of floats."""
    return [*before_integers(options), *integers()]


def before_integers(options: CompileOptions) -> list[Pass]:
    """To what quantize-static takes, and the passes of models that are quantized."""
    is_equalized = bool(options.quant) and parse_scheme(options.quant).is_equalized
    return [*generalization(), *layout(), *([EqualizeChannels(), Upstream("cse")] if is_equalized else [])]


def static_quantization(options: CompileOptions) -> list[Pass]:
    """To a model that is quantized, where options.quant asks for recorded scales."""
    is_static = bool(options.quant) and parse_scheme(options.quant).numbers == STATIC
    return [QuantizeStatic(), Upstream("cse")] if is_static else []


def integers() -> list[Pass]:
    """To products of integers of what a model quantizes and dequantizes, and bytes between them."""
    return [HoistQuantize(), SinkDequantize(), FuseDequantize(), LowerZeroPoints()]


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
    """To the products of integers, or of floats by integers, that options.quant asks for."""
    if not options.quant:
        return []
    scheme = parse_scheme(options.quant)
    if scheme.numbers in ("w8a8", AUTO):
        return [QuantizeContractions(keep=options.keep), QuantizeTables(keep=options.keep_tables)]
    if scheme.numbers == STATIC:
        return [QuantizeTables(keep=options.keep_tables)]
    if scheme == Scheme("w4a8"):
        return [KeepQuantizedWeights(), QuantizeActivations(required=True)]
    if scheme.numbers == FP8:
        return [QuantizeWeights(bits=8, float8=True), QuantizeTables(float8=True, keep=options.keep_tables)]
    weights = QuantizeWeights(group=scheme.group, rounding=scheme.rounding) if scheme.group else QuantizeWeights(bits=8)
    activations: list[Pass] = [KeepQuantizedWeights(), QuantizeActivations()] if scheme.numbers == "w4a8" else []
    return [weights, *activations, QuantizeTables(keep=options.keep_tables)]


def after_quantization() -> list[Pass]:
    """To generics of which dispatches are formed; what depends on weights alone is computed at compile time."""
    return [
        Upstream("canonicalize"),  # again: zero points and scales that several products share
        Upstream("cse"),
        KeepQuantizedWeights(),
        FoldWeightComputation(),
        SplitReductions(),
    ]
