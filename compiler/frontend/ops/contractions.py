"""Matrix products of every rank: one linalg.generic over the einsum's iteration space, with no transpose of the operands."""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch

from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim, compute_dtype
from llmos.compiler.frontend.dims import Dim, Shape
from llmos.compiler.frontend.scalars import Number, Scalar
from llmos.compiler.ir.bindings import ir

Operand = tuple[Tensor, str]


def contract(
    b: Builder, operands: Sequence[Operand], output: str, stored: str | None = None, accumulator: torch.dtype | None = None
) -> Tensor:
    """Emit an einsum with one letter a dimension; letters missing from `output` are summed. Half floats accumulate and return in float32.

    `output` is the logical order of the result's dimensions, `stored` the order in memory. Products and sums have the type `accumulator`,
    to which the body extends the factors; by default the operands' type.
    """
    stored = stored or output
    sums = "".join(dict.fromkeys(letter for _, letters in operands for letter in letters if letter not in output))
    loops = {letter: affine_dim(position) for position, letter in enumerate(stored + sums)}
    extents = _extents(operands)
    dtype = accumulator or compute_dtype(operands[0][0].dtype)
    shape = tuple(extents[letter] for letter in stored)
    inputs = [(x, _reads(x, letters, loops, extents)) for x, letters in operands] + _bounds(b, operands, extents, loops)
    (value,) = b.generic(
        inputs,
        [(b.fill(shape, dtype, 0), dtype, [loops[letter] for letter in stored])],
        ["parallel"] * len(stored) + ["reduction"] * len(sums),
        lambda *scalars: [_multiply_accumulate(scalars[: len(operands)], scalars[-1])],
    )
    return Tensor(value, tuple(extents[letter] for letter in output), dtype, tuple(output.index(letter) for letter in stored))


def _multiply_accumulate(factors: Sequence[Scalar], accumulator: Scalar) -> Scalar:
    product = factors[0].to(accumulator.dtype)
    for factor in factors[1:]:
        product = product * factor.to(accumulator.dtype)
    return accumulator + product


def _extents(operands: Sequence[Operand]) -> dict[str, Dim]:
    extents: dict[str, Dim] = {}
    for x, letters in operands:
        for dim, letter in zip(x.shape, letters, strict=True):
            if extents.get(letter, 1) == 1 or (isinstance(dim, int) and dim != 1):
                extents[letter] = dim
    return extents


def _reads(x: Tensor, letters: str, loops: dict[str, ir.AffineExpr], extents: dict[str, Dim]) -> list[ir.AffineExpr]:
    return b_reads(x, tuple(extents[letter] for letter in letters), [loops[letter] for letter in letters])


def b_reads(x: Tensor, shape: Shape, loops: Sequence[ir.AffineExpr]) -> list[ir.AffineExpr]:
    """Return the index expressions by which a view is read at `loops`, one for each dimension of `shape`, to which it broadcasts."""
    zero = ir.AffineExpr.get_constant(0)
    return [zero if axis is None or (x.shape[axis] == 1 and shape[axis] != 1) else loops[axis] for axis in x.axes]


def _bounds(
    b: Builder, operands: Sequence[Operand], extents: dict[str, Dim], loops: dict[str, ir.AffineExpr]
) -> list[tuple[Tensor, list[ir.AffineExpr]]]:
    """Return a shape-only operand that bounds the loops of summed broadcast dimensions, which no operand stores."""
    stored = {
        letters[axis]
        for x, letters in operands
        for axis in x.axes
        if axis is not None and (x.shape[axis] != 1 or extents[letters[axis]] == 1)
    }
    missing = [letter for letter in dict.fromkeys("".join(letters for _, letters in operands)) if letter not in stored]
    if not missing:
        return []
    shape = tuple(extents[letter] for letter in missing)
    dtype = operands[0][0].dtype
    return [(b.dense_tensor(b.empty(shape, dtype), shape, dtype), [loops[letter] for letter in missing])]


