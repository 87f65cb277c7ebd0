"""Tools that a model may call: the forms in which models write their calls, and the grammar of a call that must come."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmos.runtime.errors import InputError

MAX_CALLS = 16  # of an answer that must have some
# What llguidance adds to a schema: as `Grammars` compiles other schemas.
_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,20}"}


@dataclass(frozen=True)
class Function:
    """A function that may be called. strict: whether a keyword of its schema that can't be enforced is an error."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes calls: JSON objects with the keys `name` and `arguments`.

    begin, end: around the calls. first, between, last: around and between objects behind `begin`. repeats: whether each call has a begin
    and an end of its own. starts_answer: whether an answer that starts with an object is a call, without `begin`. sign: what a chat
    template that teaches this form holds. id_length: of the ids that a template wants calls to have, None for any.
    """

    name: str
    sign: str
    begin: str
    end: str = ""
    first: str = ""
    between: str = ""
    last: str = ""
    arguments: str = "arguments"
    repeats: bool = False
    starts_answer: bool = False
    id_length: int | None = None


FORMATS = (
    ToolFormat("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]", first="[", between=", ", last="]", id_length=9),
    ToolFormat("hermes", "<tool_call>", "<tool_call>", "</tool_call>", first="\n", last="\n", repeats=True),
    ToolFormat("llama3", '"parameters"', "<|python_tag|>", between="; ", arguments="parameters", starts_answer=True),
)
NAMED = "[ARGS]"  # Mistral's newer form: [TOOL_CALLS]name[ARGS]{...}
CALL_SIGNS = (NAMED, *(sign for each in FORMATS for sign in (each.begin, each.end) if sign))
PARSERS = tuple(each.name for each in FORMATS)


def takes_tools(template: str) -> bool:
    """Return whether a chat template tells the model of tools."""
    return re.search(r"\btools\b", template) is not None


def tool_format(template: str, name: str = "") -> ToolFormat:
    """Return the format of a name, or else the one that a chat template teaches: Hermes's where it shows none."""
    found = [each for each in FORMATS if (each.name == name if name else each.sign in template)]
    return found[0] if found else next(each for each in FORMATS if each.name == "hermes")


def forced_prefix(form: ToolFormat) -> str:
    """Return what stands between the prompt and calls that must come."""
    return "" if form.starts_answer else form.begin + (form.first if form.repeats else "")


def forced_grammar(form: ToolFormat, functions: Sequence[Function], special: Sequence[str], *, parallel: bool) -> str:
    """Return the grammar, in Lark's form, of what follows `forced_prefix`: one call of one of the functions, or more.

    special: tokens that the tokenizer doesn't write as text. parallel: whether there may be several calls.
    """
    first, last = ("", form.last + form.end) if form.repeats else (form.first, form.last)
    between = form.last + form.end + "\n" + form.begin + form.first if form.repeats else form.between
    more = f" ({_literal(between, special)} call){{0,{MAX_CALLS - 1}}}" if parallel else ""
    start = f"start: {_literal(first, special)} call{more} {_literal(last, special)}"
    return "\n".join([start, *_call_rules(form, functions)])


def free_grammar(form: ToolFormat, functions: Sequence[Function], special: Sequence[str], *, parallel: bool) -> str | None:
    """Return the grammar of an answer that may be text, in which each call is one of the functions; None where none can say so.

    special, parallel: see `forced_grammar`. A special token that begins calls can be named only where it stands in angle brackets.
    """
    is_special = form.begin in special
    if is_special and not form.begin.startswith("<"):
        return None
    text = "FREE" if form.starts_answer else "TEXT"
    many = "*" if parallel else "?"
    more = f" ({_literal(form.between, special)} call){many}" if parallel and form.between else ""
    rules = [
        "start: calls | tagged | FREE" if form.starts_answer else f"start: tagged{many} TEXT",
        f"tagged: begin {_literal(form.first, special)} calls {_literal(form.last + form.end, special)}",
        f"begin: {text} {form.begin}" if is_special else f"begin[lazy]: {text} {json.dumps(form.begin)}",
        f"calls: call{more}",
        r"FREE: /\s*([^{\s](.|\n)*)?/" if form.starts_answer else r"TEXT: /(.|\n)*/",  # an object at the beginning would be a call
    ]
    return "\n".join([*rules, *_call_rules(form, functions)])


def _call_rules(form: ToolFormat, functions: Sequence[Function]) -> list[str]:
    """Return the rule of a call of one of the functions, and those of the calls of each."""
    rules = [f"f{number}: {_call(form, function)}" for number, function in enumerate(functions)]
    return ["call: " + " | ".join(f"f{number}" for number in range(len(functions))), *rules]


def _call(form: ToolFormat, function: Function) -> str:
    schema = {**(function.parameters or {"type": "object", "properties": {}, "additionalProperties": False})}
    schema["x-guidance"] = {**_OPTIONS, "lenient": not function.strict}
    begin = f'{{"name": {json.dumps(function.name)}, "{form.arguments}": '
    try:
        written = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"tools: the parameters of {function.name!r} hold what JSON can't ({error})") from None
    return f'{json.dumps(begin)} %json {written} "}}"'


def _literal(text: str, special: Sequence[str]) -> str:
    """Return text as a sequence of Lark's form, in which special tokens stand as themselves."""
    named = [each for each in special if each.startswith("<") and each in text]
    if not named:
        return json.dumps(text) if text else '""'
    parts = re.split("(" + "|".join(map(re.escape, named)) + ")", text)
    return " ".join(part if part in named else json.dumps(part) for part in parts if part)
