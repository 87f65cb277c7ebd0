"""Ops that draw random numbers: refused, since the same call of a compiled model gives the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmos.runtime.errors import UnsupportedError

_OPS = (
    "rand.default rand_like.default randn.default randn_like.default randint.default randint.low randint_like.default "
    "randint_like.low_dtype randint_like.Tensor randperm.default bernoulli.default bernoulli.p bernoulli.Tensor "
    "multinomial.default normal.Tensor_Tensor "
    "normal.Tensor_float normal.float_Tensor normal.float_float normal_functional.default uniform.default exponential.default "
    "cauchy.default geometric.default log_normal.default native_dropout.default rrelu_with_noise.default "
    "rrelu_with_noise_functional.default fractional_max_pool2d.default fractional_max_pool3d.default poisson.default binomial.default"
)


def refusals() -> Mapping[str, Callable[..., Any]]:
    return {_OPS: _refuse}


def _refuse(*_: Any, **__: Any) -> Any:
    raise UnsupportedError("draws random numbers, which a compiled model doesn't: pass them as an input, or call model.eval()")
