"""Complex numbers in models and at their ends, against eager torch: random expressions, Fourier transforms, rotary embeddings, artifacts.

LLMOS_COMPLEX_GRAPHS asks for more random models than the fixed sample.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.frontend.torch import import_torch, to_numpy
from llmos.runtime.errors import InputError, UnsupportedError
from tests.conformance.inprocess import Compiled

NUM_GRAPHS = int(os.environ.get("LLMOS_COMPLEX_GRAPHS", "2"))
ROWS = torch.export.Dim("rows", min=2, max=64)
Function = Callable[..., Any]


class Model(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self._function = function

    def forward(self, *args: Tensor) -> Any:
        return self._function(*args)


def agree(function: Function, *args: Tensor, dynamic: bool = True, tolerance: float = 2e-5) -> None:
    """The compiled model equals eager torch, where dynamic also at other rows than the traced ones."""
    module = Model(function)
    compiled = Compiled(import_torch(module, args, (tuple({0: ROWS} for _ in args),) if dynamic else None))
    for rows in (args[0].shape[0], 2, 7) if dynamic else (args[0].shape[0],):
        given = [torch.cat([each] * 4)[:rows] for each in args] if dynamic else list(args)
        for got, expected in zip(compiled([to_numpy(each) for each in given]), module(*given), strict=True):
            exact = to_numpy(expected)
            assert (got.shape, got.dtype) == (exact.shape, exact.dtype)
            np.testing.assert_allclose(got, exact, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(exact).max(initial=0))))


def complexes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


UNARY: list[Function] = [
    torch.exp, torch.sin, torch.cos, torch.tanh, torch.sqrt, torch.sinh, torch.cosh, torch.asin, torch.acos, torch.asinh, torch.atan,
    torch.sgn, torch.expm1, torch.log1p, torch.conj, torch.neg, torch.sigmoid, lambda z: torch.log(z + 3), lambda z: 1 / (z + 3),
    lambda z: z**2, lambda z: z * 1j, lambda z: z.flip(1), lambda z: z.roll(1, 1), lambda z: z + (2 - 1j), lambda z: z.real + 0j,
    lambda z: torch.complex(z.imag, z.real), lambda z: z.cumsum(1), lambda z: torch.view_as_complex(torch.view_as_real(z) * 2),
    lambda z: z.mH.mT, lambda z: torch.polar(z.abs(), z.angle()),
]  # fmt: skip
BINARY: list[Function] = [
    torch.add, torch.sub, torch.mul, lambda a, b: a / (b + 4), lambda a, b: torch.where(a.real > 0, a, b), lambda a, b: a @ b.mT @ b,
    lambda a, b: torch.cat([a, b], 1)[:, ::2], lambda a, b: torch.stack([a, b]).mean(0), lambda a, b: a * b.real, lambda a, b: b.imag - a,
    lambda a, b: torch.lerp(a, b, 0.25), lambda a, b: a.masked_fill(b.abs() > 1, 2j), lambda a, b: torch.fft.ifft(torch.fft.fft(a) * b),
]  # fmt: skip
ENDS: list[Function] = [
    lambda z: z, torch.abs, torch.angle, torch.view_as_real, lambda z: z.imag, lambda z: z.sum(1), lambda z: z.sum(0), lambda z: z.prod(1),
    lambda z: torch.linalg.vector_norm(z, dim=1), lambda z: z.var(1), lambda z: z == z.conj(), lambda z: z.to(torch.complex128),
]  # fmt: skip


def expression(rng: random.Random) -> Function:
    """Three to six ops of two complex tensors [rows, 5]."""
    steps = [
        (rng.choice(UNARY), None) if rng.random() < 0.6 else (rng.choice(BINARY), rng.random() < 0.5) for _ in range(rng.randint(2, 5))
    ]
    end = rng.choice(ENDS)

    def run(a: Tensor, b: Tensor) -> Tensor:
        z = a
        for op, first in steps:
            z = op(z) if first is None else op(z, b) if first else op(b, z)
            z = z / z.abs().amax().clamp(min=1.0)  # keeps exponentials of exponentials in range
        return end(z)  # type: ignore[no-any-return]

    return run


@pytest.mark.sample(0)
@pytest.mark.parametrize("seed", range(NUM_GRAPHS))
def test_random_expressions(seed: int) -> None:
    rng = random.Random(seed)
    expressions = [expression(rng) for _ in range(4)]
    agree(lambda a, b: tuple(each(a, b) for each in expressions), complexes(3, 5), complexes(3, 5, seed=1), tolerance=2e-4)


def test_every_function_and_every_product() -> None:
    a, b = complexes(3, 5), complexes(3, 5, seed=1)
    agree(lambda a, b: tuple(op(a) for op in [*UNARY, *ENDS]), a, b, tolerance=1e-4)
    agree(lambda a, b: tuple(op(a, b) for op in BINARY), a, b, tolerance=1e-4)


def _transforms(x: Tensor, z: Tensor, sizes: tuple[int | None, ...], norms: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Every transform of one dimension, at some lengths."""
    one = [transform(z, n=n, norm=norm) for n in sizes for norm in norms for transform in (torch.fft.fft, torch.fft.ifft)]
    half = [transform(x, n=n, norm=norm) for n in sizes for norm in norms for transform in (torch.fft.rfft, torch.fft.ihfft)]
    real = [transform(z, n=n, norm=norm) for n in sizes for norm in norms for transform in (torch.fft.irfft, torch.fft.hfft) if n != 1]
    return (*one, *half, *real)


