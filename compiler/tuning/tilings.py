"""One model in several tilings: code that differs in speed alone, for a search to measure (tuning/search.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llmos.compiler.backends.base import CompiledModel
from llmos.compiler.backends.cpu.emit import Emitter
from llmos.compiler.backends.cpu.link import link_shared
from llmos.compiler.backends.cpu.pipeline import describe, folded_weights, lowered, pipeline
from llmos.compiler.backends.cpu.program import Program
from llmos.compiler.backends.cpu.target import Target
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.tiling import Tilings
from llmos.compiler.ir.weights import Weight
from llmos.passes import Pass, PipelineOptions, run_pipeline
from llmos.passes.pack_weights import PackWeights
from llmos.passes.tile_dispatches import TileDispatches, tiling_key

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
    """A model as it is before its weights are packed; from here tilings lead to different code."""

    text: str
    context: ir.Context
    weights: Mapping[str, Weight]
    options: CompileOptions
    rest: tuple[Pass, ...]

    @classmethod
    def of(cls, imported: ImportedModel, options: CompileOptions) -> Untiled:
        """Runs the passes on a copy. Raises UnsupportedError, PassError."""
        with imported.module.context, ir.Location.unknown():
            module = ir.Module.parse(str(imported.module))
        steps = pipeline(options)
        place = steps.index(PackWeights())
        run_pipeline(module, steps[:place], options=PipelineOptions(None, options.repro))
        weights = {**imported.weights, **folded_weights(module, imported.weights, options)}
        return cls(str(module), module.context, weights, options, steps[place:])

    def compiled(self, choices: Sequence[Tilings], target: Target, emitter: Emitter) -> list[Variant]:
        """A variant for each of `choices`, compiled side by side."""
        programs = [self._program(tilings) for tilings in choices]
        code_target = target.code_target(self.options.precision)
        objects = emitter.objects((code_target, lowered(program, target)) for program in programs)
        return [self._variant(program, target, link_shared([data])) for program, data in zip(programs, objects, strict=True)]

    def _program(self, tilings: Tilings) -> Program:
        with self.context, ir.Location.unknown():
            module = ir.Module.parse(self.text)
        run_pipeline(module, [TileDispatches(tilings), *self.rest], options=PipelineOptions(None, self.options.repro))
        with self.context, ir.Location.unknown():
            return Program.of(module)

    def _variant(self, program: Program, target: Target, code: bytes) -> Variant:
        with self.context, ir.Location.unknown():
            compiled = replace(describe(program, self.weights, ()), code={target.name: code})
            keys = {each.name: tiling_key(each.func) for each in program.dispatches if each.kind == TUNED}
        return Variant(compiled, keys)
