"""Numbered dumps of the IR, one for each pass that changed it."""

from __future__ import annotations

from pathlib import Path

from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UserError


class IrDump:
    """Writes 00-input.mlir, 03-fuse-elementwise.mlir, … to a folder; a number without a file is a pass that changed nothing."""

    def __init__(self, folder: Path, elide_above: int | None) -> None:
        self._folder = folder
        self._elide_above = elide_above
        self._count = 0
        self._last = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't dump the IR to {folder}: {error.strerror}; give another folder") from error

    def write(self, name: str, module: ir.Module) -> None:
        """Write the module to the next numbered file if it differs from the last one; the number counts on either way."""
        text = module.operation.get_asm(large_elements_limit=self._elide_above)
        if text != self._last:
            (self._folder / f"{self._count:02}-{name}.mlir").write_text(text)
        self._last = text
        self._count += 1
