"""Element types of at most 8 bits that neither numpy nor the kernels support: float8, float4, int4, int2 and similar ones.

Their tensors are stored as codes, one byte an element, and are only moved, or converted from and to types with arithmetic.
Formats: OCP Microscaling Formats 1.0 and OCP 8-bit Floating Point 1.0; the FNUZ types as in ONNX's specification of Cast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import ml_dtypes
import numpy as np
import torch
from onnx import TensorProto

from llmos.runtime.errors import UnsupportedError

FLOAT32_BIAS, FLOAT32_MANTISSA = 127, 23
_INFINITY = 0x7F800000


@dataclass(frozen=True, eq=False)
class LowPrecisionTensor:
    """A tensor of a low-precision type: uint8 `codes` of its shape."""

    codes: torch.Tensor
    elem_type: int

    @property
    def format(self) -> Format:
        """Return the format of its element type."""
        return FORMATS[self.elem_type]


@dataclass(frozen=True)
class Format:
    """One low-precision type. `storage` is ml_dtypes' type with the same codes."""

    name: str
    num_bits: int
    storage: type

    @property
    def mask(self) -> int:
        """Return the bits of a code that count."""
        return (1 << self.num_bits) - 1


@dataclass(frozen=True)
class IntegerFormat(Format):
    """An integer of 2 or 4 bits, in two's complement if `is_signed`."""

    is_signed: bool = True


@dataclass(frozen=True)
class FloatFormat(Format):
    """`overflow` is the code (infinity or NaN) of a number too large, without saturation; a FNUZ type has one zero."""

    mantissa: int = 3
    bias: int = 7
    largest: int = 0x7E
    nan: int = 0x7F
    overflow: int = 0x7F
    is_unsigned_zero: bool = False


@dataclass(frozen=True)
class ExponentFormat(Format):
    """E8M0: powers of two, 0xFF is NaN."""


FORMATS: Mapping[int, Format] = MappingProxyType(
    {
        TensorProto.FLOAT8E4M3FN: FloatFormat("FLOAT8E4M3FN", 8, ml_dtypes.float8_e4m3fn),
        TensorProto.FLOAT8E4M3FNUZ: FloatFormat("FLOAT8E4M3FNUZ", 8, ml_dtypes.float8_e4m3fnuz, 3, 8, 0x7F, 0x80, 0x80, True),
        TensorProto.FLOAT8E5M2: FloatFormat("FLOAT8E5M2", 8, ml_dtypes.float8_e5m2, 2, 15, 0x7B, 0x7E, 0x7C),
        TensorProto.FLOAT8E5M2FNUZ: FloatFormat("FLOAT8E5M2FNUZ", 8, ml_dtypes.float8_e5m2fnuz, 2, 16, 0x7F, 0x80, 0x80, True),
        # Without NaN and infinity: NaN becomes zero, as in ml_dtypes, and an overflow the largest number.
        TensorProto.FLOAT4E2M1: FloatFormat("FLOAT4E2M1", 4, ml_dtypes.float4_e2m1fn, 1, 1, 0x7, 0x8, 0x7),
        TensorProto.FLOAT8E8M0: ExponentFormat("FLOAT8E8M0", 8, ml_dtypes.float8_e8m0fnu),
        TensorProto.INT4: IntegerFormat("INT4", 4, ml_dtypes.int4),
        TensorProto.UINT4: IntegerFormat("UINT4", 4, ml_dtypes.uint4, False),
        TensorProto.INT2: IntegerFormat("INT2", 2, ml_dtypes.int2),
        TensorProto.UINT2: IntegerFormat("UINT2", 2, ml_dtypes.uint2, False),
    }
)
_OF_STORAGE: Mapping[np.dtype, int] = MappingProxyType({np.dtype(each.storage): elem_type for elem_type, each in FORMATS.items()})


def low_precision_type(dtype: np.dtype) -> int | None:
    """Return the ONNX element type of an array of a low-precision type; None for other arrays."""
    return _OF_STORAGE.get(dtype)


def codes_of(array: np.ndarray) -> np.ndarray:
    """Return the codes of an array of a low-precision type, uint8, without a copy if it is dense."""
    return np.ascontiguousarray(array).reshape(array.shape).view(np.uint8)


