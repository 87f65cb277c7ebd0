"""Coded element types against ml_dtypes: every code, and numbers at, between and beyond every code."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from llmos.compiler.frontend.onnx.low_precision import (
    FORMATS,
    ExponentFormat,
    FloatFormat,
    IntegerFormat,
    LowPrecisionTensor,
    array_of,
    decode,
    encode,
)

FLOATS = [kind for kind, form in FORMATS.items() if isinstance(form, FloatFormat)]
INTEGERS = [kind for kind, form in FORMATS.items() if isinstance(form, IntegerFormat)]
NAMES = {kind: form.name for kind, form in FORMATS.items()}


def all_codes(kind: int) -> np.ndarray:
    return np.arange(FORMATS[kind].mask + 1, dtype=np.uint8)


def telling_numbers(kind: int) -> np.ndarray:
    """Every value of the type, the middles between neighbors, a step to either side of those, and what is too large; float32."""
    values = np.unique(array_of(all_codes(kind), kind).astype(np.float32))
    values = values[np.isfinite(values)]
    middles = (values[1:] + values[:-1]) / 2
    beside = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
    large = np.float32([values.max() * 1.01, values.max() * 1.2, values.max() * 4, 3e38, 1e-30, np.inf])
    return np.concatenate([values, middles, *beside, large, -large]).astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS, ids=NAMES.get)
def test_every_code_is_decoded(kind: int) -> None:
    found = decode(LowPrecisionTensor(torch.from_numpy(all_codes(kind)), kind)).numpy()
    np.testing.assert_array_equal(found.astype(np.float32), array_of(all_codes(kind), kind).astype(np.float32))


@pytest.mark.parametrize("kind", FLOATS, ids=NAMES.get)
@pytest.mark.parametrize("saturate", [True, False])
def test_numbers_are_rounded_as_in_ml_dtypes(kind: int, saturate: bool) -> None:
    x = np.concatenate([telling_numbers(kind), np.float32([np.nan])])
    if not saturate and FORMATS[kind].name == "FLOAT4E2M1":
        x = x[np.isfinite(x)]  # the type has no infinity to overflow to
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = numpy_helper.saturate_cast(x, np.dtype(FORMATS[kind].storage)) if saturate else x.astype(FORMATS[kind].storage)
    got = array_of(encode(torch.from_numpy(x), kind, saturate).codes.numpy(), kind)
    np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(got.astype(np.float32))[:-1], np.signbit(want.astype(np.float32))[:-1])


@pytest.mark.parametrize("kind", INTEGERS, ids=NAMES.get)
def test_integers_are_cut_and_wrap(kind: int) -> None:
    x = np.linspace(-20, 20, 161, dtype=np.float32)
    got = array_of(encode(torch.from_numpy(x), kind).codes.numpy(), kind)
    np.testing.assert_array_equal(got.astype(np.int32), x.astype(np.int32).astype(FORMATS[kind].storage).astype(np.int32))


@pytest.mark.parametrize("round_mode", ["up", "down", "nearest"])
@pytest.mark.parametrize("saturate", [True, False])
def test_powers_of_two(round_mode: str, saturate: bool) -> None:
    kind = onnx.TensorProto.FLOAT8E8M0
    assert isinstance(FORMATS[kind], ExponentFormat)
    x = np.abs(np.float32([0, 1e-40, 0.1, 0.75, 1, 1.1, 1.5, 1.50001, 2, 3, 1e30, 3.4e38, np.inf, np.nan]))
    want = numpy_helper.to_float8e8m0(x, saturate, round_mode).view(np.uint8)
    np.testing.assert_array_equal(encode(torch.from_numpy(x), kind, saturate, round_mode).codes.numpy(), want)
