"""Counts of word numbers: TfIdfVectorizer. (Words themselves, strings, are kept out of compiled models.)"""

from __future__ import annotations

import torch

from llmos.compiler.frontend.onnx.registry import op
from llmos.runtime.errors import UnsupportedError


@op("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(
    x: torch.Tensor,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: tuple[int, ...],
    ngram_indexes: tuple[int, ...],
    pool_int64s: tuple[int, ...] | None = None,
    pool_strings: tuple[str, ...] | None = None,
    weights: tuple[float, ...] | None = None,
) -> torch.Tensor:
    """Lower TfIdfVectorizer: count the n-grams of the pool in x [length] or [batch, length].

    Up to `max_skip_count` numbers may stand between items. Raises UnsupportedError for strings, and for two n-grams of one index.
    """
    if pool_int64s is None:
        raise UnsupportedError("TfIdfVectorizer of strings isn't supported; give the model numbers of words.")
    if len(set(ngram_indexes)) < len(ngram_indexes):
        raise UnsupportedError("TfIdfVectorizer that counts two n-grams as one isn't supported; give each an index of its own.")
    found = [torch.zeros((*x.shape[:-1], 1))]
    for length, start in enumerate(ngram_counts, start=1):
        end = ngram_counts[length] if length < len(ngram_counts) else len(pool_int64s)
        grams = [pool_int64s[i : i + length] for i in range(start, end, length)]
        if grams and min_gram_length <= length <= max_gram_length:
            found.append(_occurrences(x.to(torch.int64), torch.tensor(grams), max_skip_count if length > 1 else 0))
        elif grams:
            found.append(torch.zeros((*x.shape[:-1], len(grams))))
    # Column 0 holds zeros for indices without an n-gram.
    column = {index: i for i, index in enumerate(ngram_indexes, start=1)}
    places = torch.tensor([column.get(i, 0) for i in range(max(ngram_indexes) + 1)])
    counts = torch.cat(found, -1).index_select(-1, places)
    scale = torch.tensor(weights) if weights is not None else torch.ones(())
    return counts if mode == "TF" else (counts > 0) * scale if mode == "IDF" else counts * scale


def _occurrences(x: torch.Tensor, grams: torch.Tensor, max_skip: int) -> torch.Tensor:
    """Count each row of `grams` [count, length] in x [..., size], at every distance between items; return float32 [..., count]."""
    count, length = grams.shape
    total = torch.zeros((*x.shape[:-1], count))
    for distance in range(1, max_skip + 2):
        places = x.shape[-1] - distance * (length - 1)
        if places > 0:
            items = torch.stack([x.narrow(-1, distance * i, places) for i in range(length)], -1)
            total = total + (items.unsqueeze(-2) == grams).all(-1).sum(-2)
    return total
