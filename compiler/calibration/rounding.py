"""Weights rounded on calibration data: by GPTQ, or to nearest behind AWQ's scaling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from llmos.compiler.calibration.fitted import Fitted
from llmos.compiler.calibration.statistics import Activation, Observation, Read, Step, activation_statistics
from llmos.compiler.quant.awq import scale_search
from llmos.compiler.quant.gptq import gptq, gptq_int8
from llmos.compiler.quant.int8 import Int8Weight
from llmos.compiler.quant.nibbles import Nibbles
from llmos.compiler.quant.scheme import Scheme
from llmos.compiler.support.progress import Progress
from llmos.passes.quant._fitted import NUMBERS, SCALE, SMOOTH, ZERO_POINT

Readers = Mapping[tuple[int, ...], list[Read]]  # a product of each weight, by all activations that meet it

HESSIAN_BYTES = 1 << 30  # of second moments that are held together; what needs more takes further runs over the data


def fitted_rounding(observation: Observation, inputs: Sequence[Sequence[np.ndarray]], scheme: Scheme, progress: Progress) -> Fitted:
    """Return what makes the products by weights of 4 bits nearest to those of floats.

    Raises UserError where an activation is NaN or infinite.
    """
    if scheme.rounding == "gptq":
        return _nibbles(observation, inputs, scheme.group, progress)
    progress.phase("calibration")
    activations = activation_statistics(observation, inputs, progress.update)
    progress.phase("scale search")
    return {SMOOTH: dict(_vectors(activations, scheme.group, progress.update))}


def fitted_bytes(
    observation: Observation, inputs: Sequence[Sequence[np.ndarray]], smooth: Mapping[int, np.ndarray], progress: Progress
) -> Mapping[int, Int8Weight]:
    """Return weights of 8 bits by GPTQ, by `Product.weight`; those of several activations or axes are left to be rounded to nearest.

    smooth: vectors that activations are divided by, and weights multiplied, by `Product.activation`. Raises UserError as above.
    """
    alone = {lefts: [each for each in reads if each.is_matrix] for lefts, reads in _readers(observation).items() if len(lefts) == 1}
    readers: Readers = {lefts: products for lefts, products in alone.items() if products}
    found: dict[int, Int8Weight] = {}
    for [activation], products, hessian in _hessians(observation, inputs, readers, progress):
        vector = smooth.get(activation, np.ones(len(hessian), np.float32))
        weights = [observation.weight(product) * vector for product in products]
        rounded = gptq_int8(np.concatenate(weights), hessian / np.outer(vector, vector).astype(np.float64))
        ends = np.cumsum([len(weight) for weight in weights])[:-1]
        parts = zip(products, np.split(rounded.numbers, ends), np.split(rounded.scale, ends), strict=True)
        found |= {product.weight: Int8Weight(numbers, scale) for product, numbers, scale in parts}
    return found


def _vectors(activations: Mapping[int, Activation], group: int, step: Step) -> Iterator[tuple[int, np.ndarray]]:
    for done, (number, each) in enumerate(activations.items(), 1):
        vector = scale_search(each.rows, np.concatenate(list(each.weights.values())), group)
        if vector is not None:
            yield number, vector
        step(done, len(activations))


class _Hessian:
    """Σ xᵀ x over the rows of some activations: float64 [k, k]."""

    def __init__(self, k: int) -> None:
        self.matrix = np.zeros((k, k))

    def add(self, rows: np.ndarray) -> None:
        wide = rows.astype(np.float64)
        self.matrix += wide.T @ wide


def _nibbles(observation: Observation, inputs: Sequence[Sequence[np.ndarray]], group: int, progress: Progress) -> Fitted:
    """GPTQ on the activations of the float model."""
    made = {NUMBERS: dict[int, np.ndarray](), SCALE: dict[int, np.ndarray](), ZERO_POINT: dict[int, np.ndarray]()}
    for _lefts, products, hessian in _hessians(observation, inputs, _readers(observation), progress):
        weights = [observation.weight(product) for product in products]
        rounded = gptq(np.concatenate(weights), hessian, group)
        for product, part in zip(products, _split(rounded, [len(each) for each in weights]), strict=True):
            for prefix, array in ((NUMBERS, part.numbers), (SCALE, part.scale), (ZERO_POINT, part.zero_point)):
                made[prefix][product.weight] = product.as_stored(array)
    return made


def _hessians(
    observation: Observation, inputs: Sequence[Sequence[np.ndarray]], readers: Readers, progress: Progress
) -> Iterator[tuple[tuple[int, ...], list[Read], np.ndarray]]:
    """Yield the second moments of each key of `readers`, with its products. Runs the data as often as HESSIAN_BYTES makes it."""
    done = 0
    for parts in _rounds(readers):
        progress.phase("calibration")
        hessians = {activations: _Hessian(products[0].channels) for activations, products in parts.items()}
        collectors = dict[int, list[_Hessian]]()
        for activations, hessian in hessians.items():
            for activation in activations:
                collectors.setdefault(activation, []).append(hessian)
        observation.run(inputs, collectors, progress.update)
        progress.phase("GPTQ")
        for activations, products in parts.items():
            yield activations, products, hessians.pop(activations).matrix
            done += 1
            progress.update(done, len(readers))


def _readers(observation: Observation) -> Readers:
    met: dict[int, list[Read]] = {}
    for product in observation.products:
        met.setdefault(product.weight, []).append(product)
    found: dict[tuple[int, ...], list[Read]] = {}
    for products in met.values():
        found.setdefault(tuple(sorted({each.activation for each in products})), []).append(products[0])
    return found


def _rounds(readers: Readers) -> Iterator[Readers]:
    """Parts whose second moments take HESSIAN_BYTES together, or which are one."""
    part: dict[tuple[int, ...], list[Read]] = {}
    total = 0
    for activations, products in readers.items():
        size = 8 * products[0].channels ** 2
        if part and total + size > HESSIAN_BYTES:
            yield part
            part, total = {}, 0
        part[activations] = products
        total += size
    if part:
        yield part


def _split(rounded: Nibbles, lengths: Sequence[int]) -> Iterator[Nibbles]:
    """The rows of several weights."""
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        yield Nibbles(rounded.numbers[rows], rounded.scale[rows], rounded.zero_point[rows])
        start += length
