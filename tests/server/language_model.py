"""The language model of the server's tests: a hash, slow or failing where a token asks for it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llmos.runtime.engine.generate.null import NullStepModel
from llmos.runtime.engine.model import Array

FAILS_AT = 300
SLOW_AT = 301
STEP_S = 0.02
SLOW = {str(SLOW_AT): 100}  # logit_bias of a generation whose every token takes STEP_S or more


class PacedModel(NullStepModel):
    """Steps with the token SLOW_AT take STEP_S."""

    def __call__(self, arrays: Sequence[Array]) -> Array:
        if (arrays[0] == SLOW_AT).any():
            time.sleep(STEP_S)
        return super().__call__(arrays)
