"""The inputs of an accuracy report, and the reference's outputs for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmos.compiler.frontend.model import Reference
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.ir.guards import Guard, guards_of
from llmos.compiler.ir.sizes import Symbol, SymbolTable
from llmos.runtime.artifact.deviation import is_exact, measure, numbers
from llmos.runtime.artifact.recorded import RandomInput, RecordedArray
from llmos.runtime.errors import UserError

NUM_SIZES = 2  # sizes at which a model with dynamic dims runs, besides its example's
STORED_BYTES = 1 << 16  # inputs of a case up to this size are stored as bytes
EXAMPLE_BYTES = 1 << 18  # larger examples, without inputs of one value, only determine the distribution of values
SAMPLED = 1 << 18  # elements of a larger example that are inspected
_SMALL_SIZES = ((2, 5, 3, 7), (3, 7, 2, 11))
_NO_SIZE: dict[str, int] = {}


@dataclass(frozen=True)
class InputSpec:
    """An input of the entry: dims are expressions of the symbols' names."""

    name: str
    dtype: str
    dims: tuple[Any, ...]


@dataclass(frozen=True)
class OutputSpec:
    """An output of the entry."""

    name: str
    dtype: str


@dataclass(frozen=True)
class GoldenSample:
    """Inputs of one call, what they were made by where they were made up, and the reference's outputs.

    sensitivities: the relative change of each output when float inputs change by one rounding; empty if not measured.
    """

    sizes: Mapping[str, int]
    inputs: tuple[np.ndarray, ...]
    random_inputs: tuple[RandomInput | None, ...]
    outputs: tuple[np.ndarray, ...]
    sensitivities: tuple[float, ...] = ()

    def sensitivity(self, output: int) -> float:
        return self.sensitivities[output] if self.sensitivities else 0.0

    def recorded_inputs(self, specs: Sequence[InputSpec]) -> tuple[RecordedArray, ...]:
        """Return the inputs as stored in the accuracy report: as bytes if small or without a recipe."""
        small = sum(array.nbytes for array in self.inputs) <= STORED_BYTES
        parts = zip(specs, self.inputs, self.random_inputs, strict=True)
        return tuple(RecordedArray.of(spec.name, spec.dtype, array, None if small else random_input) for spec, array, random_input in parts)


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of an imported module's entry."""

    table: SymbolTable
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    guards: tuple[Guard, ...] = ()

    @classmethod
    def of(cls, module: ir.Module) -> Signature:
        entry, table = EntryFunc.of(module), SymbolTable.of(module)
        inputs = tuple(InputSpec(a.name, a.dtype, tuple(map(table.parse, a.callers_shape))) for a in entry.arguments.inputs)
        results = tuple(OutputSpec(each.name, each.dtype) for each in entry.results)
        return cls(table, inputs, results, guards_of(module.operation, table))

    def sizes_of(self, inputs: Sequence[np.ndarray]) -> dict[str, int]:
        """Return the symbols' sizes in a call."""
        pairs = [
            (dim, size) for spec, array in zip(self.inputs, inputs, strict=True) for dim, size in zip(spec.dims, array.shape, strict=True)
        ]
        return {str(dim): size for dim, size in pairs if dim.is_Symbol}

    def shape(self, spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
        values = {symbol.expr: sizes[symbol.name] for symbol in self.table.symbols if symbol.name in sizes}
        return tuple(int(dim.subs(values)) for dim in spec.dims)


def record(reference: Reference, examples: Sequence[Sequence[np.ndarray]], signature: Signature) -> list[GoldenSample]:
    """Run the reference on the model's examples and, for dynamic dims, at other sizes.

    Raises UserError, with the reference's message, if all runs fail.
    """
    examples = [example for example in examples if _fits(example, signature)]
    found = [_run(reference, signature.sizes_of(example), example, made_by) for example, made_by in _small(examples, signature)]
    random_inputs = [_random_input(spec, [example[i] for example in examples]) for i, spec in enumerate(signature.inputs)]
    traced = signature.sizes_of(examples[0]) if examples else _NO_SIZE
    others = {tuple(each.sizes.items()) for each in found if each.sizes != traced}
    missing = NUM_SIZES - len(others) if signature.table.symbols else 1 - len(found)
    return found + [_record_made_up(reference, signature, random_inputs, traced, number) for number in range(missing)]


def _small(
    examples: Sequence[Sequence[np.ndarray]], signature: Signature
) -> Iterator[tuple[Sequence[np.ndarray], tuple[RandomInput | None, ...]]]:
    """The examples that a report can hold, with what makes the inputs that are one value, such as the caches of a language model.

    A model whose inputs depend on one another (a slot that no two tokens may write) runs as it should on its own examples alone.
    """
    for example in examples:
        made_by = tuple(_one_value(array, spec.dtype) for spec, array in zip(signature.inputs, example, strict=True))
        if sum(array.nbytes for array, each in zip(example, made_by, strict=True) if each is None) <= EXAMPLE_BYTES:
            yield example, made_by


def _one_value(array: np.ndarray, dtype: str) -> RandomInput | None:
    """What makes an array whose elements are all equal; None for others."""
    if not array.size or array.dtype.kind == "c" or (array != array.flat[0]).any():
        return None
    value = float(numbers(array.reshape(-1)[:1], dtype)[0])
    if abs(value) >= 2.0**53:
        return None
    found = RandomInput("integers" if is_exact(dtype) else "normal", 0, value, value, value, 0.0)
    return found if found.make(dtype, array.shape).tobytes() == array.tobytes() else None  # zeros have signs


def made_up(signature: Signature, examples: Sequence[Sequence[np.ndarray]], sizes: Mapping[str, int]) -> list[np.ndarray]:
    """Inputs of the sizes, with values like those of the examples."""
    fitting = [example for example in examples if _fits(example, signature)]
    random_inputs = [_random_input(spec, [example[i] for example in fitting]) for i, spec in enumerate(signature.inputs)]
    return [
        random_input.make(spec.dtype, signature.shape(spec, sizes))
        for random_input, spec in zip(random_inputs, signature.inputs, strict=True)
    ]


def _fits(example: Sequence[np.ndarray], signature: Signature) -> bool:
    """Whether an example matches the module's inputs (unused ones may have been dropped)."""
    return len(example) == len(signature.inputs) and all(
        array.ndim == len(spec.dims) for array, spec in zip(example, signature.inputs, strict=True)
    )


def _run(
    reference: Reference, sizes: Mapping[str, int], inputs: Sequence[np.ndarray], random_inputs: Sequence[RandomInput | None]
) -> GoldenSample:
    try:
        outputs = tuple(np.array(array) for array in reference([array.copy() for array in inputs]))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the reference doesn't run on recorded inputs ({reason})") from error
    return GoldenSample(dict(sizes), tuple(inputs), tuple(random_inputs), outputs)


def with_sensitivities(sample: GoldenSample, reference: Reference, signature: Signature) -> GoldenSample:
    """Rerun the reference with each float32 input moved by one rounding, which measures changes that the compiler doesn't cause."""
    moved = [moved_by_one_rounding(array, number) for number, array in enumerate(sample.inputs)]
    pairs = zip(signature.outputs, reference(moved), sample.outputs, strict=True)
    return replace(sample, sensitivities=tuple(_finite_error(np.asarray(got), want, spec.dtype) for spec, got, want in pairs))


def _finite_error(got: np.ndarray, want: np.ndarray, dtype: str) -> float:
    """The error of what is finite on both sides: an element that turns into NaN or Inf says nothing of the others. All of an output moves
    where even its size is another."""
    if got.shape != want.shape:
        return 1.0
    finite = np.isfinite(numbers(got, dtype)) & np.isfinite(numbers(want, dtype))
    return measure(np.where(finite, got, want), want, dtype).max_error


def moved_by_one_rounding(array: np.ndarray, seed: int) -> np.ndarray:
    """Return float32 or complex64 numbers with each element moved to the next number, up or down by chance; others as they are."""
    if array.dtype == np.complex64:
        return moved_by_one_rounding(array.reshape(-1).view(np.float32), seed).view(np.complex64).reshape(array.shape)
    if array.dtype != np.float32:
        return array.copy()
    up = np.random.PCG64(seed).random_raw(array.size).reshape(array.shape) % 2 == 1
    with np.errstate(over="ignore"):
        moved: np.ndarray = np.nextafter(array, np.where(up, np.float32(np.inf), np.float32(-np.inf)))
    return np.where(np.isfinite(array) & np.isfinite(moved), moved, array)


def _record_made_up(
    reference: Reference, signature: Signature, random_inputs: Sequence[RandomInput], traced: Mapping[str, int], number: int
) -> GoldenSample:
    """Record a run at the first sizes that the reference accepts."""
    failure = UserError(f"no sizes were found that satisfy {' and '.join(guard.text for guard in signature.guards)}")
    for sizes in candidate_sizes(signature.table.symbols, traced, number):
        if not all(guard.holds(sizes) for guard in signature.guards):
            continue
        try:
            seeded = [RandomInput(r.kind, r.seed + 100 * number, r.low, r.high, r.mean, r.std) for r in random_inputs]
            inputs = [
                random_input.make(spec.dtype, signature.shape(spec, sizes))
                for random_input, spec in zip(seeded, signature.inputs, strict=True)
            ]
            return _run(reference, sizes, inputs, seeded)
        except UserError as error:
            failure = error
    raise failure


def candidate_sizes(symbols: Sequence[Symbol], traced: Mapping[str, int], number: int) -> Iterator[dict[str, int]]:
    """Sizes of all symbols to try in turn: small ones, those beside the traced ones, the traced ones. `number` gives others again.

    Without traced sizes all symbols get one size, because it is unknown which of them must be equal.
    """
    if not traced:
        yield {s.name: min(max(_SMALL_SIZES[number % 2][1], s.min), s.max) for s in symbols}
        return
    small = {s.name: _SMALL_SIZES[number % 2][i % 4] for i, s in enumerate(symbols)}
    beside = {s.name: traced.get(s.name, s.min) + 1 + number for s in symbols}
    below = {s.name: traced.get(s.name, s.max) - 1 - number for s in symbols}
    for wanted in (small, beside, below):
        yield {s.name: _untraced(s, min(max(wanted[s.name], s.min), s.max), traced.get(s.name)) for s in symbols}
    yield dict(traced)


def _untraced(symbol: Symbol, size: int, traced: int | None) -> int:
    """Return a size near the traced one, other than 0 and 1 if possible, because broadcasting hides errors at those."""
    if size != traced and size > 1:
        return size
    choices = [each for each in (size + 1, size + 2, size - 1) if symbol.min <= each <= symbol.max and each not in (0, 1, traced)]
    return choices[0] if choices else size


def _reals(array: np.ndarray, dtype: str) -> np.ndarray:
    """Convert elements to float64, complex ones to real and imaginary parts."""
    return np.ascontiguousarray(numbers(array, dtype)).reshape(-1).view(np.float64)


def _random_input(spec: InputSpec, examples: Sequence[np.ndarray]) -> RandomInput:
    """Values like those of the examples: integers of their range, so that an index stays within its table; floats of their spread."""
    seed = 1 + sum(spec.name.encode())
    values = np.concatenate([_reals(_part(array, spec.dtype), spec.dtype) for array in examples] or [np.zeros(0)])
    values = np.clip(values[np.isfinite(values)], -(2.0**31), 2.0**31)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if spec.dtype == "bool":
        return RandomInput("integers", seed, 0.0, 1.0)
    if is_exact(spec.dtype):
        return RandomInput("mask" if "mask" in spec.name and low >= 0 and high == 1 else "integers", seed, low, high)
    if low == high or not values.size:
        return RandomInput("normal", seed, -4.0, 4.0)
    return RandomInput("normal", seed, low, high, float(f"{values.mean():.6g}"), float(f"{values.std():.6g}"))


def _part(array: np.ndarray, dtype: str) -> np.ndarray:
    """Sample a large array: both ends of its range for integers, else evenly spaced elements."""
    if array.size <= SAMPLED:
        return array
    return np.stack([array.min(), array.max()]) if is_exact(dtype) else array.reshape(-1)[:: array.size // SAMPLED]


def _text(attribute: ir.Attribute) -> str:
    return str(ir.StringAttr(attribute).value)
