"""A random graph as a small torch program in text: built statement by statement, each tried at all sizes before it is taken."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Sizes = tuple[int, int]  # batch, tokens
HALF = (torch.float16, torch.bfloat16)
MAX_NUMEL, MAX_RANK, MAX_ABS = 1 << 16, 5, 1e4


class Misfit(Exception):
    """The values at hand don't fit an op; the step is left out."""


@dataclass(frozen=True)
class Value:
    """A variable of the program, with the tensor it holds at each of the graph's sizes."""

    name: str
    samples: tuple[Tensor, ...]
    exact: bool  # the same bits whatever the order of sums: may be compared, rounded, or made an index
    half: bool  # float16 or bfloat16 is somewhere on the way to it

    @property
    def rank(self) -> int:
        return self.samples[0].dim()

    @property
    def dtype(self) -> torch.dtype:
        return self.samples[0].dtype

    @property
    def is_float(self) -> bool:
        return self.dtype.is_floating_point

    def static(self, axis: int) -> int | None:
        """The size of a dim, or None where it differs from run to run."""
        found = {sample.shape[axis] for sample in self.samples}
        return found.pop() if len(found) == 1 else None

    def size(self, axis: int) -> str:
        """The size of a dim as an expression of the program."""
        static = self.static(axis)
        return f"{self.name}.shape[{axis}]" if static is None else str(static)

    def smallest(self, axis: int) -> int:
        return min(sample.shape[axis] for sample in self.samples)


