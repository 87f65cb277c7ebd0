"""`llmos opt`: passes by name on an MLIR file, for those who write passes."""

from __future__ import annotations

from pathlib import Path

import click

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.registry import get_backend
from llmos.compiler.ir.parsing import read_module
from llmos.passes import PipelineOptions, parse_pipeline, pass_names, run_pipeline
from llmos.runtime.errors import UserError


def _list_passes(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo("\n".join(pass_names()))
        ctx.exit()


@click.command("opt")
@click.argument("file")
@click.option("-p", "--pipeline", required=True, help='Passes in order, ours or MLIR\'s: "pass{option=1 other=x},pass".')
@click.option("-o", "--output", default="-", show_default=True, help='Where the result goes; "-" is standard output.')
@click.option("--backend", default="cpu", show_default=True, help="Whose cost model says what pays.")
@click.option("--dump-ir", type=click.Path(path_type=Path), help="Folder for a numbered dump after each pass that changed something.")
@click.option("--elide", type=int, metavar="N", help="In dumps, leave out constants of more than N elements.")
@click.option("--timing", is_flag=True, help="Print the time of each pass to standard error.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_passes, help="List our own passes and exit.")
def command(file: str, pipeline: str, output: str, backend: str, dump_ir: Path | None, elide: int | None, timing: bool) -> None:
    """Run a pipeline of passes on FILE ("-" is standard input); the IR is verified after each.

    Example: llmos opt model.mlir -p "tosa-to-linalg,linalg-fuse-elementwise-ops,canonicalize" --timing
    """
    passes = parse_pipeline(pipeline)
    context = get_backend(backend).context(CompileOptions(backend=backend))
    module = read_module(file)
    report = run_pipeline(module, passes, options=PipelineOptions(dump_ir=dump_ir, elide_above=elide), context=context)
    _write(output, str(module))
    if timing:
        click.echo(report.table(), err=True)


def _write(output: str, text: str) -> None:
    if output == "-":
        click.echo(text.rstrip("\n"))
        return
    try:
        Path(output).write_text(text)
    except OSError as error:
        raise UserError(f"can't write {output}: {error.strerror}") from None
