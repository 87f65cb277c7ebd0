"""The language model of the server's tests: a hash, slow, failing or without one of its tokens where a token asks for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmos.runtime.engine.generate.null import NullStepModel
from llmos.runtime.engine.model import Array

FAILS_AT = 300
SLOW_AT = 301
NEVER, BEHIND = 33, 302  # the first never comes right behind the second
STEP_S = 0.02
HELD_AT = 20
SLOW = {str(SLOW_AT): 100}  # logit_bias of a generation whose every token takes STEP_S or more


@dataclass
class PacedModel(NullStepModel):
    """Steps with the token SLOW_AT take STEP_S. sign: of the logits, so that there are two models. gate: a file without which no step goes
    on at position HELD_AT.
    """

    sign: int = 1
    gate: str = ""

    def __call__(self, arrays: Sequence[Array]) -> Array:
        if (arrays[0] == SLOW_AT).any():
            time.sleep(STEP_S)
        while self.gate and (arrays[1] >= HELD_AT).any() and not Path(self.gate).exists():
            time.sleep(0.002)
        logits = super().__call__(arrays) * self.sign
        logits[arrays[0][arrays[5]] == BEHIND, NEVER] = -np.inf
        return logits
