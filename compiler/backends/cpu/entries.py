"""Several models as the entries of one shared object, over one table of weights.

Each goes through the passes alone. Then they get what they share: the symbols of all, the places of their weights in the one table, where
equal bytes lie once, and numbers of their own for their dispatches. Their objects are linked together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from llmos.compiler.backends.base import Backend, CompiledModel, CompileObserver, Planned, StageContent, Target
from llmos.compiler.backends.cpu.planned import CpuPlanned
from llmos.compiler.backends.lowering import lower_each
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.codegen.link import link_shared
from llmos.compiler.ir.attributes import SYMBOLS, ranges_attribute
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.weights import Weight
from llmos.runtime.artifact.manifest import EntrySpec, KernelSpec, Symbol

MAIN = "main"  # what every module calls its entry


def lower_entries(
    plans: Mapping[str, Planned], targets: Sequence[Target], options: CompileOptions, backend: Backend, observer: CompileObserver
) -> CompiledModel:
    """All entries, by their names, for all targets. Symbols of one name have one range, and states are each one entry's own.

    Raises PassError.
    """
    placed, record = _together(plans)
    starts: list[tuple[StageContent, Target]] = [(placed[name], target) for target in targets for name in plans]
    texts = lower_each(starts, options, backend, until="ll")
    named = [(with_own_names(str(text), name), target) for text, (target, name) in zip(texts, product(targets, plans), strict=True)]
    objects = lower_each(named, options, backend, observer, after="ll", until="o")
    count = len(plans)
    parts = [[data for data in objects[at : at + count] if isinstance(data, bytes)] for at in range(0, len(objects), count)]
    return record.with_code(targets, [link_shared(each) for each in parts])


def _together(plans: Mapping[str, Planned]) -> tuple[dict[str, CpuPlanned], CompiledModel]:
    """The plans with their places in what they share, and the record of all."""
    records = {name: plan.record for name, plan in plans.items()}
    symbols = {symbol.name: symbol for record in records.values() for symbol in record.symbols}
    table = _WeightTable()
    stored = {name: {own: table.add(name, own, weight) for own, weight in record.weights.items()} for name, record in records.items()}
    order = list(table.weights)
    placed: dict[str, CpuPlanned] = {}
    kernels: list[KernelSpec] = []
    for name, plan in plans.items():
        places = tuple(order.index(each) for each in stored[name].values())
        _share_symbols(plan.module, symbols)
        placed[name] = CpuPlanned(plan.module, plan.weights, plan.passes, places, first_kernel=len(kernels))
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


_DEFINED = re.compile(r"^(?:define [^@\n]*)?@([\w.$]+)(?:\(| =)", re.MULTILINE)
_NAME = re.compile(r"@([\w.$]+)")


def with_own_names(text: str, entry: str) -> str:
    """LLVM IR whose functions and globals are no other entry's: what it exports ends in the entry's name, all else begins with it."""
    defined = set(_DEFINED.findall(text))
    exported = {f"{prefix}_{MAIN}": f"{prefix}_{entry}" for prefix in ("__tvm_ffi", "__llmos_shapes", "__llmos_guards")}
    names = {name: exported.get(name, f"{entry}.{name}") for name in defined}
    return _NAME.sub(lambda found: f"@{names.get(found[1], found[1])}", text)
