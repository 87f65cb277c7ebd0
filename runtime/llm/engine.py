"""A language model that is loaded: prompts and chats become requests of its engine."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from llmos.runtime.engine.generate import GenerationEngine, GenerationObserver, GenerationOptions, SamplingParams, StepModel
from llmos.runtime.engine.generate.structured import StructuredOutputs
from llmos.runtime.errors import ArtifactError, InputError
from llmos.runtime.llm.request import TextRequest
from llmos.runtime.text.chat import CONFIG, TEMPLATE, ChatTemplate
from llmos.runtime.text.grammar import Grammars
from llmos.runtime.text.tokenizer import TOKENIZER, PromptTokenizer
from llmos.runtime.text.tools import CALL_SIGNS

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int] | np.ndarray[Any, Any]

_PARAMETERS = tuple(each.name for each in fields(SamplingParams))


class TextEngine:
    """Generates text for many requests at once. Safe to use from any thread.

    asset: gives a file of the artifact by its name, None where it lacks it. Raises UserError without a tokenizer, and ArtifactError if a
    file is malformed, or the tokenizer is that of another model. limits: max_tokens and max_chars of a prompt.
    """

    def __init__(
        self,
        model: StepModel,
        asset: Callable[[str], bytes | None],
        options: GenerationOptions | None = None,
        *,
        observer: GenerationObserver | None = None,
    ) -> None:
        self.name = model.name
        self.spec = model.spec
        self.tokenizer = PromptTokenizer(model.name, asset(TOKENIZER), model.spec.vocab_size)
        try:
            self.template = ChatTemplate.of(asset(TEMPLATE), asset(CONFIG))
        except ArtifactError as error:
            raise ArtifactError(f"'{model.name}': {error}") from error
        self.limits = {"max_tokens": model.spec.max_length, "max_chars": model.spec.max_length * self.tokenizer.longest}
        self._end = self._chat_end_token()
        end_ids = [*model.spec.eos_token_ids, *([] if self._end is None else [self._end])]
        self.grammars = Grammars(self.tokenizer.read, model.spec.vocab_size, end_ids, self.tokenizer.special_tokens)
        self.engine = GenerationEngine(model, options, observer=observer)

    def params(self, given: Mapping[str, Any]) -> SamplingParams:
        """Return sampling parameters: those given, else those that the model's authors recommend. Raises InputError."""
        wrong = next((name for name in given if name not in _PARAMETERS), None)
        if wrong is not None:
            near = difflib.get_close_matches(wrong, _PARAMETERS, n=1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(_PARAMETERS)}"
            raise InputError(f"there is no parameter {wrong!r}: {advice}")
        recommended = {name: value for name, value in self.spec.defaults.items() if name in _PARAMETERS}
        if self.spec.defaults.get("do_sample") is False:
            recommended["temperature"] = 0.0
        return SamplingParams(**{**recommended, **given})

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        add_special_tokens: bool = True,
        principal: str = "",
        weight: float = 1.0,
        timeout_s: float | None = None,
        visible: Mapping[int, str] | None = None,
    ) -> TextRequest:
        """Queue a prompt, a text or token ids; never waits for the model.

        visible: special tokens that are part of the text, by id. principal, weight, timeout_s, and what it raises: as of
        GenerationEngine.submit. A grammar of params.structured_outputs that is not among the last ones is compiled here, which takes
        milliseconds, and at most some seconds.
        """
        if not isinstance(prompt, str | Sequence | np.ndarray):
            raise InputError(f"the prompt must be a text or a list of token ids, not {type(prompt).__name__}")
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens, max_tokens=self.spec.max_length)
        else:
            ids = list(prompt)
        params = self.params({}) if params is None else params
        if self._end is not None and not params.ignore_eos:
            params = replace(params, stop_token_ids=(*params.stop_token_ids, self._end))
        grammar = None if params.structured_outputs is None else self.grammars.compile(StructuredOutputs.of(params.structured_outputs))
        request = self.engine.submit(ids, params, principal=principal, weight=weight, timeout_s=timeout_s, grammar=grammar)
        return TextRequest(request, [self.tokenizer.stream(ids) for _ in range(params.n)], visible)

    def must_compile(self, params: SamplingParams) -> bool:
        """Return whether `submit` would compile a grammar first, which may take some seconds."""
        wanted = params.structured_outputs
        return wanted is not None and not self.grammars.keeps(StructuredOutputs.of(wanted))

    def chat_prompt(self, messages: Messages, **options: Any) -> str:
        """Return the prompt of a chat; options as of ChatTemplate.render. Raises InputError, also where the model has no template."""
        if self.template is None:
            raise InputError(f"'{self.name}' has no chat template: give it a prompt instead")
        return self.template.render(messages, **options)

    def submit_chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        principal: str = "",
        weight: float = 1.0,
        timeout_s: float | None = None,
        prefix: str = "",
        **options: Any,
    ) -> TextRequest:
        """Queue a chat: see `chat_prompt` and `submit`. prefix: the beginning of the answer, which its text lacks.

        With tools among the options, special tokens that stand around calls of them are part of the text.
        """
        prompt = self.chat_prompt(messages, **options) + prefix
        visible = self._call_tokens if options.get("tools") else None
        return self.submit(
            prompt, params, add_special_tokens=False, principal=principal, weight=weight, timeout_s=timeout_s, visible=visible
        )

    def close(self) -> None:
        """End all requests with ClosedError."""
        self.engine.close()

    @cached_property
    def _call_tokens(self) -> dict[int, str]:
        """Special tokens that are part of how models write calls of tools."""
        found = {self.tokenizer.token_id(sign): sign for sign in CALL_SIGNS if sign in self.tokenizer.special_tokens}
        return {token: sign for token, sign in found.items() if token is not None}

    def _chat_end_token(self) -> int | None:
        """Return the tokenizer's end token, which ends an answer of a chat, where the model's own list lacks it."""
        token = self.template.variables.get("eos_token") if self.template is not None else None
        found = self.tokenizer.token_id(token) if isinstance(token, str) else None
        return None if found in self.spec.eos_token_ids else found
