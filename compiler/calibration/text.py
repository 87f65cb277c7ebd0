"""Texts as the inputs of an encoder or of a language model's step, by the tokenizer that the model brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmos.compiler.analysis.paged_attention import BLOCK_SIZE
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.verify.samples import InputSpec
from llmos.models.causal_lm import INPUTS, first_step
from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.errors import UserError

TOKENIZER = "tokenizer.json"  # asset
LONGEST_STEP = 512  # tokens of a text: of more, logits of a large vocabulary take gigabytes
IDS, MASK, SEGMENTS = "input_ids", "attention_mask", "token_type_ids"


def encoded(texts: Sequence[str], imported: ImportedModel, inputs: Sequence[InputSpec], source: str) -> list[Mapping[str, np.ndarray]]:
    """Return the inputs by name of each text alone, special tokens included and cut to the model's longest.

    Of an encoder int64 [1, tokens], of a language model those of a step whose logits are wanted of every token. Raises UserError, one line
    that begins with `source`, for a model that takes no text.
    """
    data, names = imported.assets.get(TOKENIZER), [spec.name for spec in inputs]
    is_step = tuple(names[: len(INPUTS)]) == INPUTS
    if data is None or not (is_step or (IDS in names and set(names) <= {IDS, MASK, SEGMENTS})):
        missing = f"no {TOKENIZER}" if data is None else f"the inputs {', '.join(names)}"
        raise UserError(f"{source} is text, and the model has {missing}: give a .npz file with an array for each input")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(data)
    tokenizer.no_padding()
    longest = imported.metadata.get("generation", imported.metadata).get("max_length")
    if longest:
        tokenizer.enable_truncation(int(longest))
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    if not is_step:
        return [_inputs(each, names) for each in ids]
    if not all(ids):
        raise UserError(f"{source} has a text of no token: leave it out")
    return [_step(each[:LONGEST_STEP], inputs) for each in ids]


def _step(ids: Sequence[int], inputs: Sequence[InputSpec]) -> Mapping[str, np.ndarray]:
    tables = np.arange(-(-len(ids) // BLOCK_SIZE))[None]
    caches = [([int(dim) for dim in spec.dims[1:]], DTYPES[spec.dtype].storage) for spec in inputs[len(INPUTS) :]]
    arrays = first_step(np.array(ids), [len(ids)], tables, 0, caches)
    return dict(zip([spec.name for spec in inputs], arrays, strict=True))


def _inputs(ids: Sequence[int], names: Sequence[str]) -> Mapping[str, np.ndarray]:
    values = {IDS: ids, MASK: [1] * len(ids), SEGMENTS: [0] * len(ids)}
    return {name: np.array([values[name]], np.int64) for name in names}
