"""Calls of tools: found in the forms that models write, wherever the text is cut; and the grammars of those that must come."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from llmos.runtime.text.tool_parser import Piece, ToolCallDelta, ToolParser
from llmos.runtime.text.tools import FORMATS, Function, ToolFormat, forced_grammar, forced_prefix, free_grammar, takes_tools, tool_format

NAMES = ("add", "get_weather", "get")
FORM = {each.name: each for each in FORMATS}
Calls = list[tuple[str, str]]


def parsed(form: ToolFormat, pieces: list[str], **options: Any) -> tuple[str, Calls]:
    """Return the content, and the calls with their arguments as written."""
    parser = ToolParser(form, NAMES, **options)
    content, calls = "", []
    for piece in [each for text in pieces for each in parser.push(text)] + parser.finish():
        if isinstance(piece, str):
            assert piece
            content += piece
        elif piece.name:
            assert piece.index == len(calls)
            calls.append((piece.name, piece.arguments))
        else:
            name, arguments = calls[piece.index]
            calls[piece.index] = (name, arguments + piece.arguments)
    return content, calls


ADD = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}]\\""}]}}'
ADD_ARGUMENTS = '{"a": 1, "b": [2, {"c": "}]\\""}]}'
CASES: list[tuple[str, str, str, Calls]] = [
    ("hermes", f"<tool_call>\n{ADD}\n</tool_call>", "", [("add", ADD_ARGUMENTS)]),
    ("hermes", f"I'll add.\n\n<tool_call>{ADD}</tool_call>\n", "I'll add.", [("add", ADD_ARGUMENTS)]),
    ("hermes", f"<tool_call>\n{ADD}\n</tool_call>\n<tool_call>{ADD}", "", [("add", ADD_ARGUMENTS)] * 2),
    ("hermes", f"a <tool_call>\n{ADD}\n</tool_call> b", "a b", [("add", ADD_ARGUMENTS)]),
    ("hermes", '<tool_call>{"arguments": {}, "name": "get"}</tool_call>', "", [("get", "{}")]),
    ("hermes", '<tool_call>{"name": "get"}</tool_call>', "", [("get", "{}")]),
    ("hermes", '<tool_call>{"name": "get", "arguments": null}</tool_call>', "", [("get", "{}")]),
    ("hermes", '<tool_call>{"name": "get", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("get", '{"a": 1}')]),
    ("hermes", '<tool_call>{"id": 3, "name": "get", "x": {"name": "y"}, "arguments": {"a": 1} }</tool_call>', "", [("get", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "get", "arguments": {"a": 1}, "arguments": {"b": 2}}', "", [("get", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "get", "arguments": {"a": 1}, "\\q": 1}</tool_call>', "", [("get", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "get", "arguments": {"a": "cu', "", [("get", '{"a": "cu')]),
    (
        "hermes",
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        [],
    ),
    ("hermes", '<tool_call>{"name": "get", "arguments": 3}', '<tool_call>{"name": "get", "arguments": 3}', []),
    ("hermes", "<tool_call>{}</tool_call> x", "<tool_call>{}</tool_call> x", []),
    ("hermes", "<tool_call>hello", "<tool_call>hello", []),
    ("hermes", "text <tool_ca", "text <tool_ca", []),
    ("hermes", '<tool_call>{"na', '<tool_call>{"na', []),
    ("hermes", f'<tool_call>{ADD}</tool_call><tool_call>{{"name": "ge', "", [("add", ADD_ARGUMENTS)]),
    ("hermes", "1 < 2 and <tool> ", "1 < 2 and <tool> ", []),
    ("hermes", " \n", " \n", []),
    ("hermes", "", "", []),
    ("mistral", f"[TOOL_CALLS][{ADD}]", "", [("add", ADD_ARGUMENTS)]),
    ("mistral", f"[TOOL_CALLS] [{ADD}, {ADD}]", "", [("add", ADD_ARGUMENTS)] * 2),
    ("mistral", f"so [TOOL_CALLS]{ADD}", "so", [("add", ADD_ARGUMENTS)]),
    ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Rom"}', "", [("get_weather", '{"city": "Rom"}')]),
    ("mistral", '[TOOL_CALLS]get[ARGS]{}[TOOL_CALLS]add[ARGS]{"a": "]"}', "", [("get", "{}"), ("add", '{"a": "]"}')]),
    ("mistral", "[TOOL_CALLS]getter[ARGS]{}", "[TOOL_CALLS]getter[ARGS]{}", []),
    ("mistral", "[1, 2]", "[1, 2]", []),
    ("llama3", '{"name": "get", "parameters": {"a": 1}}', "", [("get", '{"a": 1}')]),
    ("llama3", '<|python_tag|>{"name": "get", "parameters": {"a": 1}}', "", [("get", '{"a": 1}')]),
    ("llama3", '{"name": "get", "parameters": {}}; {"name": "add", "parameters": {"a": 2}}', "", [("get", "{}"), ("add", '{"a": 2}')]),
    ("llama3", ' {"answer": 42} ', ' {"answer": 42} ', []),
    ("llama3", 'The call {"name": "get", "parameters": {}}', 'The call {"name": "get", "parameters": {}}', []),
]


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
def test_content_and_calls_wherever_the_text_is_cut(form: str, text: str, content: str, calls: Calls) -> None:
    assert parsed(FORM[form], [text]) == (content, calls)
    assert parsed(FORM[form], list(text)) == (content, calls)
    for cut in range(len(text)):
        assert parsed(FORM[form], [text[:cut], text[cut:]]) == (content, calls)


_PARTS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "get", "add", '{"name": "get", ', '"arguments": {"a": 1}}',
    '"parameters": {', "}", "{", "[", "]", ", ", "; ", "\n", " ", '"', "\\", "x", ":", ADD,
]  # fmt: skip


@given(st.sampled_from(FORMATS), st.lists(st.sampled_from(_PARTS), max_size=12), st.integers(0, 2**32), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_random_texts_give_the_same_however_they_come(form: ToolFormat, parts: list[str], seed: int, begun: bool, parallel: bool) -> None:
    text = "".join(parts)
    chosen = random.Random(seed)
    cuts = sorted(chosen.randint(0, len(text)) for _ in range(chosen.randint(0, 8)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parsed(form, [text], begun=begun, parallel=parallel)
    assert parsed(form, pieces, begun=begun, parallel=parallel) == whole
    assert all(name in NAMES for name, _ in whole[1])
    assert parallel or len(whole[1]) <= 1


class CountingParser(ToolParser):
    """Counts the characters that its steps look at: what was not understood before is looked at again."""

    num_chars = 0

    def _step(self, pieces: list[Piece]) -> bool:
        self.num_chars += len(self._text)
        return super()._step(pieces)


_LONG = [
    '<tool_call>{"name": "get", "arguments": {"a": "' + "x" * 40_000,
    '<tool_call>{"name": "get", "arguments": {"a": ' + "[" * 40_000,
    '<tool_call>{"name": "' + "x" * 40_000,
    "<tool_call>" + " " * 40_000,
    "<tool_call>" + "," * 40_000,
    "[TOOL_CALLS]" + "[" * 40_000,
    "[TOOL_CALLS]get[ARGS]" + " " * 40_000,
    " " * 40_000 + '{"name": "get", "parameters": {}}',
    "<tool_call" * 4_000,
    f"<tool_call>{ADD}</tool_call>" * 400,
]


@pytest.mark.parametrize("form", FORMATS, ids=[form.name for form in FORMATS])
@pytest.mark.parametrize("text", _LONG, ids=range(len(_LONG)))
def test_a_long_text_takes_work_in_proportion_to_its_length(form: ToolFormat, text: str) -> None:
    parser = CountingParser(form, NAMES)
    for begin in range(0, len(text), 50):
        parser.push(text[begin : begin + 50])
    parser.finish()
    assert parser.num_chars <= 4 * len(text)


def test_blanks_before_an_object_end_what_would_be_a_call() -> None:
    for text in (" " * 300 + '{"name": "get"}', "<tool_call>"):
        assert parsed(FORM["llama3"], [text]) == parsed(FORM["llama3"], list(text)) == (text, [])
    text = "[TOOL_CALLS]get[ARGS]" + " " * 300 + "{}"
    assert parsed(FORM["mistral"], [text]) == parsed(FORM["mistral"], list(text)) == (text, [])


def test_a_call_comes_before_its_end() -> None:
    parser = ToolParser(FORM["hermes"], NAMES)
    assert parser.push("Yes. <tool_call>\n") == ["Yes."]
    assert parser.push('{"name": "get", "argu') == []
    assert parser.push('ments": {"ci') == [ToolCallDelta(0, "get", '{"ci')]
    assert parser.push('ty": "Rom"}') == [ToolCallDelta(0, "", 'ty": "Rom"}')]
    assert parser.push("}\n</tool_call>") == []
    assert parser.finish() == []


def test_the_first_of_several_calls_where_one_is_wanted() -> None:
    text = f"<tool_call>\n{ADD}\n</tool_call>\n<tool_call>{ADD}</tool_call> and"
    assert parsed(FORM["hermes"], [text], parallel=False) == ("", [("add", ADD_ARGUMENTS)])


def test_formats_are_found_in_templates() -> None:
    assert tool_format("... <tool_call>{{ tool }}</tool_call>").name == "hermes"
    assert tool_format("... [AVAILABLE_TOOLS] ... [TOOL_CALLS]").name == "mistral"
    assert tool_format('Respond in the format {"name": function name, "parameters": dictionary}').name == "llama3"
    assert tool_format("nothing").name == "hermes"
    assert tool_format("<tool_call>", "mistral").name == "mistral"
    assert takes_tools("{% if tools %}") and not takes_tools("{{ message.toolset }}")


FUNCTIONS = [
    Function("get_weather", {"type": "object", "properties": {"city": {"enum": ["Rom", "Bonn"]}}, "required": ["city"]}, strict=True),
    Function("get", {}),
    Function(
        "add",
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer", "minimum": 0}}},
    ),
]


def byte_tokenizer(tokens: list[bytes]) -> LLTokenizer:
    """Return a tokenizer of single bytes, behind which there are special tokens, the end token first."""

    class Bytes:
        eos_token_id, bos_token_id = 256, None
        special_token_ids = list(range(256, len(tokens)))  # noqa: RUF012

        def __init__(self) -> None:
            self.tokens = tokens

        def __call__(self, text: Any) -> list[int]:
            return list(text.encode() if isinstance(text, str) else text)

    return LLTokenizer(TokenizerWrapper(Bytes()))


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("special", [[], ["<tool_call>", "</tool_call>"]])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_forced_calls_are_found_by_the_parser(form: ToolFormat, special: list[str], parallel: bool) -> None:
    tokens = [*(bytes([byte]) for byte in range(256)), b"<eos>", *(each.encode() for each in special)]
    tokenizer = byte_tokenizer(tokens)
    grammar = LLMatcher.grammar_from_lark(forced_grammar(form, FUNCTIONS, special, parallel=parallel))
    assert LLMatcher.validate_grammar(grammar, tokenizer) == ""
    counts = set()
    for seed in range(8):
        chosen, text = random.Random(seed), bytearray()
        matcher = LLMatcher(tokenizer, grammar)
        while not matcher.is_stopped() and len(text) < 1500:
            mask = matcher.compute_bitmask()
            if matcher.is_stopped():
                break
            allowed = [token for token in range(257 + len(special)) if mask[token // 8] >> token % 8 & 1]
            others = [each for each in allowed if each != 256] or allowed
            visible = [each for each in others if each not in (9, 10, 13, 32)] or others
            token = 256 if 256 in allowed and chosen.random() < 0.3 else chosen.choice(visible)
            matcher.consume_token(token)
            text += b"" if token == 256 else tokens[token]
        if not matcher.is_accepting():
            continue
        assert matcher.get_error() == ""
        content, calls = parsed(form, [bytes(text).decode(errors="replace")], begun=bool(forced_prefix(form)))
        assert content == ""
        counts.add(len(calls))
        for name, arguments in calls:
            found = json.loads(arguments)
            assert isinstance(found, dict)
            assert name != "get_weather" or found["city"] in ("Rom", "Bonn")
            assert name != "get" or found == {}
    assert counts and (parallel or counts == {1})
    assert not parallel or max(counts) > 1


def taken(form: ToolFormat, special: list[str], text: str, *, parallel: bool = True) -> str:
    """Return how much of a text an answer may begin with; all of it only if the answer may end there."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"<eos>", *(each.encode() for each in special)]
    grammar = free_grammar(form, FUNCTIONS, special, parallel=parallel)
    assert grammar is not None
    matcher = LLMatcher(byte_tokenizer(tokens), LLMatcher.grammar_from_lark(grammar))
    found = ""
    for part in re.split("(" + "|".join(map(re.escape, special)) + "|.)", text, flags=re.DOTALL) if special else list(text):
        for token in [tokens.index(part.encode())] if part in special else part.encode():
            if matcher.is_stopped() or not matcher.compute_bitmask()[token // 8] >> token % 8 & 1:
                return found
            matcher.consume_token(token)
        found += part
    return found if matcher.is_accepting() else f"{found} ..."


@pytest.mark.parametrize("is_special", [True, False])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_calls_in_a_text_fit_their_schemas(form: ToolFormat, is_special: bool) -> None:
    special = [each for each in (form.begin, form.end) if each] if is_special else []
    if is_special and form.name == "mistral":
        assert free_grammar(form, FUNCTIONS, special, parallel=True) is None, "[TOOL_CALLS] can't be named"
        return
    good = f'{{"name": "get_weather", "{form.arguments}": {{"city": "Rom"}}}}'
    call = form.begin + form.first + good + form.last + form.end
    for text in ("", "Hello\nworld {}", "1 < 2", call, f"So: {call}"):
        assert taken(form, special, text) == taken(form, special, text, parallel=False) == text
    assert parsed(form, [f"So: {call}"]) == ("So:", [("get_weather", '{"city": "Rom"}')])
    assert taken(form, special, call.replace("Rom", "Ulm")) == call[: call.index("Rom")]
    assert taken(form, special, call.replace("get_weather", "none")) == call[: call.index("get_weather")]
    assert taken(form, special, form.begin + "nonsense") == form.begin
    if form.starts_answer:
        assert taken(form, special, good) == good
        assert taken(form, special, good.replace("Rom", "Ulm")) == good[: good.index("Rom")]
        assert taken(form, special, f"{good}; {good}") == f"{good}; {good}"
        assert taken(form, special, f"{good}; {good}", parallel=False) == good
    else:
        assert taken(form, special, f"{call}\n{call} Done.") == f"{call}\n{call} Done."
