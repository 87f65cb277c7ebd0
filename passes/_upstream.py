"""Upstream MLIR passes under our own interface, so that dump, timing, verify and bisect cover them too."""

from __future__ import annotations

from dataclasses import dataclass

from llmos.compiler.ir.bindings import PassManager, context, ir
from llmos.passes._context import PassContext
from llmos.passes._pass import Pass
from llmos.runtime.errors import UserError

# Where an upstream pass may run, tried in this order: MLIR says only when it runs which of them it takes.
_ANCHORS = ("builtin.module", "func.func", "gpu.module", "llvm.func")


@dataclass(frozen=True)
class Upstream(Pass):
    """A pass registered in MLIR, by its own name, options in MLIR's spelling.

    Upstream("canonicalize", "max-iterations=3"); `anchor` pins the op it runs on ("func.func"), which is found out where it is empty.
    """

    upstream_name: str
    options: str = ""
    anchor: str = ""

    def __post_init__(self) -> None:
        # One class stands for many passes, so here the name belongs to the instance.
        object.__setattr__(self, "name", self.upstream_name)

    def __str__(self) -> str:
        text = f"{self.upstream_name}{{{self.options}}}" if self.options else self.upstream_name
        return f"{self.anchor}({text})" if self.anchor else text

    def check(self) -> None:
        """Raise UserError if MLIR doesn't know the pass or its options."""
        with context():
            _parse(self)

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Run on the module, or on everything in it that the pass takes (functions). Raises UserError for a pass that runs on neither."""
        errors = []
        for anchor in _anchors(self):
            try:
                PassManager.parse(_pipeline(self, anchor)).run(module.operation)
                return
            except (ir.MLIRError, ValueError) as error:
                if not _is_wrong_anchor(error):
                    raise
                errors.append(str(error))
        raise UserError(f"pass {self.upstream_name} runs on none of {', '.join(_ANCHORS)}: {errors[-1]}")


def is_registered(name: str) -> bool:
    """Whether MLIR has a pass or pipeline of that name."""
    try:
        Upstream(name).check()
    except UserError:
        return False
    return True


def _parse(upstream: Upstream) -> None:
    error: ValueError | None = None
    for anchor in _anchors(upstream):
        try:
            PassManager.parse(_pipeline(upstream, anchor))
            return
        except ValueError as failure:
            error = failure
            if not _is_wrong_anchor(failure):
                break
    lines = " ".join(str(error).split())
    raise UserError(f"MLIR doesn't take the pass {upstream}: {lines}")


def _pipeline(upstream: Upstream, anchor: str) -> str:
    text = f"{upstream.upstream_name}{{{upstream.options}}}" if upstream.options else upstream.upstream_name
    return f"builtin.module({text})" if anchor == "builtin.module" else f"builtin.module({anchor}({text}))"


def _anchors(upstream: Upstream) -> tuple[str, ...]:
    return (upstream.anchor,) if upstream.anchor else _ANCHORS


def _is_wrong_anchor(error: Exception) -> bool:
    text = str(error)
    return "unable to schedule pass" in text or "restricted to" in text
