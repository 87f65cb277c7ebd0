"""What a grammar of a client may take, and what is said of one that can't be used; what the checking process needs of it, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLParserLimits


def parser_limits() -> LLParserLimits:
    """Return what a grammar and a step of it may take: a tenth of llguidance's defaults, a step some ten milliseconds at most."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=10_000,
        max_lexer_states=10_000,
        max_grammar_size=50_000,
        verbose_errors=False,
    )


def one_line(error: str) -> str:
    """Return what llguidance says of a grammar, without its state."""
    lines = error.split("<state>")[0].replace("<non-verbose/>", "").split("\n")
    said = " ".join(part for line in lines if (part := line.strip()))
    return said if len(said) <= 300 else f"{said[:300]}..."
