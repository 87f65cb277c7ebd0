"""`llmos run --prompt` and `llmos chat`, over a model that computes a hash."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from llmos.runtime.cli import chat, generate
from llmos.runtime.cli.command import run
from llmos.runtime.llm import LLMOS

from .conftest import TEMPLATE, Make

PROMPT = "the quick brown"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[LLMOS], None]:
    """Have the commands load this model, whatever the path."""

    def call(model: LLMOS) -> None:
        for module in (generate, chat):
            monkeypatch.setattr(module, "load_language_model", lambda path, device: model)

    return call


@pytest.fixture
def model(make: Make, loads: Callable[[LLMOS], None]) -> LLMOS:
    loads(made := make())
    return made


def test_run_streams_a_prompt(model: LLMOS, capsys: pytest.CaptureFixture[str], make: Make) -> None:
    options = {"temperature": 1.2, "max_tokens": 20, "seed": 3, "top_k": 30, "top_p": 0.9, "min_p": 0.01}
    expected = make().generate_text(PROMPT, **options)
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert run(["run", "m.llmos", "--prompt", PROMPT, *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == expected + "\n"
    assert re.fullmatch(r"\d+ tokens of prompt; 20 generated; first after [\d.]+ s; then [\d.]+ tokens/s\n", err), err


def test_run_reads_a_prompt_and_stops(
    model: LLMOS, make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make().generate_text(PROMPT, temperature=0, max_tokens=40)
    stop = whole[10:12]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode())))
    assert run(["run", "m.llmos", "--prompt", "-", "--temperature", "0", "--max-tokens", "40", "--stop", stop, "--stop", "never"]) == 0
    assert capsys.readouterr().out == whole.partition(stop)[0] + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "the prompt is empty: give it one character or more"),
        (["--prompt", "a", "--temperature", "nan"], "temperature: must be a number at least 0, not nan"),
        (["--prompt", "a", "--text", "b"], "--input, --text and --prompt don't go together: give one kind of input"),
        (["--prompt", "a", "--entry", "main"], "--prompt doesn't go together with --output or --entry"),
        (["--max-tokens", "5"], "--max-tokens is of text generation: give a prompt too, with --prompt"),
    ],
)
def test_wrong_use_is_one_line(model: LLMOS, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert run(["run", "m.llmos", *arguments]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_a_missing_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["chat", str(tmp_path / "missing.llmos")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/missing.llmos: there is no such file or directory\n"


def test_chat_remembers(model: LLMOS, make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"temperature": 0, "max_tokens": 10}
    other = make()
    system = {"role": "system", "content": "Be brief."}
    first = [system, {"role": "user", "content": "hello"}]
    answer = other.chat(first, **options)
    second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "world"}]
    expected = [answer, other.chat(second, **options), other.chat([system, {"role": "user", "content": "world"}], **options)]
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nworld\n/new\nworld\n"))
    assert run(["chat", "m.llmos", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "10"]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(f"{text}\n" for text in expected)
    assert err.count("tokens of prompt") == 3 and "cached" in err


def test_a_chat_goes_on_behind_an_error(
    make: Make, loads: Callable[[LLMOS], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = TEMPLATE + b"{% if messages[-1].content == 'bad' %}{{ raise_exception('not\nthat') }}{% endif %}"
    loads(make({"chat_template.jinja": refusing}))
    monkeypatch.setattr("sys.stdin", io.StringIO("bad\nhello\n"))
    assert run(["chat", "m.llmos", "--max-tokens", "3"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: the chat template refuses these messages: not that" and len(lines) == 2


def test_chat_needs_a_template(make: Make, loads: Callable[[LLMOS], None], capsys: pytest.CaptureFixture[str]) -> None:
    loads(make({"chat_template.jinja": None}))
    assert run(["chat", "m.llmos"]) == 2
    assert capsys.readouterr().err == "error: 'null' has no chat template: give it a prompt instead\n"
