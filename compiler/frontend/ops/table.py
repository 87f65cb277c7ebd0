"""The table of directly lowered aten ops: overload -> function `(builder, result, *args, **kwargs)`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as KIND

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.ops import (
    adaptive,
    attention,
    bits,
    contractions,
    data_sizes,
    data_slices,
    data_unique,
    eigen,
    elementwise,
    factorizations,
    grouped_linear,
    indexing,
    orders,
    paged_attention,
    pools,
    quantization,
    quantized_decomposed,
    randomness,
    recasts,
    recurrent,
    reductions,
    scans,
    scatters,
    searches,
    series,
    shapes,
    special,
    strided,
    suppression,
    windows,
)

Lowering = Callable[..., Any]

# Ops that change no values: shape and metadata checks that export has already done.
IGNORED = frozenset(
    {
        "aten._assert_tensor_metadata.default",
        "aten._assert_scalar.default",
        "aten._assert_async.msg",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
    }
)


@functools.cache
def table() -> Mapping[str, Lowering]:
    """Return the lowerings by overload name ("aten.add.Tensor"); each takes the builder, the result's Meta and the call's arguments."""
    groups = (
        _arithmetic(),
        _comparisons(),
        _activations(),
        _conversions(),
        _views(),
        _creation(),
        _moves(),
        _indexing(),
        scatters.table(),
        _reductions(),
        _norms(),
        _products(),
        _windows(),
        _special_functions(),
        _orders(),
        _scans(),
        series.table(),
        randomness.refusals(),
        _factorizations(),
    )
    found = {f"aten.{name}": lowering for group in groups for names, lowering in group.items() for name in names.split()}
    return {
        **found,
        "llmos.lstm_scan.default": recurrent.lstm_scan,
        "llmos.gru_scan.default": recurrent.gru_scan,
        "llmos.rnn_scan.default": recurrent.rnn_scan,
        "llmos.philox.default": randomness.philox,
        **quantized_decomposed.table(),
        **grouped_linear.table(),
        **paged_attention.table(),
        "llmos.quantize.default": quantization.quantize,
        "llmos.dequantize.default": quantization.dequantize,
        "llmos.scatter_nd.default": scatters.scatter_nd,
        "llmos.non_max_suppression.default": suppression.non_max_suppression,
        "llmos.pivot_matrix.default": factorizations.pivot_matrix,
    }


def _arithmetic() -> dict[str, Lowering]:
    e, unary, binary = elementwise, elementwise.unary, elementwise.binary
    same, to_float = KIND.DEFAULT, KIND.INT_TO_FLOAT
    floats = {
        "exp": s.exp, "exp2": s.exp2, "expm1": s.expm1, "log": s.log, "log2": s.log2, "log10": s.log10, "log1p": s.log1p,
        "sqrt": s.sqrt, "rsqrt": s.rsqrt, "sin": s.sin, "cos": s.cos, "tan": s.tan, "asin": s.asin, "acos": s.acos, "atan": s.atan,
        "sinh": s.sinh, "cosh": s.cosh, "tanh": s.tanh, "asinh": s.asinh, "acosh": s.acosh, "atanh": s.atanh,
        "erf": s.erf, "erfc": special.erfc, "sigmoid": s.sigmoid, "reciprocal": lambda v: 1.0 / v,
    }  # fmt: skip
    kept = {
        "neg": lambda v: -v, "abs": s.absolute, "square": lambda v: v * v, "sign": e.sign, "sgn": e.sign,
        "floor": lambda v: s.floor(v) if v.is_float else v, "ceil": lambda v: s.ceil(v) if v.is_float else v,
        "trunc": lambda v: s.trunc(v) if v.is_float else v, "round": lambda v: s.round_even(v) if v.is_float else v,
        "bitwise_not": lambda v: ~v,
    }  # fmt: skip
    return {
        **{f"{name}.default": unary(body, to_float) for name, body in floats.items()},
        **{f"{name}.default": unary(body, same) for name, body in kept.items()},
        "add.Tensor add.Scalar": e.add,
        "sub.Tensor sub.Scalar": e.sub,
        "rsub.Tensor rsub.Scalar": e.rsub,
        "mul.Tensor mul.Scalar": binary(lambda v, w: v * w),
        "div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode true_divide.Tensor divide.Tensor": e.div,
        "floor_divide.default floor_divide.Scalar": binary(e.floor_quotient),
        "remainder.Tensor remainder.Scalar remainder.Scalar_Tensor": binary(e.modulo),
        "fmod.Tensor fmod.Scalar": binary(e.fmod),
        "pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar": e.power,
        "maximum.default max.other": binary(lambda v, w: v.max(w)),
        "minimum.default min.other": binary(lambda v, w: v.min(w)),
        "atan2.default": binary(s.arctan2, to_float),
        "copysign.Tensor copysign.Scalar": binary(s.copysign, to_float),
        "hypot.default": binary(bits.hypot),
        "ldexp.Tensor": binary(e.ldexp, to_float),
        "logaddexp.default": binary(e.log_add_exp(s.exp, 1.0)),
        "logaddexp2.default": binary(e.log_add_exp(s.exp2, math.log(2.0))),
        "fmax.default": binary(bits.fmax),
        "fmin.default": binary(bits.fmin),
        "nextafter.default": binary(bits.nextafter),
        "gcd.default": bits.gcd,
        "lcm.default": bits.lcm,
        "signbit.default": unary(bits.signbit, same),
        "angle.default": unary(bits.angle, to_float),
        "frexp.Tensor": bits.frexp,
        "round.decimals": lambda b, result, x, *, decimals: unary(lambda v: e.rounded(v, decimals), same)(b, result, x),
        "bitwise_and.Tensor bitwise_and.Scalar __and__.Tensor __and__.Scalar": e.both,
        "bitwise_or.Tensor bitwise_or.Scalar __or__.Tensor __or__.Scalar": binary(lambda v, w: v | w),
        "bitwise_xor.Tensor bitwise_xor.Scalar __xor__.Tensor __xor__.Scalar": binary(lambda v, w: v ^ w),
        "bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar __lshift__.Tensor __lshift__.Scalar": binary(lambda v, w: v << w),
        "bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar __rshift__.Tensor __rshift__.Scalar": binary(lambda v, w: v >> w),
        "lerp.Tensor lerp.Scalar": e.lerp,
        "addcmul.default": e.addcmul,
        "addcdiv.default": e.addcdiv,
    }


def _comparisons() -> dict[str, Lowering]:
    e = elementwise
    return {
        **{f"{name}.Tensor {name}.Scalar": e.comparison(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
        "logical_and.default": e.logical(lambda v, w: v & w),
        "logical_or.default": e.logical(lambda v, w: v | w),
        "logical_xor.default": e.logical(lambda v, w: v ^ w),
        "logical_not.default": lambda b, result, x: e.apply(b, result, lambda v: ~v, [x], torch.bool),
        "isnan.default": e.unary(e.isnan, KIND.DEFAULT),
        "isinf.default": e.unary(e.isinf, KIND.DEFAULT),
        "isfinite.default": e.unary(lambda v: ~(e.isinf(v) | e.isnan(v)), KIND.DEFAULT),
        "where.self where.ScalarSelf where.ScalarOther where.Scalar": e.where,
        "masked_fill.Scalar masked_fill.Tensor": e.masked_fill,
        "clamp.default clamp.Tensor clip.default clip.Tensor": e.clamp,
        "clamp_min.default clamp_min.Tensor": e.clamp,
        "clamp_max.default clamp_max.Tensor": lambda b, result, x, high: e.clamp(b, result, x, None, high),
    }


def _activations() -> dict[str, Lowering]:
    e, unary = elementwise, elementwise.unary
    bodies: dict[str, Callable[..., s.Scalar]] = {
        "relu": e.relu, "relu6": lambda v: e.hardtanh(v, 0, 6),
        "gelu": e.gelu, "silu": e.silu, "mish": e.mish, "elu": e.elu, "selu": e.selu,
        "celu": e.celu, "leaky_relu": e.leaky_relu, "hardtanh": e.hardtanh, "hardsigmoid": e.hardsigmoid, "hardswish": e.hardswish,
        "softplus": e.softplus, "log_sigmoid": e.log_sigmoid, "threshold": e.threshold,
        "softshrink": e.softshrink, "hardshrink": e.hardshrink,
    }  # fmt: skip
    return {
        **{f"{name}.default": unary(body, KIND.DEFAULT) for name, body in bodies.items()},
        "prelu.default _prelu_kernel.default": e.prelu,
    }


def _conversions() -> dict[str, Lowering]:
    return {
        "to.dtype to.device to.dtype_layout to.other to.prim_Device type_as.default _to_copy.default": elementwise.convert,
        "clone.default contiguous.default detach.default detach_.default alias.default": elementwise.identity,
        "view.dtype view_copy.dtype": recasts.view_dtype,
        "lift_fresh_copy.default positive.default": elementwise.identity,
        "dropout.default feature_dropout.default alpha_dropout.default": elementwise.dropout,
    }


def _views() -> dict[str, Lowering]:
    return {
        "view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int": shapes.reshape,
        "view_as.default reshape_as.default view_copy.default _reshape_alias.default ravel.default": shapes.reshape,
        "expand.default expand_as.default broadcast_to.default expand_copy.default": shapes.expand,
        "permute.default permute_copy.default": shapes.permute,
        "transpose.int swapaxes.default swapdims.default t.default transpose_copy.int t_copy.default": shapes.transpose,
        "mT.default adjoint.default matrix_H.default": lambda b, result, x: shapes.transpose(b, result, x, -2, -1),
        "numpy_T.default": shapes.reverse_dims,
        "movedim.int movedim.intlist moveaxis.int moveaxis.intlist": shapes.movedim,
        "unsqueeze.default unsqueeze_copy.default": shapes.unsqueeze,
        "as_strided.default as_strided_copy.default": strided.as_strided,
        "squeeze.default squeeze.dim squeeze.dims squeeze_copy.default squeeze_copy.dim squeeze_copy.dims": shapes.squeeze,
    }


def _creation() -> dict[str, Lowering]:
    zeros, ones = shapes.constant_filled(0), shapes.constant_filled(1)
    return {
        "zeros.default zeros_like.default new_zeros.default empty.memory_format empty_like.default new_empty.default": zeros,
        "new_empty_strided.default empty_strided.default empty_permuted.default": zeros,
        "ones.default ones_like.default new_ones.default": ones,
        "full.default": shapes.full,
        "full_like.default fill.Scalar fill.Tensor": shapes.fill_like,
        "new_full.default": shapes.new_full,
        "scalar_tensor.default": shapes.scalar_tensor,
        "arange.default arange.start arange.start_step": shapes.arange,
        "linspace.default": shapes.linspace,
        "tril_indices.default": shapes.triangle_indices(True),
        "triu_indices.default": shapes.triangle_indices(False),
        "tril.default": shapes.triangle(True),
        "triu.default": shapes.triangle(False),
    }


def _moves() -> dict[str, Lowering]:
    return {
        "slice.Tensor slice_copy.Tensor": data_slices.slice_tensor,
        "select.int select_copy.int": data_slices.select_index,
        "narrow.default narrow_copy.default": data_slices.narrow,
        "split.Tensor split.sizes split_with_sizes.default chunk.default": data_slices.split,
        "split_copy.Tensor split_with_sizes_copy.default": data_slices.split,
        "unsafe_split.Tensor unsafe_chunk.default unsafe_split_with_sizes.default": data_slices.split,
        "unbind.int unbind_copy.int": shapes.unbind,
        "cat.default concat.default concatenate.default": shapes.cat,
        "stack.default": shapes.stack,
        "repeat.default tile.default": _repeat,
        "repeat_interleave.self_int": shapes.repeat_interleave,
        "flip.default": shapes.flip,
        "roll.default": shapes.roll,
        "pad.default": shapes.pad,
        "constant_pad_nd.default": lambda b, result, x, padding, value=0: shapes.pad(b, result, x, padding, "constant", value),
        "reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default": shapes.padding_of("reflect"),
        "replication_pad1d.default replication_pad2d.default replication_pad3d.default": shapes.padding_of("replicate"),
    }


def _repeat(b: Builder, result: Meta, x: Tensor, repeats: Sequence[Any]) -> Tensor:
    return shapes.repeat(b, result, x, [*[1] * (x.rank - len(repeats)), *repeats])


def _indexing() -> dict[str, Lowering]:
    return {
        "embedding.default": indexing.embedding,
        "index_select.default": indexing.index_select,
        "nonzero.default argwhere.default": data_sizes.nonzero,
        "nonzero_numpy.default where.default": data_sizes.nonzero_columns,
        "_unique2.default": data_unique.unique2,
        "unique_consecutive.default": data_unique.unique_consecutive,
        "unique_dim.default": data_unique.unique_dim,
        "repeat_interleave.Tensor": data_sizes.repeat_interleave,
        "bincount.default": data_sizes.bincount,
        "masked_select.default": data_sizes.masked_select,
        "index.Tensor _unsafe_index.Tensor": data_sizes.index,
        "gather.default": indexing.gather,
        "take_along_dim.default": indexing.take_along_dim,
    }


def _reductions() -> dict[str, Lowering]:
    r = reductions
    return {
        "sum.default sum.dim_IntList": r.total,
        "prod.default prod.dim_int": r.product,
        "mean.default mean.dim": r.mean,
        "amax.default max.default": r.largest,
        "amin.default min.default": r.smallest,
        "all.default all.dim all.dims": r.every,
        "any.default any.dim any.dims": r.some,
        "argmax.default": r.arg_reduction("gt"),
        "argmin.default": r.arg_reduction("lt"),
        "max.dim": r.with_indices("gt"),
        "min.dim": r.with_indices("lt"),
        "var.default var.dim var.correction": r.variance,
        "std.default std.dim std.correction": r.deviation,
        "var_mean.default var_mean.dim var_mean.correction": r.var_mean,
        "linalg_vector_norm.default": r.vector_norm,
        "norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dtype norm.ScalarOpt_dim_dtype": r.norm,
        "logsumexp.default": r.logsumexp,
    }


def _norms() -> dict[str, Lowering]:
    r = reductions
    return {
        "softmax.int _softmax.default": r.softmax,
        "_safe_softmax.default": r.safe_softmax,
        "log_softmax.int _log_softmax.default": r.log_softmax,
        "layer_norm.default": r.layer_norm,
        "native_layer_norm.default": r.layer_norm_with_statistics,
        "rms_norm.default": r.rms_norm,
        "group_norm.default": r.group_norm,
        "native_group_norm.default": _native_group_norm,
        "instance_norm.default": _instance_norm,
        "batch_norm.default": _batch_norm,
        "_native_batch_norm_legit_no_training.default": _native_batch_norm,
    }


def _native_group_norm(
    b: Builder, result: Sequence[Meta], x: Tensor, weight: Any, bias: Any, n: Any, c: Any, hw: Any, groups: int, eps: float
) -> list[Any]:
    mean, scale = reductions.group_statistics(b, x, groups, eps)
    return [reductions.group_norm(b, result[0], x, groups, weight, bias, eps), mean, scale]


def _instance_norm(
    b: Builder, result: Meta, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, use_input: bool, momentum: float, eps: float, *_: Any
) -> Tensor:
    if not use_input:
        return reductions.batch_norm(b, x, weight, bias, mean, var, eps, result.dtype)
    channels = x.shape[1]
    assert isinstance(channels, int)
    return reductions.group_norm(b, result, x, channels, weight, bias, eps)


def _batch_norm(
    b: Builder, result: Meta, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, *_: Any
) -> Tensor:
    if training:
        from llmos.runtime.errors import UnsupportedError

        raise UnsupportedError("batch normalization in training mode: call model.eval() before compiling")
    return reductions.batch_norm(b, x, weight, bias, mean, var, eps, result.dtype)


def _native_batch_norm(
    b: Builder, result: Sequence[Meta], x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> list[Any]:
    """Lower batch norm in inference; the two statistics, used in training only, are empty as in torch on CPUs."""
    statistics = [b.full(each.shape, each.dtype, 0) if 0 in each.shape else None for each in result[1:]]
    return [reductions.batch_norm(b, x, weight, bias, mean, var, eps, result[0].dtype), *statistics]


def _products() -> dict[str, Lowering]:
    c = contractions
    return {
        "linear.default": c.linear,
        "matmul.default mm.default bmm.default mv.default dot.default": c.matmul,
        "_int_mm.default": c.integer_matmul,
        "addmm.default baddbmm.default addmv.default": c.addmm,
        "einsum.default": c.einsum,
        "scaled_dot_product_attention.default": attention.scaled_dot_product_attention,
        "_scaled_dot_product_flash_attention_for_cpu.default": attention.attention_with_statistics,
    }


def _windows() -> dict[str, Lowering]:
    w = windows
    return {
        "convolution.default": w.convolution,
        "conv1d.default conv2d.default conv3d.default conv1d.padding conv2d.padding conv3d.padding": w.conv,
        **{f"max_pool{n}d.default": pools.max_pool(n) for n in (1, 2, 3)},
        **{f"max_pool{n}d_with_indices.default": pools.max_pool_with_indices(n) for n in (2, 3)},
        **{f"avg_pool{n}d.default": pools.average_pool(n) for n in (1, 2, 3)},
        **{f"adaptive_max_pool{n}d.default": adaptive.adaptive_max_pool(n) for n in (1, 2, 3)},
        **{f"adaptive_avg_pool{n}d.default _adaptive_avg_pool{n}d.default": pools.adaptive_average_pool(n) for n in (1, 2, 3)},
        "pixel_shuffle.default": w.pixel_shuffle,
        "pixel_unshuffle.default": w.pixel_unshuffle,
    }


def _special_functions() -> dict[str, Lowering]:
    p, to_float = special, KIND.INT_TO_FLOAT
    bodies: dict[str, Callable[..., s.Scalar]] = {
        "lgamma": p.lgamma, "digamma special_digamma": p.digamma, "erfinv": p.erfinv, "special_ndtri": p.ndtri, "special_ndtr": p.ndtr,
        "special_erfcx": p.erfcx, "special_log_ndtr": p.log_ndtr, "special_entr": p.entr,
        "i0 special_modified_bessel_i0": p.bessel_i(0, False), "special_i0e": p.bessel_i(0, True),
        "special_i1 special_modified_bessel_i1": p.bessel_i(1, False), "special_i1e": p.bessel_i(1, True),
        **{f"special_modified_bessel_k{n}": p.bessel_k(n, False) for n in (0, 1)},
        **{f"special_scaled_modified_bessel_k{n}": p.bessel_k(n, True) for n in (0, 1)},
        **{f"special_bessel_j{n}": p.bessel_j(n) for n in (0, 1)},
        **{f"special_bessel_y{n}": p.bessel_y(n) for n in (0, 1)},
        "special_spherical_bessel_j0": p.spherical_bessel_j0, "special_airy_ai": p.airy_ai,
    }  # fmt: skip
    named = {f"{name}.default": elementwise.unary(body, to_float) for names, body in bodies.items() for name in names.split()}
    for kind in "tuvw":
        for shifted in ("", "shifted_"):
            body = elementwise.binary(p.chebyshev(kind.upper(), bool(shifted)), to_float)
            name = f"special_{shifted}chebyshev_polynomial_{kind}"
            named[f"{name}.default {name}.x_scalar {name}.n_scalar"] = body
    return {**named, "polygamma.default special_polygamma.default": elementwise.polygamma}


def _factorizations() -> dict[str, Lowering]:
    f = factorizations
    return {
        "cholesky.default linalg_cholesky.default": f.cholesky_default,
        "linalg_cholesky_ex.default": f.cholesky_ex,
        "linalg_lu_factor_ex.default": f.lu_factor_ex,
        "linalg_lu_factor.default": f.lu_factor,
        "linalg_solve_triangular.default": f.solve_triangular,
        "geqrf.default": f.geqrf,
        "linalg_qr.default": f.qr,
        "linalg_householder_product.default": f.householder_product,
        "ormqr.default": f.ormqr,
        "_linalg_eigh.default": eigen.eigh,
    }


def _orders() -> dict[str, Lowering]:
    o = orders
    return {
        "sort.default": o.sort,
        "sort.stable": o.stable_sort,
        "argsort.default": o.argsort,
        "argsort.stable": o.stable_argsort,
        "topk.default": o.top_k,
        "kthvalue.default": o.kth_value,
        "median.dim": o.median(False),
        "nanmedian.dim": o.median(True),
        "median.default": o.median_of_all(False),
        "nanmedian.default": o.median_of_all(True),
        "mode.default": o.mode,
        "searchsorted.Tensor searchsorted.Scalar": searches.search_sorted,
        "bucketize.Tensor bucketize.Scalar": searches.bucketize,
    }


def _scans() -> dict[str, Lowering]:
    return {
        "cumsum.default": scans.cumsum,
        "cumprod.default": scans.cumprod,
        "cummax.default": scans.running_extreme(True),
        "cummin.default": scans.running_extreme(False),
        "logcumsumexp.default _logcumsumexp.default": scans.logcumsumexp,
    }
