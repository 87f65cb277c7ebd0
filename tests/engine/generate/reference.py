"""Generation on the null model without engine, cache or scheduler, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmos.runtime.engine.generate import GenerationSpec
from llmos.runtime.engine.generate.null import null_logits
from llmos.runtime.native.sampling import RowSampling, SampledRow, sample_rows

Array = np.ndarray[Any, Any]


def generate(spec: GenerationSpec, prompt: Array, sampling: RowSampling, count: int) -> list[SampledRow]:
    """Generate `count` tokens one by one, for a prompt alone."""
    tokens, rows = list(prompt), []
    for _ in range(count):
        history = np.array(prompt, np.int32), np.array(tokens[len(prompt) :], np.int32)
        (row,) = sample_rows(null_logits(spec, np.array(tokens))[None], [sampling], [len(tokens)], [history])
        assert isinstance(row, SampledRow)
        rows.append(row)
        tokens.append(row.token)
    return rows
