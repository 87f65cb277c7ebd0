"""Text in, text out: prompts, chats, stop strings, streams and what is refused."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import llmos
from llmos.runtime.engine.errors import DeadlineError
from llmos.runtime.engine.generate.null import null_spec
from llmos.runtime.errors import ArtifactError, ExecutionError, InputError, UserError
from llmos.runtime.llm import LLMOS, TextDelta, TextEnd

from .conftest import TEMPLATE, Make

PROMPT = "the quick brown"
USER = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0, "max_tokens": 40}


def test_it_is_the_name_that_users_import() -> None:
    assert llmos.LLMOS is LLMOS


def test_text_is_that_of_the_tokens(model: LLMOS, tokenizer: Any) -> None:
    (completion,) = model.generate(PROMPT, **GREEDY)
    assert completion.text == tokenizer.decode(completion.token_ids)
    assert (completion.end.finish_reason, completion.end.num_generated_tokens, completion.end.stop) == ("length", 40, None)
    assert completion.end.num_prompt_tokens == len(tokenizer.encode(PROMPT).ids)
    assert model.generate_text(prompt=PROMPT, **GREEDY) == completion.text
    pieces = list(model.stream_text(PROMPT, **GREEDY))
    assert "".join(pieces) == completion.text and len(pieces) > 10
    ids = tokenizer.encode(PROMPT).ids
    assert model.generate_text(ids, **GREEDY) == model.generate_text(np.array(ids), **GREEDY) == completion.text


def test_a_seed_decides_and_every_parameter_reaches_the_sampler(model: LLMOS) -> None:
    sampled = {"temperature": 1.5, "max_tokens": 12}
    assert model.generate_text(PROMPT, seed=1, **sampled) == model.generate_text(PROMPT, seed=1, **sampled)
    texts = {model.generate_text(PROMPT, seed=seed, **sampled) for seed in range(4)}
    assert len(texts) == 4
    first, second = model.generate(PROMPT, n=2, seed=3, logprobs=2, **sampled)
    assert first.token_ids != second.token_ids
    assert all(len(event.top) == 2 and event.logprob is not None and event.logprob < 0 for event in first.tokens)


def test_a_stop_string_ends_the_text_and_the_computing(model: LLMOS) -> None:
    (whole,) = model.generate(PROMPT, temperature=0, max_tokens=200)
    stop = whole.text[20:23]
    end = whole.text.index(stop)
    (completion,) = model.generate(PROMPT, temperature=0, max_tokens=200, stop=[stop, "never in it"])
    assert completion.text == whole.text[:end]
    assert (completion.end.finish_reason, completion.end.stop) == ("stop", stop)
    assert completion.end.num_generated_tokens == len(completion.tokens) < 60
    assert model.generate_text(PROMPT, temperature=0, max_tokens=200, stop=stop) == whole.text[:end]
    assert stop in model.generate_text(PROMPT, temperature=0, max_tokens=200, stop=stop, min_tokens=100)


def test_one_sequence_stops_and_the_others_go_on(model: LLMOS) -> None:
    options = {"temperature": 1.0, "seed": 5, "max_tokens": 60, "n": 3}
    whole = model.generate(PROMPT, **options)
    stop = whole[1].text[5:8]
    stopped = model.generate(PROMPT, stop=stop, **options)
    assert stopped[1].text == whole[1].text.partition(stop)[0]
    assert [each.text for each in stopped] == [each.text.partition(stop)[0] for each in whole]


def test_the_end_token_of_a_chat(make: Make, tokenizer: Any) -> None:
    """It ends a text where the model's own list lacks it, and is no part of the text."""
    (eos,) = tokenizer.encode("<eos>").ids
    bias = {"logit_bias": {eos: 100}, "max_tokens": 8, "temperature": 0}
    model = make()
    (completion,) = model.generate(PROMPT, **bias)
    assert (completion.text, completion.end.finish_reason, completion.end.stop) == ("", "stop", eos)
    (completion,) = model.generate(PROMPT, ignore_eos=True, **bias)
    assert (completion.text, completion.end.finish_reason, len(completion.tokens)) == ("", "length", 8)
    (completion,) = make({"chat_template.jinja": None}).generate(PROMPT, **bias)
    assert completion.end.finish_reason == "length"


def test_chat(model: LLMOS, tokenizer: Any) -> None:
    prompt = "user: hello\nassistant: "
    assert model.engine.chat_prompt(USER) == prompt
    answer = model.chat(USER, **GREEDY)
    assert answer == model.generate_text(prompt, **GREEDY) == "".join(model.stream_chat(USER, **GREEDY))


def test_what_chats_and_requests_take_besides(make: Make) -> None:
    model = make({"chat_template.jinja": b"{{ tools[0].name if tools }}{{ tone }}{{ messages[0].content }}"})
    answer = model.chat(USER, tools=[{"name": "f"}], variables={"tone": "!"}, principal="alice", **GREEDY)
    assert answer == model.generate_text("f!hello", **GREEDY)
    for expired in (lambda: model.chat(USER, timeout_s=0), lambda: model.generate(PROMPT, timeout_s=0)):
        with pytest.raises(DeadlineError):
            expired()


