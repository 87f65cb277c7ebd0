"""The null backend: every call of a compile, no code. It counts what it is asked for, which is how the driver is tested.

llmos compile model.onnx --backend null --target null
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from llmos.compiler.backends.base import CompiledModel, CompileObserver, Planned, Stage, Target
from llmos.compiler.backends.entry import describe_entry, symbols_of
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.ir.sizes import SymbolTable
from llmos.compiler.ir.weights import Weight
from llmos.passes import Pass, PassContext
from llmos.runtime.artifact.writer import CodeVariant
from llmos.runtime.errors import UnsupportedError, UserError


@dataclass(frozen=True, kw_only=True)
class NullTarget(Target):
    """What runs nowhere."""

    device: str = "null"

    def runs_here(self) -> bool:
        """Return False: no machine does."""
        return False

    def this_machine(self) -> str:
        """Return that times mean nothing."""
        return "no machine"

    @property
    def requirements(self) -> str:
        """Return that a machine needs nothing."""
        return "no processor"


TARGETS = (NullTarget(name="null"), NullTarget(name="null-2"))


@dataclass(frozen=True, eq=False)
class NullPlanned(Planned):
    """Without dispatches, and so without kernels."""

    @cached_property
    def record(self) -> CompiledModel:
        """Return the entry's signature and weights; no kernels."""
        main = EntryFunc.of(self.module).op
        with self.module.context, ir.Location.unknown():
            table = SymbolTable.of(self.module)
            entry = describe_entry(main, table, {})
        return CompiledModel((entry,), symbols_of(table), self.weights, kernels=(), passes=self.passes)


class NullBackend:
    """Makes a line of text of each planned module, and no bytes of that. calls: how often each part of it was asked for."""

    name = "null"
    known_targets: Sequence[NullTarget] = TARGETS

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.stages: Mapping[str, Stage] = {"text": Stage(self._text, str), "null": Stage(self._nothing, bytes, compiles=True)}

    def targets(self, text: str) -> list[NullTarget]:
        """All of them for "portable" and "native"."""
        return list(TARGETS) if text in ("portable", "native") else [self._named(part.strip()) for part in text.split(",")]

    def code_targets(self, text: str, targets: Sequence[Target], plans: Sequence[Planned]) -> list[Target]:
        """Return all targets."""
        return list(targets)

    def parse_target(self, name: str) -> NullTarget:
        """Return the target of a name. Raises ValueError, with the names there are."""
        for target in TARGETS:
            if target.name == name:
                return target
        raise ValueError(f"{name!r} is no target; there are {', '.join(target.name for target in TARGETS)}")

    def dispatch_passes(self, options: CompileOptions) -> list[Pass]:
        """Return no passes."""
        self.calls["dispatch_passes"] += 1
        return []

    def plan_passes(self, options: CompileOptions) -> list[Pass]:
        """Return no passes."""
        self.calls["plan_passes"] += 1
        return []

    def context(self, options: CompileOptions) -> PassContext:
        """Return a context without a cost model."""
        return PassContext(precision=options.precision)

    def plan(self, module: ir.Module, weights: Mapping[str, Weight], passes: Sequence[str]) -> NullPlanned:
        """Return the module as it is."""
        self.calls["plan"] += 1
        return NullPlanned(module, weights, tuple(passes))

    def lower_entries(
        self, plans: Mapping[str, Planned], targets: Sequence[Target], options: CompileOptions, observer: CompileObserver
    ) -> CompiledModel:
        """Raises UnsupportedError."""
        raise UnsupportedError("the null backend makes artifacts of one entry")

    def member(self, target: str, code: bytes) -> CodeVariant:
        """Return a variant for the architecture "null"."""
        self.calls["member"] += 1
        return CodeVariant(target, "null", (), code)

    def _named(self, name: str) -> NullTarget:
        try:
            return self.parse_target(name)
        except ValueError as error:
            raise UserError(str(error)) from None

    def _text(self, planned: NullPlanned, target: NullTarget, options: CompileOptions) -> str:
        self.calls["text"] += 1
        return f"{options.precision}\n"

    def _nothing(self, text: str, target: NullTarget, options: CompileOptions) -> bytes:
        self.calls["null"] += 1
        return b""
