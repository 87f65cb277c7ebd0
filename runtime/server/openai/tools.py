"""OpenAI's tools: what a request says of them, and the calls of an answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmos.runtime.engine.generate.structured import StructuredOutputs
from llmos.runtime.errors import InputError
from llmos.runtime.llm.engine import TextEngine
from llmos.runtime.server.openai.sampling import boolean, invalid
from llmos.runtime.server.openai.structured import form_fields
from llmos.runtime.text.tool_parser import Piece, ToolCallDelta, ToolParser
from llmos.runtime.text.tools import Function, ToolFormat, forced_grammar, forced_prefix, free_grammar, takes_tools, tool_format

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}}
_CHOICES = "'tool_choice' must be 'none', 'auto', 'required' or an object that names a function"


@dataclass(frozen=True)
class ToolUse:
    """What a request asks of tools. tools: as it gives them, for the chat template. names: of those that may be called.

    form: how the model writes calls. forced: whether the answer must be calls. grammar: of the answer; None where it may be any text.
    parallel: whether there may be several.
    """

    tools: list[dict[str, Any]]
    names: tuple[str, ...]
    form: ToolFormat
    forced: bool
    grammar: StructuredOutputs | None
    parallel: bool

    @property
    def prefix(self) -> str:
        """The beginning of the answer, which the model need not write."""
        return forced_prefix(self.form) if self.forced else ""

    def parser(self) -> ToolParser:
        """Return the parser of one answer."""
        return ToolParser(self.form, self.names, begun=bool(self.prefix), parallel=self.parallel)


def parse_tools(fields: Mapping[str, Any], text: TextEngine, parser: str = "") -> ToolUse | None:
    """Return what a request asks of tools, None if none may be called. parser: name of a format, "" for that of the chat template.

    Raises HttpError 400.
    """
    parallel = boolean({"parallel_tool_calls": True, **fields}, "parallel_tool_calls")
    tools = fields.get("tools") or []
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise invalid(f"'tools' must be a list of at most {MAX_TOOLS} tools", "tools")
    functions = [_function(f"tools[{index}]", tool) for index, tool in enumerate(tools)]
    names = [function.name for function in functions]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise invalid(f"two tools are named '{repeated}'", "tools")
    mode, chosen = _choice(fields.get("tool_choice"), names)
    if mode == "none" or not functions:
        return None
    template = "" if text.template is None else text.template.source
    if not takes_tools(template):
        raise invalid(f"the chat template of '{text.name}' knows no tools: leave them out", "tools")
    # Templates read the parameters, which a function without any may leave out.
    tools = [{**tool, "function": {"parameters": _NOTHING, **tool["function"]}} for tool in tools]
    form = tool_format(template, parser)
    callable_ = [function for function in functions if function.name in chosen]
    given = form_fields(fields)
    _check_forms(given, mode)
    # vLLM's fields are the form of all that the model says, its calls included.
    must_fit = mode == "required" or (any(function.strict for function in callable_) and not given)
    grammar = _grammar(form, callable_, text, forced=mode == "required", parallel=parallel) if must_fit else None
    return ToolUse(tools, tuple(function.name for function in callable_), form, mode == "required", grammar, parallel)


def _check_forms(given: list[str], mode: str) -> None:
    """Raise HttpError 400 for a form that contradicts tools.

    `response_format` is of answers that are no calls, so that it says nothing where calls must come, and may not keep a model from those
    that it chooses. vLLM's fields are of the whole text, in which the calls are.
    """
    refused = [name for name in given if (name == "response_format") == (mode == "auto")]
    if refused:
        what = "may choose" if mode == "auto" else "must call"
        raise invalid(f"'{refused[0]}' and tools that the model {what} exclude each other: leave one out", refused[0])


def _function(place: str, tool: object) -> Function:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        raise invalid(f'\'{place}\' must be {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}', "tools")
    found = tool["function"]
    name, parameters, strict = found.get("name"), found.get("parameters"), found.get("strict")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid(f"'{place}': its name must be of 1 to 64 letters, digits, '_' and '-'", "tools")
    if not isinstance(found.get("description", ""), str | None):
        raise invalid(f"'{place}': its description must be a string", "tools")
    if parameters is not None and not isinstance(parameters, dict):
        raise invalid(f"'{place}': its parameters must be a JSON schema", "tools")
    if strict is not None and not isinstance(strict, bool):
        raise invalid(f"'{place}': strict must be true or false", "tools")
    return Function(name, parameters or {}, strict is True)


def _choice(value: object, names: list[str]) -> tuple[str, list[str]]:
    """Return none, auto or required, and the names of the functions that may be called."""
    if value in (None, "none", "auto", "required"):
        if value in ("auto", "required") and not names:
            raise invalid("'tool_choice' is only for 'tools'", "tool_choice")
        return str(value or "auto"), names
    if not isinstance(value, dict):
        raise invalid(_CHOICES, "tool_choice")
    if value.get("type") == "allowed_tools":
        return _allowed(value.get("allowed_tools"), names)
    return "required", [_named(value, names)]


def _allowed(value: object, names: list[str]) -> tuple[str, list[str]]:
    mode = value.get("mode") if isinstance(value, dict) else None
    tools = value.get("tools") if isinstance(value, dict) else None
    if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
        raise invalid("'allowed_tools' must have a mode, 'auto' or 'required', and tools", "tool_choice")
    return str(mode), [_named(tool, names) for tool in tools]


def _named(value: object, names: list[str]) -> str:
    """Return the name in {"type": "function", "function": {"name": ...}}."""
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise invalid(_CHOICES, "tool_choice")
    if name not in names:
        raise invalid(f"'tool_choice' names '{name:.80}', which is not among the tools", "tool_choice")
    return name


def _grammar(form: ToolFormat, functions: list[Function], text: TextEngine, *, forced: bool, parallel: bool) -> StructuredOutputs | None:
    make = forced_grammar if forced else free_grammar
    try:
        found = make(form, functions, text.tokenizer.special_tokens, parallel=parallel)
        return None if found is None else StructuredOutputs.of({"grammar": found})
    except InputError as error:
        raise invalid(f"tools: {str(error).partition(': ')[2]}", "tools") from error


class CallWriter:
    """Writes the answer of one choice, which may hold calls, as a whole or in deltas. id: what the ids of its calls begin with."""

    def __init__(self, tools: ToolUse, id: str) -> None:
        self._parser = tools.parser()
        self._id_length = tools.form.id_length
        self._id = id
        self._ids: list[str] = []

    @property
    def has_calls(self) -> bool:
        """Whether there are calls so far."""
        return bool(self._ids)

    def delta(self, text: str, *, ends: bool = False) -> dict[str, Any]:
        """Return OpenAI's delta for more text, {} if nothing is certain. ends: whether nothing comes any more."""
        pieces = self._parser.push(text) + (self._parser.finish() if ends else [])
        content = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = [self._call(piece) for piece in pieces if isinstance(piece, ToolCallDelta)]
        return {**({"content": content} if content else {}), **({"tool_calls": calls} if calls else {})}

    def message(self, text: str) -> dict[str, Any]:
        """Return the fields of OpenAI's message for a whole text."""
        pieces: list[Piece] = [*self._parser.push(text), *self._parser.finish()]
        content = "".join(piece for piece in pieces if isinstance(piece, str))
        calls: list[dict[str, Any]] = []
        for piece in pieces:
            if isinstance(piece, ToolCallDelta):
                if piece.name:
                    calls.append(self._call(piece))
                    del calls[-1]["index"]
                else:
                    calls[piece.index]["function"]["arguments"] += piece.arguments
        return {"content": content or (None if calls else ""), **({"tool_calls": calls} if calls else {})}

    def _call(self, piece: ToolCallDelta) -> dict[str, Any]:
        if not piece.name:
            return {"index": piece.index, "function": {"arguments": piece.arguments}}
        digest = hashlib.sha256(f"{self._id} {piece.index}".encode()).hexdigest()
        self._ids.append(digest[: self._id_length] if self._id_length else f"call_{digest[:24]}")
        function = {"name": piece.name, "arguments": piece.arguments}
        return {"index": piece.index, "id": self._ids[-1], "type": "function", "function": function}
