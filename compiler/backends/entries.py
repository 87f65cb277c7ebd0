"""Several models as the entries of one artifact, over one table of weights.

Each goes through the passes alone. Then they get what they share: the symbols of all, the places of their weights in the one table, where
equal bytes lie once, and numbers of their own for their dispatches. A backend then makes one code of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from llmos.compiler.backends.base import CompiledModel, Planned
from llmos.compiler.ir.attributes import SYMBOLS, ranges_attribute
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.weights import Weight
from llmos.runtime.artifact.manifest import EntrySpec, KernelSpec, Symbol


@dataclass(frozen=True, eq=False)
class EntryPlanned(Planned):
    """One that may be an entry of several. places: of its weights in the table of all, empty where it has the table for itself;
    first_kernel: the number of its first dispatch among those of all."""

    places: tuple[int, ...] = ()
    first_kernel: int = 0


Plan = TypeVar("Plan", bound=EntryPlanned)


def together(plans: Mapping[str, Plan]) -> tuple[dict[str, Plan], CompiledModel]:
    """Return the plans with their places in what they share, and the record of all.

    Symbols of one name have one range, and states are each one entry's own.
    """
    records = {name: plan.record for name, plan in plans.items()}
    symbols = {symbol.name: symbol for record in records.values() for symbol in record.symbols}
    table = _WeightTable()
    stored = {name: {own: table.add(name, own, weight) for own, weight in record.weights.items()} for name, record in records.items()}
    order = list(table.weights)
    placed: dict[str, Plan] = {}
    kernels: list[KernelSpec] = []
    for name, plan in plans.items():
        places = tuple(order.index(each) for each in stored[name].values())
        _share_symbols(plan.module, symbols)
        placed[name] = replace(plan, places=places, first_kernel=len(kernels))
        kernels += [replace(kernel, name=f"{name}.{kernel.name}") for kernel in records[name].kernels]
    made = CompiledModel(
        entries=tuple(_named(record.entries[0], name, stored[name]) for name, record in records.items()),
        symbols=tuple(sorted(symbols.values(), key=lambda symbol: symbol.name)),  # as the modules' attribute has them
        weights=table.weights,
        kernels=tuple(kernels),
        plan={"slots": {name: record.plan["slots"] for name, record in records.items()}},
        passes=next(iter(records.values())).passes,
        computed=tuple(symbol for record in records.values() for symbol in record.computed),
    )
    return placed, made


def _named(entry: EntrySpec, name: str, weights: Mapping[str, str]) -> EntrySpec:
    """The entry by its name among others. weights: what its own are called in the table."""
    states = tuple(weights[state] for state in entry.states)
    guards = replace(entry.guards, symbol=f"__llmos_guards_{name}") if entry.guards else None
    return replace(entry, name=name, symbol=f"__tvm_ffi_{name}", shapes=f"__llmos_shapes_{name}", states=states, guards=guards)


def _share_symbols(module: ir.Module, symbols: Mapping[str, Symbol]) -> None:
    """Give a module the symbols of all entries: the core hands each entry's functions all of them."""
    with module.context:
        ranges = {symbol.name: (symbol.min, symbol.max) for symbol in symbols.values()}
        module.operation.attributes[SYMBOLS] = ranges_attribute(ranges)


@dataclass
class _WeightTable:
    """Weights by their names in the artifact, each tensor once."""

    weights: dict[str, Weight] = field(default_factory=dict)
    _digests: dict[str, bytes] = field(default_factory=dict)

    def add(self, entry: str, name: str, weight: Weight) -> str:
        """The name of a tensor of the same dtype, shape and bytes: of one that is there, or its own, perhaps behind the entry's."""
        alike = [known for known, other in self.weights.items() if (other.dtype, other.shape) == (weight.dtype, weight.shape)]
        digest = _digest(weight) if alike else b""
        for known in alike:
            if self._digest(known) == digest:
                return known
        while name in self.weights:
            name = f"{entry}.{name}"
        self.weights[name] = weight
        return name

    def _digest(self, name: str) -> bytes:
        if name not in self._digests:
            self._digests[name] = _digest(self.weights[name])
        return self._digests[name]


def _digest(weight: Weight) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(weight.load()).reshape(-1).view(np.uint8).data).digest()
