"""Identifiers for a model's dimension names, because size expressions are text in Python's grammar."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Iterable

# Functions of sizes (compiler/ir/sizes.py).
RESERVED = frozenset({"min", "max", "Min", "Max", "floor", "ceiling", "Mod", "FloorMul", "FloorMulF32", "floor_mul", "floor_mul_f32"})
MAX_LENGTH = 64


def identifiers(texts: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Map each text to a unique name of ASCII letters, digits and _, which is not in `taken`.

    A valid name is kept. In others an invalid character becomes _, and a number makes equal names unique.
    """
    distinct = list(dict.fromkeys(texts))
    found = {text: text for text in distinct if is_identifier(text) and text not in taken}
    used = {*taken, *found.values()}
    for text in distinct:
        if text not in found:
            found[text] = _free(_plain(text), used)
            used.add(found[text])
    return {text: found[text] for text in distinct}


def is_identifier(text: str) -> bool:
    """Whether a text is a valid name."""
    short = len(text) <= MAX_LENGTH and text.isascii() and text.isidentifier()
    return short and not keyword.iskeyword(text) and text not in RESERVED


def _plain(text: str) -> str:
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")[:MAX_LENGTH] or "d"
    return name if is_identifier(name) else f"d_{name}"[:MAX_LENGTH]


def _free(name: str, used: Collection[str]) -> str:
    number = 2
    candidate = name
    while candidate in used:
        candidate = f"{name[: MAX_LENGTH - 8]}_{number}"
        number += 1
    return candidate