def array_of(codes: np.ndarray, elem_type: int) -> np.ndarray:
    """Invert `codes_of`: view uint8 codes as ml_dtypes' type."""
    return codes.view(FORMATS[elem_type].storage)


def decode(low_precision: LowPrecisionTensor) -> torch.Tensor:
    """Decode exactly: floats to float32, integers to int32."""
    form = low_precision.format
    if isinstance(form, IntegerFormat):
        codes = low_precision.codes.to(torch.int32) & form.mask
        half = 1 << (form.num_bits - 1)
        return (codes ^ half) - half if form.is_signed else codes
    table = np.arange(form.mask + 1, dtype=np.uint8).view(form.storage).astype(np.float32)
    index = low_precision.codes.to(torch.int64) & form.mask
    return torch.tensor(table.tolist(), dtype=torch.float32)[index]


def encode(x: torch.Tensor, elem_type: int, saturate: bool = True, round_mode: str = "up") -> LowPrecisionTensor:
    """Encode numbers. To integers, truncate toward zero and wrap; to floats, round to nearest even, and saturate if `saturate`.

    `round_mode` is that of E8M0 ("up", "down", "nearest"). Raises UnsupportedError for another mode.
    """
    form = FORMATS[elem_type]
    if isinstance(form, IntegerFormat):
        return LowPrecisionTensor((x.to(torch.int32) & form.mask).to(torch.uint8), elem_type)
    bits = x.to(torch.float32).view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    if isinstance(form, ExponentFormat):
        return LowPrecisionTensor(_exponents(magnitude, saturate, round_mode).to(torch.uint8), elem_type)
    assert isinstance(form, FloatFormat)
    codes = _rounded(magnitude, form)
    top = form.largest if saturate else form.overflow
    codes = torch.where(codes > form.largest, top, codes)
    sign = (bits < 0).to(torch.int32) << (form.num_bits - 1)
    signed = torch.where((codes == 0) & form.is_unsigned_zero, 0, codes | sign)
    is_nan = magnitude > _INFINITY
    if form.is_unsigned_zero:
        # The only NaN has no sign, nor does an overflow to it.
        return LowPrecisionTensor(torch.where(is_nan | (codes == form.nan), form.nan, signed).to(torch.uint8), elem_type)
    return LowPrecisionTensor(torch.where(is_nan, form.nan | sign, signed).to(torch.uint8), elem_type)


def _rounded(magnitude: torch.Tensor, form: FloatFormat) -> torch.Tensor:
    """Return the codes of magnitudes (bits of float32); an overflow gives a code above form.largest.

    With the exponent clamped to the smallest normal one, |x| / 2^(e - mantissa) counts steps: rounding it carries into the exponent, and
    subnormals need no special case.
    """
    lowest = 1 - form.bias
    exponent = ((magnitude >> FLOAT32_MANTISSA) - FLOAT32_BIAS).clamp(lowest, FLOAT32_BIAS)
    scale = ((FLOAT32_BIAS + form.mantissa - exponent) << FLOAT32_MANTISSA).view(torch.float32)
    finite = magnitude.clamp(max=_INFINITY - 1).view(torch.float32)
    return ((exponent - lowest) << form.mantissa) + torch.round(finite * scale).to(torch.int32)


def _exponents(magnitude: torch.Tensor, saturate: bool, round_mode: str) -> torch.Tensor:
    """Return E8M0 codes: the exponent of float32, rounded by its mantissa."""
    exponent, fraction = magnitude >> FLOAT32_MANTISSA, magnitude & 0x7FFFFF
    if round_mode == "up":
        step = fraction > 0
    elif round_mode == "nearest":
        half = 1 << (FLOAT32_MANTISSA - 1)
        step = (fraction > half) | ((fraction == half) & (exponent > 0))
    elif round_mode == "down":
        step = torch.zeros_like(fraction, dtype=torch.bool)
    else:
        raise UnsupportedError(f"round_mode={round_mode} isn't a mode of ONNX.")
    limit = 0xFE if saturate else 0xFF
    return torch.where(exponent == 0xFF, 0xFF, (exponent + step.to(torch.int32)).clamp(max=limit))