def add_bias(b: Builder, x: Tensor, bias: Tensor | None, result: Meta) -> Tensor:
    """Return `x + bias`, computed in the dtype of `x` and cast to the result's."""
    if bias is None:
        return b.cast(x, result.dtype)
    return b.elementwise(lambda s, t: s + t.to(s.dtype), [x, bias], result.dtype)


_BATCH = "bcdefghopqrstuvw"


def linear(b: Builder, result: Meta, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x [..., k] by the transpose of weight [n, k] and add bias [n]; return [..., n]."""
    batch = _BATCH[: x.rank - 1]
    out = "n" if weight.rank == 2 else ""
    return add_bias(b, contract(b, [(x, batch + "k"), (weight, out + "k")], batch + out), bias, result)


def matmul(b: Builder, result: Meta, x: Tensor, y: Tensor) -> Tensor:
    """numpy's matmul of [..., m, k] and [..., k, n]: batch dimensions broadcast; a rank-1 operand lacks m or n."""
    rank = max(x.rank, y.rank, 2) - 2
    batch = _BATCH[:rank]
    left = "k" if x.rank == 1 else batch[rank - (x.rank - 2) :] + "mk"
    right = "k" if y.rank == 1 else batch[rank - (y.rank - 2) :] + "kn"
    out = batch + ("m" if x.rank > 1 else "") + ("n" if y.rank > 1 else "")
    return b.cast(contract(b, [(x, left), (y, right)], out), result.dtype)


def integer_matmul(b: Builder, result: Meta, x: Tensor, y: Tensor) -> Tensor:
    """Multiply x [m, k] by y [k, n], int8 or uint8, into int32 [m, n]: aten._int_mm."""
    return contract(b, [(x, "mk"), (y, "kn")], "mn", accumulator=result.dtype)


def addmm(b: Builder, result: Meta, bias: Tensor, x: Tensor, y: Tensor, *, beta: Number = 1, alpha: Number = 1) -> Tensor:
    """Lower aten.addmm, baddbmm and addmv: `beta * bias + alpha * (x @ y)` for two or three dimensions."""
    batch = "b" if x.rank == 3 else ""
    right = "k" if y.rank == 1 else batch + "kn"
    product = contract(b, [(x, batch + "mk"), (y, right)], batch + ("m" if y.rank == 1 else "mn"))
    if alpha != 1:
        product = b.elementwise(lambda s: s * alpha, [product], product.dtype)
    if beta == 0:
        return b.cast(product, result.dtype)
    if beta != 1:
        bias = b.elementwise(lambda s: s * beta, [bias], bias.dtype)
    return add_bias(b, product, bias, result)


def einsum(b: Builder, result: Meta, equation: str, operands: Sequence[Tensor], path: object = None) -> Tensor:
    """Lower aten.einsum with explicit or implicit output; a letter repeated in an operand takes its diagonal, "..." broadcasts."""
    terms, output = _explicit(equation, [x.rank for x in operands])
    return b.cast(contract(b, [_diagonals(b, x, term) for x, term in zip(operands, terms, strict=True)], output), result.dtype)


def _explicit(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of each operand and of the output, with each ellipsis expanded to unused letters."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
    spare = "".join(letter for letter in string.ascii_letters if letter not in equation)[: max(hidden)]
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        output = "..." * ("..." in left) + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    explicit = [term.replace("...", spare[len(spare) - count :]) for term, count in zip(terms, hidden, strict=True)]
    return explicit, output.replace("...", spare)


def _diagonals(b: Builder, x: Tensor, letters: str) -> Operand:
    """Return an operand with distinct letters: dimensions that share a letter are reduced to their diagonal."""
    kept = "".join(dict.fromkeys(letters))
    if kept == letters:
        return x, letters
    shape = tuple(x.shape[letters.index(letter)] for letter in kept)
    loops = [affine_dim(kept.index(letter)) for letter in letters]
    dense = b.dense(x)
    (value,) = b.generic(
        [(dense, loops)],
        [(b.empty(shape, x.dtype), x.dtype, [affine_dim(i) for i in range(len(kept))])],
        ["parallel"] * len(kept),
        lambda element, _: [element],
    )
    return b.dense_tensor(value, shape, x.dtype), kept
