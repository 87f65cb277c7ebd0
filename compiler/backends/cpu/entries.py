"""Several models as the entries of one shared object (backends/entries.py): their objects are linked together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product

from llmos.compiler.backends.base import Backend, CompiledModel, CompileObserver, Planned, StageContent, Target
from llmos.compiler.backends.cpu.planned import CpuPlanned
from llmos.compiler.backends.entries import together
from llmos.compiler.backends.lowering import lower_each
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.codegen.link import link_shared

MAIN = "main"  # what every module calls its entry


def lower_entries(
    plans: Mapping[str, Planned], targets: Sequence[Target], options: CompileOptions, backend: Backend, observer: CompileObserver
) -> CompiledModel:
    """All entries, by their names, for all targets. Raises PassError."""
    placed, record = together({name: plan for name, plan in plans.items() if isinstance(plan, CpuPlanned)})
    starts: list[tuple[StageContent, Target]] = [(placed[name], target) for target in targets for name in plans]
    texts = lower_each(starts, options, backend, until="ll")
    named = [(with_own_names(str(text), name), target) for text, (target, name) in zip(texts, product(targets, plans), strict=True)]
    objects = lower_each(named, options, backend, observer, after="ll", until="o")
    count = len(plans)
    parts = [[data for data in objects[at : at + count] if isinstance(data, bytes)] for at in range(0, len(objects), count)]
    return record.with_code(targets, [link_shared(each) for each in parts])


_DEFINED = re.compile(r"^(?:define [^@\n]*)?@([\w.$]+)(?:\(| =)", re.MULTILINE)
_NAME = re.compile(r"@([\w.$]+)")


def with_own_names(text: str, entry: str) -> str:
    """LLVM IR whose functions and globals are no other entry's: what it exports ends in the entry's name, all else begins with it."""
    defined = set(_DEFINED.findall(text))
    exported = {f"{prefix}_{MAIN}": f"{prefix}_{entry}" for prefix in ("__tvm_ffi", "__llmos_shapes", "__llmos_guards")}
    names = {name: exported.get(name, f"{entry}.{name}") for name in defined}
    return _NAME.sub(lambda found: f"@{names.get(found[1], found[1])}", text)
