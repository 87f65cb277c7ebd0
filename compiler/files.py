"""Files that people give us: read whole, or refused in one readable line."""

from __future__ import annotations

import sys
from pathlib import Path

from llmos.compiler.ir import context, ir
from llmos.runtime.errors import UserError


def read_module(path: str) -> ir.Module:
    """The MLIR module in a file ("-": standard input), in a context of its own. Raises UserError with the line at fault."""
    text = sys.stdin.read() if path == "-" else read_text(Path(path))
    return parse_module(text, "standard input" if path == "-" else path)


def parse_module(text: str, source: str) -> ir.Module:
    """The module that `text` holds; `source` is what messages call it. Raises UserError."""
    with context():
        try:
            return ir.Module.parse(text)
        except ir.MLIRError as error:
            details = " ".join(str(error).replace("Unable to parse module assembly:", "").split())
            raise UserError(f"{source} is not valid MLIR: {details}") from None


def read_text(path: Path) -> str:
    """The text of a file. Raises UserError where there is none."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file") from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
