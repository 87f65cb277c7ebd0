"""`llmos check`: whether every op of a model compiles, before anything is compiled."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmos.compiler.driver.sources import GGUF, encoder_module, language_model_program, require_model
from llmos.runtime.errors import UserError

if TYPE_CHECKING:
    from llmos.compiler.frontend.coverage import Row


@click.command("check")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(source: Path, as_json: bool) -> int:
    """Say of every op of SOURCE whether it compiles, how, and where it comes from. Exit code 1 where one does not."""
    rows = _rows(source)
    unsupported = sum(1 for row in rows if not row.supported)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        _show(rows, source, unsupported)
    return 1 if unsupported else 0


def _rows(source: Path) -> list[Row]:
    from llmos.compiler.frontend.coverage import check

    require_model(source)
    if source.is_dir() or source.suffix == GGUF:
        program = language_model_program(source)
        return check(program) if program is not None else check(*encoder_module(source))
    if source.suffix not in (".pt2", ".onnx", ".mlir"):
        raise UserError(f"{source} can't be checked; llmos check takes .pt2, .onnx, .mlir, .gguf or a Hugging Face directory")
    return check(source)


def _show(rows: list[Row], source: Path, unsupported: int) -> None:
    from llmos.compiler.frontend.coverage import format_rows

    if rows:
        click.echo(format_rows(rows))
    kinds = "1 place that does not compile" if unsupported == 1 else f"{unsupported} places that do not compile"
    click.echo(f"{source}: {kinds}" if unsupported else f"{source}: every op compiles")
