"""A pipeline's text, `pass{option=1},func.func(pass),pass`, to and from a list of passes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from llmos.passes._options import parse_options
from llmos.passes._pass import Pass
from llmos.passes._registry import nearest_names, pass_class, pass_names
from llmos.passes._upstream import Upstream, is_registered
from llmos.runtime.errors import UserError

_ITEM = re.compile(r"(?P<name>[\w.-]+)\s*(?P<bracket>[({]?)")
_CLOSING = {"{": "}", "(": ")"}


def parse_pipeline(text: str) -> list[Pass]:
    """Return the passes that `text` names, ours before upstream's where both have a name.

    Options are typed by the pass's fields and separated by spaces. Raises UserError for an unknown pass (with the nearest names), an
    unknown option, a value of the wrong type, or text that isn't a pipeline.
    """
    return list(_passes(text, anchor=""))


def pipeline_text(pipeline: Sequence[Pass]) -> str:
    """Return the text that `parse_pipeline` reads back as the same passes."""
    return ",".join(map(str, pipeline))


def _passes(text: str, anchor: str) -> Iterator[Pass]:
    for name, bracket, body in _items(text):
        if bracket == "(":
            # The manager runs on a module, so that the outermost anchor says nothing.
            yield from _passes(body, anchor="" if name == "builtin.module" else name)
        else:
            yield _build(name, body, anchor)


def _build(name: str, options: str, anchor: str) -> Pass:
    if name in pass_names():
        cls = pass_class(name)
        return cls(**parse_options(cls, name, options))
    if not is_registered(name):
        raise UserError(_unknown(name))
    upstream = Upstream(name, options, anchor)
    upstream.check()
    return upstream


def _unknown(name: str) -> str:
    close = nearest_names(name)
    hint = f"did you mean {', '.join(close)}?" if close else f"our own passes: {', '.join(pass_names())}"
    return f"no pass is called {name!r}; {hint}"


def _items(text: str) -> Iterator[tuple[str, str, str]]:
    """(name, opening bracket or "", what stands between the brackets) of each item of a comma-separated list."""
    position = 0
    text = text.strip()
    while position < len(text):
        match = _ITEM.match(text, position)
        if match is None:
            raise UserError(f"not a pipeline: expected the name of a pass at {text[position : position + 20]!r}")
        bracket, body, position = match["bracket"], "", match.end()
        if bracket:
            end = _closing_bracket(text, position, bracket)
            body, position = text[position:end], end + 1
        yield match["name"], bracket, body
        position = _after_comma(text, position)


def _after_comma(text: str, position: int) -> int:
    rest = text[position:].lstrip()
    if not rest:
        return len(text)
    if not rest.startswith(",") or not rest[1:].strip():
        raise UserError(f"not a pipeline: expected a comma and another pass at {rest[:20]!r}")
    return len(text) - len(rest[1:].lstrip())


def _closing_bracket(text: str, start: int, bracket: str) -> int:
    depth = 1
    for position in range(start, len(text)):
        if text[position] == bracket:
            depth += 1
        elif text[position] == _CLOSING[bracket]:
            depth -= 1
        if depth == 0:
            return position
    raise UserError(f"not a pipeline: {bracket!r} is not closed in {text!r}")
