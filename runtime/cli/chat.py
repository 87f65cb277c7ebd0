"""`llmos chat`"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmos.runtime.cli.generate import device_option, given, load_language_model, sampling_options, show
from llmos.runtime.errors import LlmosError

if TYPE_CHECKING:
    from llmos.runtime.llm import LLMOS

_HELP = "an empty line or Ctrl-D ends, /new forgets what was said, Ctrl-C stops an answer"


@click.command(name="chat")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--system", default="", metavar="TEXT", help="What the model is told first.")
@device_option
@sampling_options
def command(model: Path, system: str, device: str, **options: Any) -> None:
    """Talk with MODEL, an artifact of a chat model or its directory. Lines come from the terminal, or from a pipe."""
    with load_language_model(model, device) as loaded:
        talk(loaded, system, given(options))


def talk(model: LLMOS, system: str, params: dict[str, Any]) -> None:
    """Answer line after line. An answer that fails is one line, and the chat goes on without it."""
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    model.engine.chat_prompt([*start, {"role": "user", "content": "-"}])  # raises at once where there is no template
    for line in _lines():
        if line == "/new":
            messages = list(start)
            continue
        question = {"role": "user", "content": line}
        answer = _answer(model, [*messages, question], params)
        if answer:
            messages += [question, {"role": "assistant", "content": answer}]


def _lines() -> Iterator[str]:
    """Yield what the user types, up to an empty line; of a pipe all lines that are not empty."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    import readline  # noqa: F401, edits and remembers lines

    click.echo(_HELP, err=True)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if not line:
            return
        yield line


def _answer(model: LLMOS, messages: list[dict[str, str]], params: dict[str, Any]) -> str:
    """Print the answer, and return it; "" if there was none."""
    try:
        return show(model.submit_chat(messages, **params))
    except KeyboardInterrupt:
        click.echo("\n(stopped)", err=True)
    except LlmosError as error:
        advice = "; /new forgets what was said" if len(messages) > 2 else ""
        click.echo("error: " + " ".join(str(error).split()) + advice, err=True)
    return ""
