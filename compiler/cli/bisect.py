"""`llmos bisect`: where an error enters a compile."""

from __future__ import annotations

import json
from pathlib import Path

import click

from llmos.compiler.backends.options import PRECISIONS
from llmos.compiler.cli.model_options import parsed_options
from llmos.compiler.support.progress import progress_for_terminal


@click.command("bisect")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--target", default="native", show_default=True, help="Whose code to run.")
@click.option("--precision", default="fp32", show_default=True, help=f"Arithmetic: {' or '.join(PRECISIONS)}.")
@click.option("--quant", default="", metavar="SCHEME", help="As for `llmos compile`.")
@click.option("--calibrate", type=click.Path(path_type=Path), metavar="FILE", help="As for `llmos compile`.")
@click.option("--dynamic", default="", metavar="NAME[=SIZE],...", help="As for `llmos compile`.")
@click.option("--bind", multiple=True, metavar="NAME=NUMBER", help="As for `llmos compile`.")
@click.option("--budget", metavar="ERROR", help="Largest error of an output, relative to its scale, that is right; or cosine>=NUMBER.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Don't say what is being looked at.")
def command(
    source: Path,
    target: str,
    precision: str,
    quant: str,
    calibrate: Path | None,
    dynamic: str,
    bind: tuple[str, ...],
    budget: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Find the pass, and the dispatch in it, where the outputs of SOURCE's compile leave the reference's. Exit code 1 where one does.

    SOURCE is what `llmos compile` takes.
    """
    from llmos.compiler.calibration.fit import fit
    from llmos.compiler.driver.sources import import_source, require_model
    from llmos.compiler.verify.bisect import CLEAN, bisect

    options = parsed_options(
        dynamic,
        bind,
        budget,
        target=target,
        precision=precision,
        quant=quant,
        calibrate=calibrate,
        repro=None,
    )
    require_model(source)
    imported = import_source(source, None, None, options)
    with progress_for_terminal(quiet) as progress:
        imported, options = fit(imported, options, progress)
    verdict = bisect(imported, options, lambda text: None if quiet else click.echo(text, err=True))
    click.echo(json.dumps(verdict.to_json(), indent=1) if as_json else _render(verdict.line(), dict(verdict.history)))
    return 0 if verdict.kind == CLEAN else 1


def _render(line: str, history: dict[str, float]) -> str:
    """The errors of what was looked at, in the order of the compile, and the verdict."""
    rows = [f"  {name:<40} {error:.2e}" for name, error in sorted(history.items())]
    return "\n".join(["largest error of an output, relative to its scale:", *rows, line])
