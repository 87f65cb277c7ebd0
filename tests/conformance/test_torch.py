"""A fixed sample of the torch suites: one or two of each family of operators, a few architectures; `make conformance` runs all."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.outcome import Outcome

pytest.importorskip("expecttest", reason="torch's OpInfo needs the package expecttest, of the extra dev")

from tests.conformance.dynamic_suite import DynamicSuite
from tests.conformance.opinfo import run_entry
from tests.conformance.transformers_suite import TransformersSuite

ENTRIES = (
    "add", "div.floor_rounding", "nextafter", "frexp", "gcd", "hypot", "lgamma", "digamma", "special.bessel_j0", "special.airy_ai",
    "special.chebyshev_polynomial_t", "special.zeta", "igamma", "var.unbiased", "argmax", "cummax", "logcumsumexp", "median", "mode",
    "sort", "searchsorted", "histogram", "index_put", "scatter_reduce.mean", "as_strided_scatter", "diagonal_scatter",
    "torch.ops.aten._safe_softmax.default", "nn.functional.conv2d", "nn.functional.conv_transpose3d",
    "nn.functional.adaptive_max_pool2d", "nn.functional.adaptive_avg_pool2d", "nn.functional.embedding_bag", "split_with_sizes",
    "nonzero", "masked_select", "unique_consecutive", "scatter_add", "masked_scatter", "_segment_reduce.offsets",
    "_upsample_bilinear2d_aa", "stft", "view_as_complex", "randn", "normal.in_place",
    "linalg.lu", "linalg.qr", "linalg.eigh", "linalg.svd", "linalg.pinv", "linalg.solve", "cholesky_inverse",
)  # fmt: skip
LONG = ("nn.functional.max_pool2d", "histogramdd", "fft.hfftn", "matrix_exp")
REFUSED = {
    "linalg.eig": "complex",
    "sparse.sampled_addmm": "sparse",
}


def passed(outcome: Outcome) -> None:
    assert (outcome.verdict, outcome.reason) == ("passed", "")


def slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", [*ENTRIES, *slow(*LONG)])
def test_operator(name: str) -> None:
    passed(run_entry(name, samples=2))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_operator(name: str) -> None:
    outcome = run_entry(name, samples=1)
    assert outcome.verdict == "refused"
    assert REFUSED[name] in outcome.reason


@pytest.mark.parametrize("name", ["atan2", "special.i0e", "std", "view-flatten", "searchsorted", "masked-put", "sort", "solve"])
def test_dynamic_dimensions(name: str) -> None:
    passed(DynamicSuite().run(name))


@pytest.mark.parametrize("name", ["gpt2", *slow("deberta-v2", "swin")])
def test_architecture(name: str) -> None:
    passed(TransformersSuite().run(name))
