"""What a kernel may choose without changing its results: shapes of tiles, what is asked of memory ahead of time.

Each output element of a contraction is one chain over k whatever the tile (docs/codegen.md), so choices change a kernel's speed and
nothing else. What isn't chosen is left to the analytic model of the caches (backends/cpu/kernels/contraction_schedule.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos.compiler.backends.base import Target

_NEXT_FIELD, _NEXT_DISPATCH = "+", ";"


@dataclass(frozen=True)
class Tiling:
    """Choices of one contraction; None leaves one to the analytic model. Raises ValueError for a number that a choice can't have.

    target: name of the target that they were made for; on others only `columns` counts, since weights lie in one layout for all.
    columns: of a panel of a packed weight: 16, 32, 48 or 64.
    rows: of a tile, at most.
    ahead: rows of a panel between a read and the request to memory, 0 for none.
    depth: rows of a panel that are multiplied before the next, at most; 0 for all of them.
    lines: cache lines of the next panel that a full block asks for in UNROLL steps, 0 for none.
    """

    target: str = ""
    columns: int | None = None
    rows: int | None = None
    ahead: int | None = None
    depth: int | None = None
    lines: int | None = None

    def __post_init__(self) -> None:
        if self.columns not in (None, 16, 32, 48, 64):
            raise ValueError(f"columns={self.columns}: a panel has 16, 32, 48 or 64")
        for name, low, high in (("rows", 1, 1 << 16), ("ahead", 0, 256), ("depth", 0, 1 << 16), ("lines", 0, 64)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}={value}: expected {low} to {high}")

    def __str__(self) -> str:
        target = {"target": self.target} if self.target else {}
        return _NEXT_FIELD.join(f"{name}={value}" for name, value in {**target, **self.chosen()}.items())

    def chosen(self) -> dict[str, int]:
        """Return the choices that were made, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if isinstance(value, int)}

    def on(self, target: Target) -> Tiling:
        """Return what counts for a target: all choices if they were made for it, else `columns` alone."""
        plain = target.code_target(()).name
        return self if self.target in (target.name, plain) else Tiling(columns=self.columns)

    @classmethod
    def of(cls, target: str, chosen: Mapping[str, int]) -> Tiling:
        """Build a tiling from what `chosen` gave. Raises ValueError for a choice that there isn't, or a number it can't have."""
        unknown = set(chosen) - {field.name for field in dataclasses.fields(cls) if field.name != "target"}
        if unknown:
            raise ValueError(f"a tiling has no {sorted(unknown)[0]!r}")
        for name, value in chosen.items():
            if type(value) is not int:
                raise ValueError(f"{name}={value!r} is not an integer")
        return cls(target, **chosen)

    @classmethod
    def parse(cls, text: str) -> Tiling:
        """Build a tiling from what `str` gave, such as columns=64+rows=32. Raises ValueError for any other text."""
        items = {name: value for name, _, value in (item.partition("=") for item in text.split(_NEXT_FIELD) if item)}
        target = items.pop("target", "")
        return cls.of(target, {name: _integer(name, value) for name, value in items.items()})


@dataclass(frozen=True)
class Tilings:
    """The tilings of some dispatches, by the hash of their text (passes/tile_dispatches.py)."""

    items: tuple[tuple[str, Tiling], ...] = ()

    def __str__(self) -> str:
        return _NEXT_DISPATCH.join(f"{key}:{tiling}" for key, tiling in self.items)

    def __iter__(self) -> Iterator[tuple[str, Tiling]]:
        return iter(self.items)

    def __bool__(self) -> bool:
        return bool(self.items)

    @classmethod
    def parse(cls, text: str) -> Tilings:
        """Build the tilings from what `str` gave. Raises ValueError for any other text."""
        parts = [item.partition(":") for item in text.split(_NEXT_DISPATCH) if item]
        return cls(tuple((key, Tiling.parse(tiling)) for key, _, tiling in parts))


NO_TILINGS = Tilings()


def _integer(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{name}={text}: {text!r} is not an integer")
    return int(text)
