"""What a backend is: the seam between compiler.backends and what drives it (driver, tuning, verify).

A backend takes over where the passes for all targets end (backends/common.py): it forms dispatches, plans them, and lowers the planned
module for each target, one stage after the other. docs/architecture.md, "To add a backend", says which files to write.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.target import Target as Target
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.weights import Weight
from llmos.compiler.quant.scheme import FP8
from llmos.passes import Pass, PassContext, PassObserver
from llmos.runtime.artifact.manifest import ComputedSymbol, EntrySpec, KernelSpec, Symbol
from llmos.runtime.artifact.writer import CodeVariant

IMPORTED, PLANNED, ARTIFACT = "linalg.mlir", "fused.mlir", "llmos"  # stages of every backend: before its own, and after them


@dataclass(frozen=True)
class CompiledModel:
    """Everything of an artifact that depends on code generation.

    code: code of each target, by the target's name, best first. weights: in the order of `llmos_context.weights`, read when they are
    written. passes: the pipeline that ran, as texts.
    """

    entries: tuple[EntrySpec, ...]
    symbols: tuple[Symbol, ...]
    weights: Mapping[str, Weight]
    kernels: tuple[KernelSpec, ...]
    code: Mapping[str, bytes] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    passes: tuple[str, ...] = ()
    computed: tuple[ComputedSymbol, ...] = ()

    def with_code(self, targets: Sequence[Target], code: Sequence[StageContent]) -> CompiledModel:
        """The same model with the last stage's content of each target."""
        return replace(self, code={target.name: data for target, data in zip(targets, code, strict=True) if isinstance(data, bytes)})

    @property
    def precision(self) -> str:
        """Arithmetic of contractions, as the passes that ran show it."""
        return precision_of(self.passes)


def precision_of(passes: Sequence[str]) -> str:
    """The precision of a compile, by the texts of its passes."""
    names = {step.split("{")[0] for step in passes}
    return "bf16" if names & {"truncate-activations", "narrow-activations"} else "fp32"  # the second is its name in earlier artifacts


def quant_of(passes: Sequence[str]) -> str:
    """The scheme of quantization of a compile, by the texts of its passes; "" for none."""
    found = {name: options for name, _, options in (step.rstrip("}").partition("{") for step in passes)}
    if "quantize-contractions" in found:
        return "w8a8"
    if "quantize-weights" not in found:
        return "w4a8" if "quantize-activations" in found else ""
    given = dict(each.split("=") for each in found["quantize-weights"].split())
    if given.get("bits") == "8":
        return FP8 if given.get("float8") == "true" else "w8a16"
    numbers, rounding = "w4a8" if "quantize-activations" in found else "w4a16", f":{given['rounding']}" if "rounding" in given else ""
    return f"{numbers}:g{given.get('group', 128)}{rounding}"


@dataclass(frozen=True, eq=False)
class Planned(ABC):
    """A model after all passes: the stage PLANNED.

    weights: of the module's arguments, by name. passes: texts of what ran.
    """

    module: ir.Module
    weights: Mapping[str, Weight]
    passes: tuple[str, ...]

    @property
    @abstractmethod
    def record(self) -> CompiledModel:
        """What the artifact says of it; no code yet."""


StageContent: TypeAlias = "Planned | ir.Module | str | bytes"


@dataclass(frozen=True)
class Stage:
    """How the content of a stage is made from that of the one before, for one target. Raises PassError.

    content: type of the content. The first stage of a backend is made from Planned.
    compiles: whether it is made outside of this process, for several targets at a time.
    """

    make: Callable[[Any, Any, CompileOptions], StageContent]
    content: type[ir.Module] | type[str] | type[bytes]
    compiles: bool = False


class Backend(Protocol):
    """Turns the common part of the linalg stage into code. Holds no state: one object serves every compile."""

    @property
    def name(self) -> str:
        """As `--backend` takes it."""

    @property
    def stages(self) -> Mapping[str, Stage]:
        """Stages after PLANNED, in order, by the extension of their files."""

    @property
    def known_targets(self) -> Sequence[Target]:
        """Those that have a name."""

    def targets(self, text: str) -> Sequence[Target]:
        """The targets that `--target TEXT` stands for, best first. Raises UserError for an unknown name."""

    def code_targets(self, text: str, targets: Sequence[Target], plans: Sequence[Planned]) -> Sequence[Target]:
        """Of the targets that `targets(text)` gave, those that code of some planned modules differs for."""

    def parse_target(self, name: str) -> Target:
        """The target of a name that `Target.name` gave. Raises ValueError."""

    def dispatch_passes(self, options: CompileOptions) -> Sequence[Pass]:
        """From where the common passes end to dispatches: nothing that options.tilings changes."""

    def plan_passes(self, options: CompileOptions) -> Sequence[Pass]:
        """From dispatches to the stage PLANNED: tiles, layouts of weights, memory."""

    def context(self, options: CompileOptions) -> PassContext:
        """What its passes and the common ones are told: what pays on its targets."""

    def plan(self, module: ir.Module, weights: Mapping[str, Weight], passes: Sequence[str]) -> Planned:
        """A module that the passes have left."""

    def lower_entries(
        self, plans: Mapping[str, Planned], targets: Sequence[Target], options: CompileOptions, observer: CompileObserver
    ) -> CompiledModel:
        """Several models as entries of one artifact, by their names, for all targets. Raises UnsupportedError, PassError."""

    def member(self, target: str, code: bytes) -> CodeVariant:
        """What goes into the artifact: the content of the last stage, for the target of that name."""


class CompileObserver(PassObserver):
    """Told how a compile proceeds; each method may be overridden."""

    def stage_finished(
        self, stage: str, content: StageContent, target: str | None = None, weights: Mapping[str, Weight] | None = None
    ) -> None:
        """`stage` is reached, for one target or, where it is None, for all.

        `content` is a module, LLVM IR text, or the bytes of an object; `weights` are the arguments of a module whose weights have changed.
        """

    def code_progress(self, done: int, total: int) -> None:
        """`done` of `total` objects are compiled."""
