"""Text generation on a terminal: options of sampling, a stream of text, and how fast it came."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llmos.runtime.errors import UserError

if TYPE_CHECKING:
    from llmos.runtime.llm import LLMOS, TextRequest

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--max-tokens", type=int, help="Most tokens to generate; default until the model ends, or its context."),
    click.option(
        "--temperature", type=float, help="0 takes the likeliest token. Default of this and others: as the model's authors recommend."
    ),
    click.option("--top-k", type=int, help="Sample among so many likeliest tokens; 0 is off."),
    click.option("--top-p", type=float, help="Sample among the likeliest tokens of this total probability."),
    click.option("--min-p", type=float, help="Sample among tokens at least this likely, relative to the likeliest."),
    click.option("--seed", type=int, help="Of the random numbers: the same seed gives the same text."),
    click.option("--stop", multiple=True, metavar="TEXT", help="Text that ends the answer, and is left out; repeatable."),
)


def sampling_options(command: Command) -> Command:
    """Give a command the options of sampling, as keyword arguments that are None, or (), where they are not given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def device_option(command: Command) -> Command:
    """Give a command the option --device."""
    option = click.option("--device", default="cpu", show_default=True, metavar="NAME", help="Where it runs: cpu, cuda or cuda:N, a GPU.")
    return option(command)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that were given."""
    return {name: value for name, value in options.items() if value is not None and value != ()}


def load_language_model(path: Path, device: str) -> LLMOS:
    """Load a model to generate with; a directory is compiled first, which takes a while."""
    from llmos.runtime.llm import LLMOS

    if path.is_dir():
        click.echo(f"compiling {path}, unless that was done before", err=True)
    return LLMOS(path, device=device)


def generate(path: Path, prompt: str, params: Mapping[str, Any], device: str) -> None:
    """Print the text that follows a prompt as it comes, and at last the speed on stderr."""
    if prompt == "-":
        prompt = sys.stdin.read()
    with load_language_model(path, device) as model:
        show(model.submit(prompt, **params))


def show(request: TextRequest) -> str:
    """Print the text of a request as it comes, and at last the speed on stderr; return the text. Raises the error that ended it."""
    speed = Speed(request.num_prompt_tokens)
    text = ""
    with request:
        for piece in speed.pieces(request):
            click.echo(piece, nl=False)
            sys.stdout.flush()
            text += piece
    click.echo()
    click.echo(speed, err=True)
    return text


@dataclass
class Speed:
    """Times of one request, in seconds since it was submitted."""

    num_prompt_tokens: int
    num_tokens: int = 0
    num_cached_tokens: int = 0
    first_s: float = 0.0
    last_s: float = 0.0

    def pieces(self, request: TextRequest) -> Iterator[str]:
        """Yield the text of a request, and take the times meanwhile."""
        from llmos.runtime.llm import TextDelta, TextEnd

        begin_s = time.perf_counter()
        for event in request:
            if isinstance(event, TextEnd):
                if event.error is not None:
                    raise event.error
                self.num_cached_tokens = event.num_cached_tokens
            elif isinstance(event, TextDelta):
                self.last_s = time.perf_counter() - begin_s
                self.first_s = self.first_s or self.last_s
                self.num_tokens += len(event.tokens)
                yield event.text

    def __str__(self) -> str:
        cached = f", {self.num_cached_tokens} of them cached" if self.num_cached_tokens else ""
        parts = [f"{self.num_prompt_tokens} tokens of prompt{cached}", f"{self.num_tokens} generated"]
        if self.num_tokens:
            parts.append(f"first after {self.first_s:.2f} s")
        if self.num_tokens > 1 and self.last_s > self.first_s:
            parts.append(f"then {(self.num_tokens - 1) / (self.last_s - self.first_s):.1f} tokens/s")
        return "; ".join(parts)


def only_with_prompt(params: Mapping[str, Any]) -> None:
    """Raise UserError if options of sampling are given without a prompt."""
    if params:
        name = next(iter(params)).replace("_", "-")
        raise UserError(f"--{name} is of text generation: give a prompt too, with --prompt")
