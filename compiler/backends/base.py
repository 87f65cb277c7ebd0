"""What a backend gives for a model: the seam between compiler.backends and compiler.driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.weights import Weight
from llmos.passes import PassObserver
from llmos.runtime.artifact.manifest import ComputedSymbol, EntrySpec, KernelSpec, Symbol

StageContent: TypeAlias = "ir.Module | str | bytes"


@dataclass(frozen=True)
class CompiledModel:
    """Everything of an artifact that depends on code generation.

    code: shared object of each target, by the target's name, best first. weights: in the order of `llmos_context.weights`, read when they
    are written. passes: the pipeline that ran, as texts.
    """

    entries: tuple[EntrySpec, ...]
    symbols: tuple[Symbol, ...]
    weights: Mapping[str, Weight]
    kernels: tuple[KernelSpec, ...]
    code: Mapping[str, bytes] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    passes: tuple[str, ...] = ()
    computed: tuple[ComputedSymbol, ...] = ()


class CompileObserver(PassObserver):
    """Told how a compile proceeds; each method may be overridden. A backend calls it at every stage boundary.

    `stage_finished` may raise StageReached, which the driver catches: a backend lets it through.
    """

    def described(self, model: CompiledModel) -> None:
        """All but `code` is known: called once, before the first stage "ll"."""

    def stage_finished(
        self, stage: str, content: StageContent, target: str | None = None, weights: Mapping[str, Weight] | None = None
    ) -> None:
        """`stage` of options.STAGES is reached, for one target or, where it is None, for all.

        `content` is a module, LLVM IR text, or the bytes of an object; `weights` are the arguments of a module whose weights have changed.
        """

    def code_progress(self, done: int, total: int) -> None:
        """`done` of `total` objects are compiled."""


class StageReached(Exception):
    """Ends a backend once the last wanted stage is there."""