def test_event_loops(model: LLMOS) -> None:
    expected = [model.generate_text(f"{PROMPT} {i}", **GREEDY) for i in range(6)]

    async def run() -> None:
        found = await asyncio.gather(*(model.agenerate_text(f"{PROMPT} {i}", **GREEDY) for i in range(6)))
        assert found == expected
        assert [piece async for piece in model.astream_text(PROMPT, **GREEDY)] == list(model.stream_text(PROMPT, **GREEDY))
        assert await model.achat(USER, **GREEDY) == model.chat(USER, **GREEDY)
        (completion,) = await model.agenerate(PROMPT, **GREEDY)
        assert completion == replace(model.generate(PROMPT, **GREEDY)[0], end=completion.end)
        async for _ in model.astream_chat(USER, max_tokens=400):
            break
        with pytest.raises(InputError, match="temperature"):
            await model.achat(USER, temperature=-1)

    asyncio.run(run())


def test_many_threads(model: LLMOS) -> None:
    expected = {i: model.generate_text(f"{PROMPT} {i}", **GREEDY) for i in range(8)}
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(expected, pool.map(lambda i: model.generate_text(f"{PROMPT} {i}", **GREEDY), expected), strict=True))
    assert found == expected


def test_a_stream_that_is_left_is_canceled(make: Make) -> None:
    model = make(spec=replace(null_spec(vocab_size=330), max_length=5000))
    for _ in model.stream_text(PROMPT, temperature=0):
        break
    model.stream_text(PROMPT, temperature=0)  # not even begun
    with model.submit(PROMPT, temperature=0) as request:
        next(iter(request))
    assert model.engine.engine.drain(10)


def test_events(model: LLMOS) -> None:
    events = list(model.submit(PROMPT, prompt_logprobs=0, **GREEDY))
    prompt, *deltas, end = events
    assert not isinstance(prompt, TextDelta | TextEnd) and len(prompt.tokens) == events[-1].num_prompt_tokens  # type: ignore[union-attr]
    assert all(isinstance(each, TextDelta) for each in deltas) and isinstance(end, TextEnd)
    assert sum(len(each.tokens) for each in deltas if isinstance(each, TextDelta)) == 40


def test_recommended_parameters(make: Make, tokenizer: Any) -> None:
    spec = null_spec(vocab_size=tokenizer.get_vocab_size())
    model = make(spec=replace(spec, defaults={"temperature": 0.5, "top_k": 3, "do_sample": True}))
    params = model.engine.params({"top_k": 7})
    assert (params.temperature, params.top_k, params.top_p) == (0.5, 7, 1.0)
    greedy = make(spec=replace(spec, defaults={"do_sample": False}))
    assert greedy.engine.params({}).temperature == 0
    assert make().engine.params({}).temperature == 1


def test_an_error_of_the_model_is_raised(make: Make, tokenizer: Any) -> None:
    ids = tokenizer.encode("hello").ids
    model = make(fails_at=ids[0])
    with pytest.raises(ExecutionError, match="a token of the step fails"):
        model.generate_text("hello")
    with pytest.raises(ExecutionError):
        model.generate("hello")
    assert model.generate_text("the", **GREEDY)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temprature": 1}, "there is no parameter 'temprature': did you mean temperature?"),
        ({"xyz": 1}, "there is no parameter 'xyz': there are temperature, top_k, "),
        ({"temperature": float("nan")}, "temperature: must be a number at least 0"),
        ({"stop": [1]}, "stop: must be strings of one character or more, not 1"),
        ({"n": 2}, "n: a text or a stream is of one sequence; use generate or submit for several"),
        ({"prompt": ""}, "the prompt is empty: give it one character or more"),
        ({"prompt": []}, "the prompt is empty: give it one token or more"),
        ({"prompt": [10**6]}, "the prompt has token id 1000000, the model has ids 0 to 329"),
        ({"prompt": 5}, "the prompt must be a text or a list of token ids, not int"),
        ({"prompt": "\ud800"}, "the prompt holds half of a surrogate pair, which is no character"),
        ({"prompt": "lazy " * 2000}, "the prompt has 10000 characters, far more than the context of 512 tokens"),
        ({"prompt": "hello " * 600}, "the prompt has 1800 tokens, the context is 512: shorten it, so that one or more can follow"),
    ],
)
def test_wrong_requests(model: LLMOS, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        model.stream_text(**{"prompt": PROMPT, **params})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"tokenizer.json": None}, UserError, "'null' holds no tokenizer.json: compile it from a model directory that has one"),
        ({"tokenizer.json": b"{}"}, ArtifactError, "'null': its tokenizer.json can't be read ("),
        ({"tokenizer_config.json": b"["}, ArtifactError, "'null': its tokenizer_config.json is no JSON ("),
    ],
)
def test_wrong_files(make: Make, changed: dict[str, bytes | None], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as found:
        make(changed)
    assert str(found.value).startswith(message)


@pytest.mark.parametrize(("vocab_size", "fits"), [(330, True), (384, True), (329, False), (661, False)])
def test_a_tokenizer_of_another_model(make: Make, vocab_size: int, fits: bool) -> None:
    if fits:
        make(spec=null_spec(vocab_size=vocab_size))
        return
    with pytest.raises(ArtifactError, match=f"is that of another model: it has 330 tokens, and the model has {vocab_size}"):
        make(spec=null_spec(vocab_size=vocab_size))


def test_chats_without_template_or_with_one_that_fails(make: Make) -> None:
    with pytest.raises(InputError, match="'null' has no chat template: give it a prompt instead"):
        make({"chat_template.jinja": None}).chat(USER)
    model = make({"chat_template.jinja": TEMPLATE + b"{{ raise_exception('no') if messages | length > 1 }}"})
    with pytest.raises(InputError, match="the chat template refuses these messages: no"):
        model.chat([*USER, *USER])
    assert model.chat(USER, **GREEDY)
