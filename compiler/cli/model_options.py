"""Options of a compile from the command line's texts: --dynamic, --bind and --budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmos.compiler.backends.options import CompileOptions
from llmos.runtime.artifact.deviation import parse_budget
from llmos.runtime.errors import UserError

_OPTIONS = {"max_error": "budget", "cosine": "min_cosine", "kl": "max_kl", "top1": "min_top1"}  # of a compile, by what a budget bounds


def parsed_options(dynamic: str, bind: Sequence[str], budget: str | None = None, **chosen: Any) -> CompileOptions:
    """Return the options that the texts say, and `chosen`, fields of CompileOptions as they are. Raises UserError."""
    names, sizes = parse_dynamic(dynamic)
    bounds: dict[str, Any] = {} if budget is None else {_OPTIONS[name]: bound for name, bound in parse_budget(budget).items()}
    constants = dict(map(binding, bind))
    return CompileOptions(dynamic=names, sizes=sizes, bind=constants, **bounds, **chosen)


def parse_dynamic(text: str) -> tuple[tuple[str, ...], dict[str, tuple[int, int] | int]]:
    """The names alone of "a,b=4,c=1:8", and the sizes and ranges of the others. Raises UserError."""
    names: list[str] = []
    sizes: dict[str, tuple[int, int] | int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, size = part.partition("=")
        low, colon, high = size.partition(":")
        if not equals:
            names.append(name)
        elif not low.isdecimal() or (colon and not high.isdecimal()) or name in sizes:
            raise UserError(f"--dynamic {part}: write NAME, NAME=SIZE or NAME=MIN:MAX, each name once")
        else:
            sizes[name] = (int(low), int(high)) if colon else int(low)
    return tuple(names), sizes


def binding(text: str) -> tuple[str, float | int]:
    """NAME=NUMBER of --bind. Raises UserError."""
    name, _, number = text.partition("=")
    try:
        return name, int(number) if number.lstrip("+-").isdecimal() else float(number)
    except ValueError:
        raise UserError(f"--bind {text}: write NAME=NUMBER") from None
