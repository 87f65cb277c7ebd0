"""Files that people give us: read whole, or refused in one readable line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from llmos.compiler.ir.bindings import context, ir
from llmos.runtime.errors import UserError

MAX_NESTING = 1000


def read_module(path: str) -> ir.Module:
    """Return the MLIR module in a file ("-": standard input), in a context of its own. Raises UserError with the line at fault."""
    text = sys.stdin.read() if path == "-" else read_text(Path(path))
    return parse_module(text, "standard input" if path == "-" else path)


def parse_module(text: str, source: str) -> ir.Module:
    """Return the module that `text` holds; `source` is what messages call it. Raises UserError for text that isn't valid MLIR."""
    require_shallow(text)
    with context():
        try:
            return ir.Module.parse(text)
        except ir.MLIRError as error:
            details = " ".join(str(error).replace("Unable to parse module assembly:", "").split())
            raise UserError(f"{source} is not valid MLIR: {details}") from None


def require_shallow(text: str) -> None:
    """Raise UserError for brackets nested more than MAX_NESTING deep: MLIR's parser recurses, and ends its process where the stack does."""
    characters = np.frombuffer(text.encode(), np.uint8)
    depths = np.cumsum(_among(characters, b"([{") - _among(characters, b")]}"))
    if int(depths.max(initial=0)) > MAX_NESTING:
        raise UserError(f"brackets are nested more than {MAX_NESTING:,} deep: is the text damaged?")


def _among(characters: np.ndarray, wanted: bytes) -> np.ndarray:
    return np.isin(characters, np.frombuffer(wanted, np.uint8)).astype(np.int32)


def read_text(path: Path) -> str:
    """Return the text of a file. Raises UserError for one that is missing, unreadable or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file: write MLIR as text (mlir-opt without --emit-bytecode)") from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
