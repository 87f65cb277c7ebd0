"""What a request asks of the form of its texts: a JSON schema, a regular expression, a choice or a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmos.runtime.errors import InputError

KINDS = ("json", "json_object", "regex", "choice", "grammar")
MAX_CHARS = 1 << 17
_FORM = f"structured_outputs: must be a mapping with one of {', '.join(KINDS)}"


@dataclass(frozen=True)
class StructuredOutputs:
    """The form that a text must have. Hashable, so that what is compiled of it can be kept.

    kind: json, regex or grammar. source: a JSON schema as JSON, a regular expression, or a grammar in Lark's form (llguidance's dialect).
    strict: whether a keyword of a schema that can't be enforced is an error; else it is ignored.
    """

    kind: str
    source: str
    strict: bool = True

    @classmethod
    def of(cls, value: object) -> StructuredOutputs:
        """Read what a client gives: one of these, or a mapping with one of the keys json (a schema, or JSON of one), json_object (true),
        regex, choice (a list of texts) and grammar (Lark). Raises InputError.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"{_FORM}, not {value!r:.80}")
        given = {key: each for key, each in value.items() if each is not None and each is not False}
        if len(given) != 1 or next(iter(given)) not in KINDS:
            raise InputError(f"{_FORM}, not with {', '.join(map(repr, given)) or 'none'}")
        ((kind, found),) = given.items()
        made = _make(kind, found)
        if len(made.source) > MAX_CHARS:
            raise InputError(f"structured_outputs: its {kind} has {len(made.source)} characters, at most {MAX_CHARS} are allowed")
        return made


def _make(kind: str, found: Any) -> StructuredOutputs:
    if kind == "json_object":
        if found is not True:
            raise InputError(f"structured_outputs: its json_object must be true, not {found!r:.80}")
        return StructuredOutputs("json", '{"type":"object"}')
    if kind == "json":
        return StructuredOutputs("json", _schema(found))
    if kind == "choice":
        return StructuredOutputs("grammar", _choice(found))
    if not isinstance(found, str) or not found:
        raise InputError(f"structured_outputs: its {kind} must be a text of one character or more, not {found!r:.80}")
    _check_unicode(found)
    return StructuredOutputs(kind, found)


def _schema(found: object) -> str:
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError) as error:
            raise InputError(f"structured_outputs: its json is no JSON ({error})") from None
    if not isinstance(found, Mapping):
        raise InputError(f"structured_outputs: its json must be a JSON schema, not {found!r:.80}")
    try:
        # As given, since the order of properties is that in which they are written.
        return json.dumps(found, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"structured_outputs: its json holds what JSON can't ({error})") from None


def _choice(found: object) -> str:
    if not isinstance(found, list | tuple) or not found or not all(isinstance(each, str) and each for each in found):
        raise InputError("structured_outputs: its choice must be a list of texts of one character or more")
    for each in found:
        _check_unicode(each)
    return "start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in dict.fromkeys(found))


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("structured_outputs: holds half of a surrogate pair, which is no character") from None