@dataclass(frozen=True)
class Input:
    """An input of the program: "b", "t" or a size for each dim."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | str, ...]

    def make(self, sizes: Sizes, seed: int) -> Tensor:
        """Multiples of 1/16 that float16 holds too, small integers, or bools: sums of few are exact."""
        generator = torch.Generator().manual_seed(seed)
        shape = [{"b": sizes[0], "t": sizes[1]}[d] if isinstance(d, str) else d for d in self.dims]
        if self.dtype == torch.bool:
            return torch.randint(0, 2, shape, generator=generator).bool()
        if not self.dtype.is_floating_point:
            low = 0 if self.dtype == torch.uint8 else -20
            return torch.randint(low, 21, shape, generator=generator).to(self.dtype)
        return (torch.randn(shape, generator=generator) * 16).round().clamp(-64, 64).div(16).to(self.dtype)


@dataclass
class Graph:
    """A program under construction. `sizes` are what it runs at; the first is what it is traced with."""

    inputs: tuple[Input, ...]
    sizes: tuple[Sizes, ...]
    members: list[str] = field(default_factory=list)  # of __init__: "self.m3 = torch.nn.Linear(12, 5)"
    body: list[str] = field(default_factory=list)  # of forward: "v3 = self.m3(v0)"
    values: list[Value] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    ops: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, each in enumerate(self.inputs):
            samples = tuple(each.make(sizes, 100 * number + i) for i, sizes in enumerate(self.sizes))
            self.values.append(Value(each.name, samples, True, each.dtype in HALF))

    def add(self, op: Op, numbers: Sequence[int]) -> None:
        """Add an op to the program where it fits. Raises Misfit."""
        pick = Pick(self, numbers)
        self._take(op.write(pick), pick, op.exact and all(value.exact for value in pick.used))
        self.ops.append(op.name)

    def write(self, expression: str, *members: str) -> None:
        """Add an expression by hand; `members` are the layers it calls self.m0, self.m1, ... Raises Misfit."""
        pick = Pick(self, ())
        for text in members:
            pick.member(text)
        self._take(expression, pick, False)

    def _take(self, expression: str, pick: Pick, exact: bool) -> None:
        samples = tuple(self._run(expression, pick, i) for i in range(len(self.sizes)))
        self._check(samples)
        half = samples[0].dtype in HALF or any(value.half for value in pick.used)
        name = f"v{len(self.values)}"
        for member, text in pick.members:
            self.members.append(f"torch.manual_seed({len(self.members)}); self.{member} = {text}")
        self.body.append(f"{name} = {expression}")
        self.values.append(Value(name, samples, exact or not (samples[0].is_floating_point() or samples[0].is_complex()), half))
        self.read |= {value.name for value in pick.used}

    def _run(self, expression: str, pick: Pick, sample: int) -> Tensor:
        scope: dict[str, Any] = {value.name: value.samples[sample] for value in self.values}
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                result = eval(expression, {"torch": torch, "F": F, "self": pick.holder(), **scope})
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError) as error:
            raise Misfit(str(error)) from None
        if not isinstance(result, Tensor):
            raise Misfit("no tensor")
        return result

    def _check(self, samples: Sequence[Tensor]) -> None:
        if len({(sample.dim(), sample.dtype) for sample in samples}) > 1 or samples[0].dim() > MAX_RANK:
            raise Misfit("rank or dtype depends on sizes")
        for sample in samples:
            if sample.numel() > MAX_NUMEL or sample.is_complex():
                raise Misfit("too large")
            if sample.is_floating_point() and sample.numel() and not bool((sample.abs() < MAX_ABS).all()):
                raise Misfit("not finite")

    def outputs(self) -> list[Value]:
        """What nothing reads, and every fourth of the others."""
        made = self.values[len(self.inputs) :]
        return [value for i, value in enumerate(made) if value.name not in self.read or i % 4 == 3] or self.values[:1]

    def source(self, name: str = "Graph") -> str:
        """The whole program as text, ready to paste into a test."""
        members = "".join(f"        {line}\n" for line in self.members)
        body = "".join(f"        {line}\n" for line in self.body)
        returned = "".join(f"{value.name}, " for value in self.outputs()).strip()
        return (
            f"class {name}(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n{members}\n"
            f"    def forward(self, {', '.join(each.name for each in self.inputs)}):\n{body}        return ({returned})\n"
        )

    def module(self) -> torch.nn.Module:
        scope: dict[str, Any] = {"torch": torch, "F": F}
        exec(self.source(), scope)
        made: torch.nn.Module = scope["Graph"]().eval()
        return made

    def arguments(self, sample: int) -> list[Tensor]:
        return [value.samples[sample] for value in self.values[: len(self.inputs)]]

    def __repr__(self) -> str:
        """What a failing test prints."""
        inputs = ", ".join(f"{each.name}: {str(each.dtype).removeprefix('torch.')}{list(each.dims)}" for each in self.inputs)
        return f"\n# {inputs}; (b, t) = {', '.join(map(str, self.sizes))}\n{self.source()}"


class Pick:
    """Gives an op its operands and options, from numbers: 0 is the newest value and the first option, so that less is simpler."""

    def __init__(self, graph: Graph, numbers: Sequence[int]) -> None:
        self.graph = graph
        self.used: list[Value] = []
        self.members: list[tuple[str, str]] = []
        self._numbers = iter(numbers)

    def below(self, limit: int) -> int:
        return next(self._numbers, 0) % limit if limit > 0 else self.misfit()

    def one(self, *options: Any) -> Any:
        return options[self.below(len(options))]

    def flag(self) -> bool:
        return self.below(2) == 1

    def value(self, fits: Callable[[Value], bool] = lambda value: True) -> Value:
        found = [value for value in reversed(self.graph.values) if fits(value)]
        self.used.append(self.one(*found))
        return self.used[-1]

    def real(self, rank: int = 0, most: int = MAX_RANK, exact: bool = False) -> Value:
        """A float value of that many dims."""
        return self.value(lambda v: v.is_float and rank <= v.rank <= most and (v.exact or not exact))

    def whole(self, rank: int = 0) -> Value:
        return self.value(lambda v: not v.is_float and v.dtype != torch.bool and v.rank >= rank)

    def axis(self, value: Value, static: bool = False) -> int:
        axes = [i for i in reversed(range(value.rank)) if not static or value.static(i)]
        return int(self.one(*axes))

    def member(self, text: str) -> str:
        """A layer or parameter of the program, by what makes it."""
        name = f"m{len(self.graph.members) + len(self.members)}"
        self.members.append((name, text))
        return f"self.{name}"

    def misfit(self) -> NoReturn:
        raise Misfit

    def need(self, condition: object) -> None:
        if not condition:
            raise Misfit

    def holder(self) -> torch.nn.Module:
        holder = torch.nn.Module()
        for number, (name, text) in enumerate(self.members):
            torch.manual_seed(len(self.graph.members) + number)
            try:
                setattr(holder, name, eval(text, {"torch": torch, "F": F}))
            except (ValueError, RuntimeError) as error:
                raise Misfit(str(error)) from None
        return holder.eval()


@dataclass(frozen=True)
class Op:
    """`write` gives an expression of Python; `exact`: exact operands give an exact result."""

    name: str
    write: Callable[[Pick], str]
    exact: bool
