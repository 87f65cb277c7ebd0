"""llmos: compile a trained model once into one file; run and serve it anywhere, with no PyTorch and no compiler.

    artifact = llmos.compile(module, (x,), dynamic_shapes=...)      # needs the extra "compile"
    artifact.save("m.llmos")
    program = llmos.load("m.llmos");  y = program(x)
    text = llmos.LLMOS("chat.llmos").generate_text("Once upon a time", max_tokens=64)

Every name here is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmos.compiler.driver import compile
    from llmos.runtime.artifact.reader import Artifact
    from llmos.runtime.errors import (
        ArtifactError,
        ExecutionError,
        InputError,
        LlmosError,
        PassError,
        UnsupportedError,
        UserError,
    )
    from llmos.runtime.llm.model import LLMOS
    from llmos.runtime.native.binding import num_threads, set_num_threads
    from llmos.runtime.program import Program, load

__version__ = "0.1.0"

_HOMES = {
    "compile": "llmos.compiler.driver",
    "LLMOS": "llmos.runtime.llm.model",
    "load": "llmos.runtime.program",
    "Program": "llmos.runtime.program",
    "Artifact": "llmos.runtime.artifact.reader",
    "num_threads": "llmos.runtime.native.binding",
    "set_num_threads": "llmos.runtime.native.binding",
    "ArtifactError": "llmos.runtime.errors",
    "ExecutionError": "llmos.runtime.errors",
    "InputError": "llmos.runtime.errors",
    "LlmosError": "llmos.runtime.errors",
    "PassError": "llmos.runtime.errors",
    "UnsupportedError": "llmos.runtime.errors",
    "UserError": "llmos.runtime.errors",
}

__all__ = [
    "LLMOS",
    "Artifact",
    "ArtifactError",
    "ExecutionError",
    "InputError",
    "LlmosError",
    "PassError",
    "Program",
    "UnsupportedError",
    "UserError",
    "compile",
    "load",
    "num_threads",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmos' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
