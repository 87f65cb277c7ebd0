"""Running a pipeline: verification, timing, dumps, declared properties, and a way to reproduce a failure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmos.compiler.ir.bindings import ir
from llmos.passes._context import PassContext
from llmos.passes._dump import IrDump
from llmos.passes._pass import Pass
from llmos.passes._pipeline import parse_pipeline
from llmos.passes._property import Property
from llmos.passes._repro import write_repro
from llmos.runtime.errors import PassError, UserError


class PassObserver:
    """Told of every pass as it runs; each method may be overridden."""

    def pass_started(self, index: int, total: int, step: Pass) -> None:
        """Hear that pass `index` of `total`, counted from 0, is about to run."""

    def pass_finished(self, run: PassRun, module: ir.Module) -> None:
        """Hear that a pass has run; the module is as it left it, already verified."""


@dataclass(frozen=True)
class PipelineOptions:
    """`dump_ir`: folder for numbered dumps of what changed. `repro`: folder for what reproduces a failure; None writes nothing.

    `elide_above`: in dumps, constants of more elements than this are left out (such a dump can be read but not be used as input).
    """

    dump_ir: Path | None = None
    repro: Path | None = Path("repro")
    elide_above: int | None = None


@dataclass(frozen=True)
class PassRun:
    """One pass that ran: its place in the pipeline from 0, and its time, verification left out."""

    index: int
    step: Pass
    seconds: float


@dataclass(frozen=True)
class PipelineReport:
    """What ran, in order."""

    runs: tuple[PassRun, ...]

    @property
    def seconds(self) -> float:
        """Return the seconds of all passes together, verification left out."""
        return sum(run.seconds for run in self.runs)

    def table(self) -> str:
        """Return a text with time in milliseconds and share of each pass, one a line."""
        total = self.seconds or 1.0
        rows = [f"{run.seconds * 1e3:9.2f} ms {run.seconds / total:6.1%}  {run.step}" for run in self.runs]
        return "\n".join([*rows, f"{self.seconds * 1e3:9.2f} ms         total"])


def run_pipeline(
    module: ir.Module,
    pipeline: str | Sequence[Pass],
    *,
    options: PipelineOptions | None = None,
    observer: PassObserver | None = None,
    context: PassContext | None = None,
) -> PipelineReport:
    """Run a pipeline, a list of passes or text (`"pass{option=1},pass"`), on `module` in place, and verify it after each pass.

    context: what passes are told; without one all that is legal pays.
    Raises UserError for a bad pipeline or a model that a pass refuses, and PassError, which names the pass and those before it, for a pass
    that fails, leaves invalid IR behind or breaks what it declares; then `options.repro` holds what reproduces the failure.
    """
    passes = parse_pipeline(pipeline) if isinstance(pipeline, str) else list(pipeline)
    options, observer, context = options or PipelineOptions(), observer or PassObserver(), context or PassContext()
    dump = IrDump(options.dump_ir, options.elide_above) if options.dump_ir else None
    runs: list[PassRun] = []
    with module.context, ir.Location.unknown():
        if dump:
            dump.write("input", module)
        for index, step in enumerate(passes):
            observer.pass_started(index, len(passes), step)
            runs.append(_run_one(module, passes, index, options, context))
            if dump:
                dump.write(step.name, module)
            observer.pass_finished(runs[-1], module)
    return PipelineReport(tuple(runs))


def _run_one(module: ir.Module, passes: Sequence[Pass], index: int, options: PipelineOptions, context: PassContext) -> PassRun:
    step = passes[index]
    before = module.operation.clone()
    try:
        _check(module, step.requires, f"{step.name} requires")
        start = time.perf_counter()
        step.run(module, context)
        seconds = time.perf_counter() - start
        module.operation.verify()
        _check(module, step.ensures, f"{step.name} promises")
    except UserError:
        raise
    except Exception as error:
        raise _failure(error, before, passes, index, options) from error
    return PassRun(index, step, seconds)


def _check(module: ir.Module, properties: Iterable[Property], who: str) -> None:
    for declared in sorted(properties, key=str):
        violation = declared.check(module)
        if violation:
            raise PassError(f"{who} {declared}, which doesn't hold: {violation}")


def _failure(error: Exception, before: ir.Operation, passes: Sequence[Pass], index: int, options: PipelineOptions) -> PassError:
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if isinstance(error, ir.MLIRError):
        reason = " ".join(str(error).split())[:500]
    done = ", ".join(step.name for step in passes[:index]) or "no other pass"
    message = f"pass {passes[index].name} failed after {done}: {reason}"
    if options.repro is None:
        return PassError(message)
    command = write_repro(options.repro, before, passes[index:], message)
    return PassError(f"{message}; reproduce it with: {command}" if command else message)
