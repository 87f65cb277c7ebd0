"""Texts as the inputs of an encoder, by the tokenizer that the model brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmos.compiler.frontend.model import ImportedModel
from llmos.runtime.errors import UserError

TOKENIZER = "tokenizer.json"  # asset
IDS, MASK, SEGMENTS = "input_ids", "attention_mask", "token_type_ids"


def encoded(texts: Sequence[str], imported: ImportedModel, names: Sequence[str], source: str) -> list[Mapping[str, np.ndarray]]:
    """Return the inputs, int64 [1, tokens] by name, of each text alone, special tokens included and cut to the model's longest.

    names: of the model's inputs. Raises UserError, one line that begins with `source`, for a model that takes no text.
    """
    data = imported.assets.get(TOKENIZER)
    if data is None or IDS not in names or not set(names) <= {IDS, MASK, SEGMENTS}:
        missing = f"no {TOKENIZER}" if data is None else f"the inputs {', '.join(names)}"
        raise UserError(f"{source} is text, and the model has {missing}: give a .npz file with an array for each input")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(data)
    tokenizer.no_padding()
    longest = imported.metadata.get("max_length")
    if longest:
        tokenizer.enable_truncation(int(longest))
    return [_inputs(encoding.ids, names) for encoding in tokenizer.encode_batch(list(texts))]


def _inputs(ids: Sequence[int], names: Sequence[str]) -> Mapping[str, np.ndarray]:
    values = {IDS: ids, MASK: [1] * len(ids), SEGMENTS: [0] * len(ids)}
    return {name: np.array([values[name]], np.int64) for name in names}