def test_fourier_transforms() -> None:
    agree(lambda x, z: _transforms(x, z, (None, 15), ("ortho",)), torch.randn(3, 12), complexes(3, 12))
    agree(lambda x, z: _transforms(x, z, (1, 2, 8, 9), ("forward",)), torch.randn(2, 5), complexes(2, 5), dynamic=False)


def test_long_transforms_by_way_of_their_factors() -> None:
    """600 = 24 * 25 elements; 521 is prime and one product."""

    def run(x: Tensor) -> tuple[Tensor, ...]:
        spectrum = torch.fft.rfft(x)
        return spectrum, torch.fft.irfft(spectrum * (1 + 1j), n=x.shape[1]), torch.fft.ifft(x + 0j)

    for length in (600, 521):
        agree(run, torch.randn(2, length), dynamic=False)
    with pytest.raises(UnsupportedError, match="no two factors"):
        import_torch(Model(torch.fft.rfft), (torch.zeros(5003),))


def test_transforms_of_several_dimensions() -> None:
    def run(x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        two = (torch.fft.ifft2(z, norm="ortho"), torch.fft.rfft2(x), torch.fft.irfft2(z), torch.fft.hfft2(z))
        return (*two, torch.fft.fftn(z, dim=(1, 2)), torch.fft.irfftn(z, s=(4, 6), dim=(1, 2)), torch.fft.ihfftn(x, dim=(2,)))

    agree(run, torch.randn(2, 4, 5), complexes(2, 4, 5), dynamic=False)


def test_short_time_transforms() -> None:
    window = torch.hann_window(16)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        spectrum = torch.stft(x, 16, 4, window=window, return_complex=True)
        again = torch.istft(spectrum, 16, 4, window=window), torch.istft(spectrum * 1j, 16, 5, length=70)
        return spectrum, spectrum.abs().pow(2).mean(1), torch.stft(x, 16, 5, normalized=True, center=False, return_complex=True), *again

    agree(run, torch.randn(2, 64), dynamic=False, tolerance=1e-4)


def test_short_time_transforms_of_a_signal_of_any_length() -> None:
    window = torch.hann_window(16)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        spectrum = torch.stft(x, 16, 4, window=window, return_complex=True)
        return spectrum, spectrum.abs().pow(2).mean(1), torch.istft(spectrum, 16, 4, window=window), torch.fft.fft(x.unfold(1, 12, 5), n=15)

    samples = torch.export.Dim("samples", min=48, max=400)
    compiled = Compiled(import_torch(Model(run), (torch.randn(2, 64),), (({1: samples},),)))
    for length in (64, 100, 53):
        x = torch.randn(2, length)
        for got, want in zip(compiled([x.numpy()]), run(x), strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4)


def test_the_inverse_takes_any_number_of_frames() -> None:
    inverse = Model(lambda z: torch.istft(z, 16, 4, window=torch.hann_window(16)))
    compiled = Compiled(import_torch(inverse, (complexes(2, 9, 12),), (({2: torch.export.Dim("frames", min=4, max=400)},),)))
    for frames in (12, 5, 40):
        z = complexes(2, 9, frames)
        np.testing.assert_allclose(compiled([z.numpy()])[0], inverse(z).numpy(), rtol=1e-4, atol=1e-4)


class Rotary(nn.Module):
    """Queries turned by complex numbers of their positions, as in Llama's first code."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(32.0), 1 / 10 ** (torch.arange(4) / 4))
        self.register_buffer("rotations", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.rotations[: x.shape[0]].unsqueeze(1)).flatten(2)


def test_rotary_embeddings() -> None:
    module = Rotary()
    compiled = Compiled(import_torch(module, (torch.randn(5, 2, 8),), ({0: torch.export.Dim("tokens", min=2, max=32)},)))
    assert all(spec.dtype == "float32" for spec in (*compiled.entry.inputs, *compiled.entry.outputs))
    for tokens in (5, 2, 32):
        x = torch.randn(tokens, 2, 8)
        np.testing.assert_allclose(compiled([x.numpy()])[0], module(x).numpy(), rtol=1e-6, atol=1e-6)


class Memory(nn.Module):
    """Keeps a complex number from call to call."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("total", complexes(3, seed=5, dtype=dtype))

    def forward(self, z: Tensor, scale: Tensor) -> dict[str, Tensor]:
        self.total.mul_(2j)
        return {"sum": z * scale + self.total, "size": z.abs()}


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_artifacts_take_give_and_keep_complex_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    z, scale = complexes(4, 3, dtype=dtype), torch.randn(4, 1, dtype=dtype.to_real())
    options = CompileOptions(target="native", cache=False)
    artifact = llmos.compile(Memory(dtype), (z, scale), dynamic_shapes=({0: ROWS}, {0: ROWS}), options=options)
    artifact.save(tmp_path / "memory.llmos")
    program, module = llmos.load(tmp_path / "memory.llmos"), Memory(dtype)
    entry = program["main"]
    spec = entry.inputs[0]
    assert (spec.name, spec.dtype, spec.shape) == ("z", str(dtype).removeprefix("torch."), ("rows", 3))
    assert [spec.dtype for spec in entry.outputs] == [str(dtype).removeprefix("torch."), str(dtype.to_real()).removeprefix("torch.")]
    for given in (z, z[:2], torch.cat([z, z]), z.conj(), z.conj().imag + 0j, z.mT.contiguous().mT):
        width = scale.repeat(2, 1)[: given.shape[0]]
        want = module(given, width)
        for got, expected in zip(program(given, width), want.values(), strict=True):
            np.testing.assert_allclose(got, expected.resolve_conj().numpy(), rtol=1e-5, atol=1e-5)
    got = program(z.numpy(), -width[:4].imag if width.is_complex() else width[:4])
    np.testing.assert_allclose(got[0], module(z, width[:4])["sum"].numpy(), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="expected dtype complex"):
        program(z.real.contiguous(), scale)


def test_an_input_with_the_negative_bit_is_read_with_it(tmp_path: Path) -> None:
    artifact = llmos.compile(Model(lambda x: x + 1), (torch.zeros(3, 2),), options=CompileOptions(target="native", cache=False))
    artifact.save(tmp_path / "plain.llmos")
    negative = complexes(3, 2).conj().imag
    assert negative.is_neg()
    np.testing.assert_array_equal(llmos.load(tmp_path / "plain.llmos")(negative), (negative + 1).numpy())


def test_numbers_among_the_outputs() -> None:
    def run(x: Tensor) -> tuple[Any, ...]:
        return x + 1, 3, 2.5, True, None, x.shape[0], x.shape[0] / 4, x.shape[0] > 4

    compiled = Compiled(import_torch(Model(run), (torch.zeros(3, 2),), (({0: ROWS},),)))
    for rows in (3, 8):
        got = compiled([np.zeros((rows, 2), np.float32)])[1:]
        assert [(each.dtype.name, each.item()) for each in got] == [
            ("int64", 3), ("float64", 2.5), ("bool", True), ("int64", rows), ("float64", rows / 4), ("bool", rows > 4)
        ]  # fmt: skip


@pytest.mark.parametrize(("function", "example", "says"), [
    (lambda z: z.to(torch.complex32), complexes(2, 3), "complex32"),
    (torch.linalg.eigvals, torch.eye(3), "linalg_eig"),
    (torch.linalg.inv, complexes(3, 3), "not supported for complex numbers"),
    (torch.linalg.pinv, complexes(3, 2), "not supported for complex numbers"),
    (torch.linalg.svdvals, complexes(3, 2), "not supported for complex numbers"),
    (torch.linalg.matrix_exp, complexes(3, 3), "not supported for complex numbers"),
])  # fmt: skip
def test_what_has_no_rule_is_refused_by_name(function: Function, example: Tensor, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        import_torch(Model(function), (example,))
