"""One model in several tilings: code that differs in speed alone, for a search to measure (tuning/search.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llmos.compiler.backends.base import Backend, CompiledModel, Planned, StageContent, Target
from llmos.compiler.backends.lowering import lower_each
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import form_dispatches, plan_dispatches
from llmos.compiler.backends.registry import backend_of
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc, dispatch_functions, name_of
from llmos.compiler.ir.tiling import NO_TILINGS, Tilings
from llmos.passes.tile_dispatches import tiling_key

TUNED = "contraction"  # the kind of dispatch that has choices


@dataclass(frozen=True)
class Variant:
    """Compiled code, and the hash of each tuned dispatch by its kernel's name."""

    compiled: CompiledModel
    keys: Mapping[str, str]

    @property
    def code(self) -> bytes:
        return next(iter(self.compiled.code.values()))


@dataclass(frozen=True)
class Untiled:
    """A model whose dispatches are formed; from here tilings lead to different code."""

    formed: ImportedModel
    options: CompileOptions
    backend: Backend

    @classmethod
    def of(cls, imported: ImportedModel, options: CompileOptions) -> Untiled:
        """Runs the passes on a copy. Raises UnsupportedError, PassError."""
        backend = backend_of(options)
        own = replace(options, tilings=NO_TILINGS, cache=False)
        return cls(form_dispatches(imported, own, backend), own, backend)

    def compiled(self, choices: Sequence[Tilings], target: Target) -> list[Variant]:
        """A variant for each of `choices`, compiled side by side."""
        planned = [plan_dispatches(self.formed, replace(self.options, tilings=tilings), self.backend) for tilings in choices]
        starts: list[tuple[StageContent, Target]] = [(each, target) for each in planned]
        code = lower_each(starts, self.options, self.backend)
        return [self._variant(*both, target) for both in zip(planned, code, strict=True)]

    def _variant(self, planned: Planned, code: StageContent, target: Target) -> Variant:
        assert isinstance(code, bytes)
        compiled = replace(planned.record, code={target.name: code})
        with planned.module.context:
            return Variant(compiled, _keys(planned.module))


def _keys(module: ir.Module) -> dict[str, str]:
    """The hash of each dispatch that has choices, by its name."""
    tuned = [func for func in dispatch_functions(module) if DispatchFunc(func).kind == TUNED]
    return {name_of(func): tiling_key(func) for func in tuned}
