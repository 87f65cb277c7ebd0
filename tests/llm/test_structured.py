"""Structured outputs: texts have their form, alone as beside others; a bad grammar is one line, and a slow one waits alone."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer, models

from llmos.runtime.children import Children
from llmos.runtime.engine.generate import GenerationEngine, GenerationOptions, Limits, SamplingParams, StepReport
from llmos.runtime.engine.generate.null import NullStepModel, null_spec
from llmos.runtime.engine.generate.observer import NullGenerationObserver
from llmos.runtime.engine.generate.structured import MAX_CHARS, StructuredOutputs
from llmos.runtime.errors import InputError, UserError
from llmos.runtime.llm import LLMOS, Completion
from llmos.runtime.text.grammar import CompiledGrammar, Grammars

from .conftest import Make

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bö", "c d"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WIDE = {"type": "object", "properties": {f"k{number}": {"type": "integer"} for number in range(200)}}
NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": -99, "maximum": 99}, "minItems": 2, "maxItems": 4}
FORMS: list[dict[str, Any]] = [
    {"json": PERSON},
    {"json": json.dumps(NUMBERS)},
    {"regex": "[a-d]{3,9}(é|日本)?"},
    {"choice": ["yes", "no", "perhaps 😀"]},
    {"grammar": 'start: "(" start ")" | /[0-9]{1,3}/'},
]


def has_form(text: str, form: dict[str, Any]) -> bool:
    """Check a text by other means than those that made it."""
    ((kind, wanted),) = form.items()
    if kind == "json":
        jsonschema.validate(json.loads(text), json.loads(wanted) if isinstance(wanted, str) else wanted)
        return True
    if kind == "choice":
        return text in wanted
    if kind == "regex":
        return re.fullmatch(wanted, text) is not None
    depth = text.count("(")
    return re.fullmatch(r"[0-9]{1,3}", text[depth : len(text) - depth]) is not None and text == "(" * depth + text.strip("()") + ")" * depth


@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
def test_texts_have_their_form(model: LLMOS, form: dict[str, Any]) -> None:
    for temperature in (0.0, 1.0, 3.0):
        found = model.generate("hello world", structured_outputs=form, temperature=temperature, n=4, seed=7)
        for each in found:
            assert each.end.finish_reason == "stop"
            assert has_form(each.text, form), each.text
        assert temperature == 0 or len({each.text for each in found}) > 1
    assert has_form(model.generate_text("hello", structured_outputs=form), form)


def test_json_objects(model: LLMOS) -> None:
    text = model.generate_text("hello", structured_outputs={"json_object": True}, max_tokens=400, seed=1, logit_bias={92: 40})
    assert isinstance(json.loads(text), dict)


def test_a_model_without_an_end_token_ends_where_nothing_can_follow(make: Make) -> None:
    model = make({"tokenizer_config.json": b"{}"})
    (found,) = model.generate("hello", structured_outputs={"regex": "[a-c]{5}"}, seed=3)
    assert re.fullmatch("[a-c]{5}", found.text)
    assert (found.end.finish_reason, found.end.stop, found.end.num_generated_tokens) == ("stop", None, len(found.tokens))
    (cut,) = model.generate("hello", structured_outputs={"regex": "a*"}, max_tokens=6)
    assert (cut.text.strip("a"), cut.end.finish_reason) == ("", "length")


def test_log_probabilities_are_those_of_the_model(model: LLMOS) -> None:
    prompt = [5, 6, 7]
    (guided,) = model.generate(prompt, structured_outputs={"regex": "[a-c]{6}"}, logprobs=0, seed=2)
    with model.submit([*prompt, *guided.token_ids], prompt_logprobs=0, max_tokens=1) as request:
        event = next(iter(request))
    assert [token.logprob for token in guided.tokens] == [row.logprob for row in event.tokens[3:] if row is not None]  # type: ignore[union-attr]


@dataclass
class Counting(NullGenerationObserver):
    num_preempted: int = 0

    def on_step(self, report: StepReport) -> None:
        self.num_preempted += report.num_preempted


def outcome(completions: list[Completion]) -> list[Any]:
    return [([(event.token, event.logprob) for event in each.tokens], each.text, each.end.finish_reason) for each in completions]


def test_guided_beside_others_as_alone(assets: dict[str, bytes], tokenizer: Any) -> None:
    """Twelve requests, with a cache for four, in small chunks, with common prefixes: preempted, they go on where they were."""
    from llmos.runtime.llm.engine import TextEngine

    spec = null_spec(vocab_size=tokenizer.get_vocab_size(), max_length=512)
    observer = Counting()
    rng = np.random.default_rng(0)
    requests = []
    for number in range(12):
        prompt = [*range(30, 70), *rng.integers(30, 300, rng.integers(1, 30)).tolist()]
        form = FORMS[number % 6] if number % 6 < 5 else None
        params = {"seed": number, "n": 1 + number % 3, "logprobs": 0, "max_tokens": 60, "temperature": number % 4 / 2}
        requests.append((prompt, {**params, "structured_outputs": form}))
    options = GenerationOptions(Limits(24, 6, 16), cache_blocks=60)
    many = TextEngine(NullStepModel(spec), assets.get, options, observer=observer)
    alone = TextEngine(NullStepModel(spec), assets.get, GenerationOptions(cache_blocks=400, prefix_cache=False))
    try:
        submitted = [many.submit(prompt, many.params(params)) for prompt, params in requests]
        found = [outcome(request.result()) for request in submitted]
        expected = [outcome(alone.submit(prompt, alone.params(params)).result()) for prompt, params in requests]
        assert found == expected
        assert observer.num_preempted > 0
        assert many.engine.drain(10)
        many.engine.check_integrity()
    finally:
        many.close()
        alone.close()


@dataclass
class GatedGrammar:
    """A grammar whose masks wait for a gate, one of `num_open` passes before."""

    grammar: CompiledGrammar
    num_open: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    waits: threading.Event = field(default_factory=threading.Event)
    fails_at: int = -1

    def start(self) -> GatedGuide:
        return GatedGuide(self)


class GatedGuide:
    def __init__(self, owner: GatedGrammar) -> None:
        self._owner = owner
        self._guide = owner.grammar.start()
        self._count = 0

    def next_mask(self, token: int | None) -> Any:
        self._count += 1
        if self._count > self._owner.num_open:
            self._owner.waits.set()
            assert self._owner.gate.wait(60)
        if self._count == self._owner.fails_at:
            raise RuntimeError("of the library")
        return self._guide.next_mask(token)


FORM = {"regex": "[a-c]{12}"}
GUIDED = SamplingParams(seed=1, structured_outputs=FORM)


@pytest.fixture
def engine(tokenizer: Any) -> Iterator[GenerationEngine]:
    spec = null_spec(vocab_size=tokenizer.get_vocab_size(), max_length=512, eos=(0,))
    found = GenerationEngine(NullStepModel(spec), GenerationOptions(Limits(32, 6, 16), cache_blocks=200))
    yield found
    assert found.drain(10)
    found.check_integrity()
    found.close()


@pytest.fixture
def grammar(tokenizer: Any) -> CompiledGrammar:
    return Grammars(tokenizer.to_str, tokenizer.get_vocab_size(), [0], ["<eos>"]).compile(StructuredOutputs.of(FORM))


@pytest.mark.parametrize("num_open", [0, 4])
def test_a_late_mask_holds_up_its_sequence_alone(engine: GenerationEngine, grammar: CompiledGrammar, num_open: int) -> None:
    expected = engine.submit([1, 2, 3], GUIDED, grammar=grammar).result()[0].token_ids
    gated = GatedGrammar(grammar, num_open)
    slow = engine.submit([1, 2, 3], GUIDED, grammar=gated)
    assert gated.waits.wait(60)
    time.sleep(0.1)
    assert isinstance(engine.model, NullStepModel)
    assert engine.model.num_steps < 40, "nothing is computed while there is nothing but to wait"
    others = [engine.submit([4, 5, number], SamplingParams(max_tokens=30, seed=number, temperature=0.5)) for number in range(3)]
    fast = engine.submit([1, 2, 3], GUIDED, grammar=grammar)
    assert [len(other.result()[0].tokens) for other in others] == [30] * 3
    assert fast.result()[0].token_ids == expected
    assert engine.num_requests == 1
    gated.gate.set()
    assert slow.result()[0].token_ids == expected


def test_what_waits_for_a_mask_can_be_canceled_and_times_out(engine: GenerationEngine, grammar: CompiledGrammar) -> None:
    gated = GatedGrammar(grammar, 3)
    canceled = engine.submit([1, 2, 3], GUIDED, grammar=gated)
    late = engine.submit([1, 2, 3], GUIDED, grammar=gated, timeout_s=0.1)
    with pytest.raises(Exception, match="timed out"):
        late.result()
    canceled.cancel()
    assert canceled.result()[0].finish.finish_reason == "abort"  # type: ignore[union-attr]
    assert engine.drain(10)
    gated.gate.set()


def test_a_grammar_that_fails_ends_its_sequence_alone(engine: GenerationEngine, grammar: CompiledGrammar) -> None:
    bad = GatedGrammar(grammar, 1000, fails_at=5)
    expected = engine.submit([1, 2, 3], GUIDED, grammar=grammar).result()[0].token_ids
    requests = [engine.submit([1, 2, 3], GUIDED, grammar=each) for each in (grammar, bad, grammar)]
    assert requests[0].result()[0].token_ids == requests[2].result()[0].token_ids == expected
    with pytest.raises(InputError, match="can't be followed"):
        requests[1].result()


def test_parameters_of_a_form_need_its_grammar(engine: GenerationEngine, grammar: CompiledGrammar) -> None:
    with pytest.raises(InputError, match="structured_outputs"):
        engine.submit([1], GUIDED)
    with pytest.raises(InputError, match="structured_outputs"):
        engine.submit([1], SamplingParams(), grammar=grammar)


CHAIN = {
    "$ref": "#/$defs/a0",
    "$defs": {**{f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(2000)}, "a2000": {}},
}
HOSTILE: list[tuple[Any, str]] = [
    ({"regex": "(ab"}, "unclosed group"),
    ({"regex": "(" * 5000 + "a" + ")" * 5000}, "can't be used"),
    ({"grammar": "start: x"}, "can't be used"),
    ({"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000}, "nested"),
    ({"grammar": "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(8000)) + 'a8000: "x"'}, "nesting"),
    ({"grammar": "start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(40)) + 'A40: "x" | "y"'}, "too big"),
    ({"json": CHAIN}, "nesting"),
    ({"json": '{"items":' * 5000 + "{}" + "}" * 5000}, "structured_outputs"),
    ({"json": {"type": "foo"}}, "Invalid type"),
    ({"json": {"not": {"type": "string"}}}, "not"),
    ({"json": {"$ref": "#"}}, "no text"),
    ({"json": {"$ref": "http://127.0.0.1:1/schema"}}, "not present"),
    ({"json": {"enum": []}}, "empty"),
    ({"json": {"type": "string", "minLength": 9, "maxLength": 3}}, "can't be used"),
    ({"json": "{"}, "no JSON"),
    ({"json": [1]}, "must be a JSON schema"),
    ({"json": {"enum": ["x" * MAX_CHARS]}}, "characters"),
    ({"json": {"a": float("nan")}}, "what JSON can't"),
    ({"json": PERSON, "regex": "a"}, "one of"),
    ({"yaml": "a"}, "one of"),
    ({}, "one of"),
    ("json", "one of"),
    ({"regex": ""}, "one character"),
    ({"regex": "\ud800"}, "surrogate"),
    ({"choice": []}, "choice"),
    ({"choice": ["a", 3]}, "choice"),
    ({"json_object": "yes"}, "json_object"),
]


@pytest.mark.parametrize(("form", "message"), HOSTILE)
def test_what_is_no_form_is_one_line(model: LLMOS, form: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        model.generate_text("hello", structured_outputs=form)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_keywords_that_cannot_be_enforced_are_ignored_where_that_is_wanted(model: LLMOS) -> None:
    form = StructuredOutputs("json", '{"type":"integer","not":{"const":3},"minimum":0,"maximum":9}', strict=False)
    assert int(model.generate_text("hello", structured_outputs=form)) in range(10)


@pytest.mark.parametrize("name", ["min_tokens", "ignore_eos"])
def test_what_contradicts_a_form_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        SamplingParams(structured_outputs=FORM, **{name: True if name == "ignore_eos" else 3})


def test_compiled_grammars_are_kept_within_bounds(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmos.runtime.text.grammar.MAX_KEPT_BYTES", 200_000)  # three of the least that one counts
    grammars = Grammars(tokenizer.to_str, tokenizer.get_vocab_size(), [0], [])
    wanted = [StructuredOutputs.of({"choice": [str(number)]}) for number in range(20)]
    first = grammars.compile(wanted[0])
    assert grammars.compile(wanted[0]) is first
    for each in wanted:
        grammars.compile(each)
    assert [grammars.keeps(each) for each in wanted] == [False] * 17 + [True] * 3
    assert grammars.compile(wanted[-1]) is grammars.compile(wanted[-1])
    assert grammars.compile(wanted[0]) is not first
    grammars.compile(StructuredOutputs.of({"json": WIDE}))
    assert not any(map(grammars.keeps, wanted)), "a large one takes the room of all others, and is not kept itself"


def test_a_grammar_counts_the_same_whatever_came_before_it() -> None:
    wide, other = LLMatcher.grammar_from_json_schema(json.dumps(WIDE)), LLMatcher.grammar_from_regex("[a-z]{2,400}x")
    counts = []
    for grammars in ([wide, wide], [other, wide]):
        children = Children("llmos.runtime.text.grammar_worker")
        requests = [json.dumps({"grammar": each, "special": []}).encode() for each in grammars]
        counts += [int(children.ask(request).output) for request in requests]
        children.close()
    first, again, _, behind_another = counts
    assert first > 500_000
    assert [again, behind_another] == pytest.approx([first, first], rel=0.05)


def test_a_tokenizer_that_has_no_bytes_is_one_line() -> None:
    plain = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<eos>": 2}, unk_token="a"))
    grammars = Grammars(plain.to_str, 3, [2], [])
    grammars.prepare()
    with pytest.raises(UserError, match="not possible with this model's tokenizer"):
        grammars.compile(StructuredOutputs.of({"choice": ["a"]}))
