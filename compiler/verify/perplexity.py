"""The perplexity of a language model on a text that the user gives, of the reference and of compiled code (docs/llm.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmos.compiler.backends.base import CompiledModel
from llmos.compiler.execution.native import CompiledCode
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.verify.samples import Signature
from llmos.runtime.artifact.perplexity import MAX_TOKENS, Perplexity, Step, StepShape
from llmos.runtime.artifact.recorded import RecordedArray
from llmos.runtime.errors import ToleranceError, UserError

TOKENIZER, GENERATION = "tokenizer.json", "generation"
_CHARS_PER_TOKEN = 16  # read of the text, at most

Run = Callable[[CompiledCode, CompiledModel, Sequence[np.ndarray], Sequence[np.ndarray], Mapping[str, int]], list[np.ndarray]]


@dataclass(frozen=True)
class PerplexityCheck:
    """tokens: int32 [tokens], of the text. reference: the perplexity of the reference."""

    tokens: np.ndarray
    shape: StepShape
    signature: Signature
    reference: float

    @classmethod
    def of(cls, imported: ImportedModel, path: Path) -> PerplexityCheck:
        """Run the reference on a text file. Raises UserError for a model or a text that has no perplexity."""
        if GENERATION not in imported.metadata:
            raise UserError("--perplexity is for language models, given as a Hugging Face directory or a .gguf file")
        reference = imported.reference
        if reference is None:
            raise UserError("--perplexity needs the model that a saved stage was made of: compile that")
        signature, generation = Signature.of(imported.module), imported.metadata[GENERATION]
        names = {each["name"] for each in generation["caches"]}
        caches = [(tuple(int(dim) for dim in spec.dims[1:]), spec.dtype) for spec in signature.inputs if spec.name in names]
        shape = StepShape.of(generation, caches)
        tokens = _tokens(imported.assets, path, int(generation["vocab_size"]))
        found = shape.perplexity(lambda inputs: np.asarray(reference(inputs)[0]), tokens)
        if not math.isfinite(found):
            raise UserError(f"--perplexity {path}: the model's perplexity is {found}")
        return cls(tokens, shape, signature, found)

    def measured(self, compiled: CompiledModel, codes: Mapping[str, bytes], run: Run) -> Perplexity:
        """Run the compiled code of each target. Raises ToleranceError where its perplexity is infinite or NaN."""
        weights, by_code, targets = [weight.load() for weight in compiled.weights.values()], {}, {}

        def step_of(code: CompiledCode) -> Step:
            return lambda inputs: run(code, compiled, weights, inputs, self.signature.sizes_of(inputs))[0]

        for name, code in codes.items():
            if code not in by_code:
                by_code[code] = self.shape.perplexity(step_of(CompiledCode(code)), self.tokens)
            targets[name] = by_code[code]
            if not math.isfinite(targets[name]):
                raise ToleranceError(f"the perplexity of the compiled model is {targets[name]} on {name}: find out why with `llmos bisect`")
        return Perplexity(RecordedArray.of("tokens", "int32", self.tokens), self.reference, targets)


def _tokens(assets: Mapping[str, bytes], path: Path, vocab_size: int) -> np.ndarray:
    """The first MAX_TOKENS tokens of a file in UTF-8, int32."""
    from tokenizers import Tokenizer

    if TOKENIZER not in assets:
        raise UserError(f"--perplexity {path}: the model has no {TOKENIZER}")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_TOKENS * _CHARS_PER_TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--perplexity {path}: not a text in UTF-8 that can be read") from error
    tokenizer = Tokenizer.from_str(assets[TOKENIZER].decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = np.array(tokenizer.encode(text).ids[:MAX_TOKENS], np.int32)
    if len(ids) < 2:
        raise UserError(f"--perplexity {path}: a text of one token or none has no perplexity")
    if ids.max() >= vocab_size:
        raise UserError(f"--perplexity {path}: the model's tokenizer gives {ids.max()}, of a vocabulary of {vocab_size}")
    return ids
