"""Options of a pass: dataclass fields to and from the text between the braces of a pipeline."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llmos.runtime.errors import UserError

_BOOLEANS: Mapping[str, bool] = {"true": True, "1": True, "": True, "false": False, "0": False}
_NEXT_OPTION = re.compile(r"[\s,]+(?=[A-Za-z][\w-]*=)|\s+")


def options_text(instance: Any) -> str:
    """Return `key=value key=value`, for the fields that differ from their defaults."""
    parts = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if value != _default(field):
            parts.append(f"{field.name.replace('_', '-')}={_value_text(value)}")
    return " ".join(parts)


def parse_options(owner: type[Any], name: str, text: str) -> dict[str, Any]:
    """Return keyword arguments for the dataclass `owner` from `key=value key=value` (or separated by commas); `-` and `_` are the same
    in a key.

    Raises UserError for an unknown key or a value of the wrong type; `name` is what the message calls the owner.
    """
    hints = get_type_hints(owner)
    known = [field.name for field in dataclasses.fields(owner) if field.init]
    parsed: dict[str, Any] = {}
    for item in filter(None, _NEXT_OPTION.split(text.strip())):
        key, _, value = item.partition("=")
        field = key.replace("-", "_")
        if field not in known:
            raise UserError(f"pass {name} has no option {key!r}; {_nearest(field, known)}")
        try:
            parsed[field] = parse_value(hints[field], value)
        except ValueError as error:
            raise UserError(f"pass {name}, option {key}: {error}") from None
    return parsed


def parse_value(kind: Any, text: str) -> Any:
    """Return `text` as a value of the type `kind`: bool, int, float, str, Literal, tuple[X, ...], X | None, or a type with
    `parse(text)`.

    Raises ValueError, with a readable line, for text that isn't one.
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _parse_optional(get_args(kind), text)
    if origin is tuple:
        return tuple(parse_value(get_args(kind)[0], item) for item in text.split(",") if item)
    if origin is Literal:
        return _choice(text, {str(value): value for value in get_args(kind)})
    if kind is bool:
        return _choice(text.lower(), _BOOLEANS)
    if hasattr(kind, "parse"):
        return kind.parse(text)
    if kind not in (int, float, str):
        raise ValueError(f"a {kind} can't be written in a pipeline's text; set it in Python")
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {'an integer' if kind is int else 'a number'}") from None


def _parse_optional(kinds: tuple[Any, ...], text: str) -> Any:
    if text == "none":
        return None
    return parse_value(next(kind for kind in kinds if kind is not types.NoneType), text)


def _choice(text: str, choices: Mapping[str, Any]) -> Any:
    if text not in choices:
        raise ValueError(f"{text!r} is none of {', '.join(sorted(filter(None, choices)))}")
    return choices[text]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(_value_text, value))
    return "none" if value is None else str(value)


def _nearest(field: str, known: list[str]) -> str:
    if not known:
        return "it takes none"
    close = difflib.get_close_matches(field, known, n=3, cutoff=0.4) or known
    return f"did you mean {', '.join(close)}?"
