"""`LLMOS`: a language model in a few lines of Python."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmos.runtime.engine.errors import ClosedError
from llmos.runtime.engine.generate import GenerationOptions, ProgramStepModel, StepModel
from llmos.runtime.engine.model import Model, embedding_model
from llmos.runtime.errors import InputError
from llmos.runtime.llm.compiled import artifact_of, must_compile
from llmos.runtime.llm.embedder import Embedder
from llmos.runtime.llm.engine import Messages, Prompt, TextEngine
from llmos.runtime.llm.request import Completion, TextDelta, TextEnd, TextRequest


class LLMOS:
    """A language model, loaded and ready to generate. Safe to use from any thread; requests at the same time share its steps.

        with LLMOS(model_path="m.llmos") as model:
            print(model.generate_text(prompt="Once upon a time", max_tokens=64, temperature=0.7))
            for piece in model.stream_chat([{"role": "user", "content": "What is the capital of France?"}]):
                print(piece, end="", flush=True)
            vectors = model.embed(["a text", "another"])     # where it was compiled with --embeddings

    model_path: an artifact, or a model directory, which is compiled once and kept (`compiled.py`). compile_options: of `llmos compile`, for
    a directory, such as ("--quant", "w8a8"). options: limits of a step, memory of the cache, and so on. device: "cpu", "cuda" or "cuda:N",
    an NVIDIA GPU by its index.

    Parameters of a generation are those of SamplingParams, by name; what is not given is as the model's authors recommend. Methods raise
    InputError, before anything runs, if one of them, the prompt or a message is wrong. Those that begin with "a" are for an event loop.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        compile_options: Sequence[str] = (),
        options: GenerationOptions | None = None,
        device: str = "cpu",
    ) -> None:
        from llmos.runtime.device.select import open_device
        from llmos.runtime.program import load

        path, chosen = Path(model_path), open_device(device)
        if device != "cpu" and must_compile(path) and "--target" not in compile_options:
            compile_options = (*compile_options, "--target", chosen.target)
        program = load(artifact_of(path, compile_options), device=chosen)
        assets = program.manifest.assets

        def asset(name: str) -> bytes | None:
            return program.artifact.asset(name) if f"assets/{name}" in assets else None

        self._start(ProgramStepModel(program), asset, options, lambda: embedding_model(program))

    @classmethod
    def of(
        cls,
        model: StepModel,
        asset: Callable[[str], bytes | None],
        options: GenerationOptions | None = None,
        *,
        embeddings: Model | None = None,
    ) -> LLMOS:
        """Return one that runs any model; asset: gives its tokenizer.json and what else an artifact holds; embeddings: embeds texts."""
        made = cls.__new__(cls)
        made._start(model, asset, options, lambda: embeddings)
        return made

    def _start(
        self,
        model: StepModel,
        asset: Callable[[str], bytes | None],
        options: GenerationOptions | None,
        embeddings: Callable[[], Model | None],
    ) -> None:
        self.engine = TextEngine(model, asset, options)
        self._embeddings = embeddings
        self._embedder: Embedder | None = None  # made when it is first used
        self._is_closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> LLMOS:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """End all requests, and the threads that run them."""
        self.engine.close()
        with self._lock:
            self._is_closed = True
            if self._embedder is not None:
                self._embedder.close()

    # Whole results.

    def generate(self, prompt: Prompt, **params: Any) -> list[Completion]:
        """Generate `n` completions of a prompt, a text or token ids, with their tokens, logprobs and ends."""
        with self.submit(prompt, **params) as request:
            return request.result()

    def generate_text(self, prompt: Prompt, **params: Any) -> str:
        """Return the text that follows a prompt."""
        return "".join(self.stream_text(prompt, **params))

    def chat(self, messages: Messages, **params: Any) -> str:
        """Return the answer to a chat. messages: [{"role": "user", "content": "Hi"}, ...], made a prompt by the model's chat template."""
        return "".join(self.stream_chat(messages, **params))

    def embed(self, texts: str | Sequence[str], *, principal: str = "", timeout_s: float | None = None) -> np.ndarray[Any, Any]:
        """Return the embedding of a text, float32 [width], or those of several, [texts, width], by the same weights; see Embedder.embed.

        Raises InputError for a model that was compiled without --embeddings.
        """
        return self._embedding().embed(texts, principal=principal, timeout_s=timeout_s)

    async def aembed(self, texts: str | Sequence[str], *, principal: str = "", timeout_s: float | None = None) -> np.ndarray[Any, Any]:
        """As `embed`."""
        return await asyncio.to_thread(self.embed, texts, principal=principal, timeout_s=timeout_s)

    async def agenerate(self, prompt: Prompt, **params: Any) -> list[Completion]:
        """As `generate`."""
        with await asyncio.to_thread(self.submit, prompt, **params) as request:
            return await request.aresult()

    async def agenerate_text(self, prompt: Prompt, **params: Any) -> str:
        """As `generate_text`."""
        return "".join([piece async for piece in self.astream_text(prompt, **params)])

    async def achat(self, messages: Messages, **params: Any) -> str:
        """As `chat`."""
        return "".join([piece async for piece in self.astream_chat(messages, **params)])

    # Streams. One that is left before its end is canceled.

    def stream_text(self, prompt: Prompt, **params: Any) -> Iterator[str]:
        """Yield the text that follows a prompt, as it comes."""
        return _Pieces(self.submit(prompt, **_single(params)))

    def stream_chat(self, messages: Messages, **params: Any) -> Iterator[str]:
        """Yield the answer to a chat, as it comes."""
        return _Pieces(self.submit_chat(messages, **_single(params)))

    async def astream_text(self, prompt: Prompt, **params: Any) -> AsyncIterator[str]:
        """As `stream_text`."""
        with await asyncio.to_thread(self.submit, prompt, **_single(params)) as request:
            async for event in request:
                if text := _text_of(event):
                    yield text

    async def astream_chat(self, messages: Messages, **params: Any) -> AsyncIterator[str]:
        """As `stream_chat`."""
        with await asyncio.to_thread(self.submit_chat, messages, **_single(params)) as request:
            async for event in request:
                if text := _text_of(event):
                    yield text

    # Requests: their events, for those that want all of them.

    def submit(self, prompt: Prompt, *, principal: str = "", timeout_s: float | None = None, **params: Any) -> TextRequest:
        """Queue a prompt and return its request; never waits for the model.

        principal: requests of the same one share cached prefixes. timeout_s: the request ends with a DeadlineError then. All methods above
        take both, as they take the parameters.
        """
        return self.engine.submit(prompt, self.engine.params(params), principal=principal, timeout_s=timeout_s)

    def submit_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        principal: str = "",
        timeout_s: float | None = None,
        **params: Any,
    ) -> TextRequest:
        """Queue a chat and return its request; never waits for the model. See `submit`.

        tools, variables: what else the chat template reads; see ChatTemplate.render. All methods for chats take them.
        """
        found = self.engine.params(params)
        return self.engine.submit_chat(messages, found, principal=principal, timeout_s=timeout_s, tools=tools, variables=variables)

    def _embedding(self) -> Embedder:
        with self._lock:
            if self._is_closed:
                raise ClosedError("the model is closed")
            if self._embedder is None:
                model = self._embeddings()
                if model is None:
                    raise InputError(f"'{self.engine.name}' has no embeddings: compile it with --embeddings last or mean")
                self._embedder = Embedder(model)
            return self._embedder


def _single(params: dict[str, Any]) -> dict[str, Any]:
    if params.get("n", 1) != 1:
        raise InputError("n: a text or a stream is of one sequence; use generate or submit for several")
    return params


class _Pieces(Iterator[str]):
    """The text of a request, as it comes; canceled when nobody holds it any more, also if nobody has read it."""

    def __init__(self, request: TextRequest) -> None:
        self._request = request
        self._events = iter(request)

    def __next__(self) -> str:
        return next(text for event in self._events if (text := _text_of(event)))

    def __del__(self) -> None:
        self._request.cancel()


def _text_of(event: object) -> str:
    """Return the text of an event. Raises the error of one that ends the request."""
    if isinstance(event, TextEnd) and event.error is not None:
        raise event.error
    return event.text if isinstance(event, TextDelta) else ""
