"""Plain text tables and human-readable quantities."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[object]], *, header: Sequence[str] = (), indent: int = 2) -> str:
    """Format left-aligned columns two spaces apart; "" for no rows."""
    if not rows:
        return ""
    lines = [[str(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        " " * indent + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def quantity(num_bytes: int) -> str:
    """Format a size: 512 B, 1.5 KiB, 86.6 MiB."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{num_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
