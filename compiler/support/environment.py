"""Environment variables of the compile side: the one module that reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmos.runtime.errors import UserError
from llmos.runtime.folders import cache_folder

# name, what it sets. docs/passes.md repeats this table.
VARIABLES: Mapping[str, str] = {
    "LLMOS_CACHE": "folder of compiled code, and of models that LLMOS compiled; default $XDG_CACHE_HOME/llmos, else ~/.cache/llmos",
    "LLMOS_JOBS": "processes that compile code at the same time; default one per core",
}


@dataclass(frozen=True)
class Environment:
    """What the variables say, typed."""

    cache: Path
    jobs: int


def read_environment(variables: Mapping[str, str] = os.environ) -> Environment:
    """Reads VARIABLES. Raises UserError that names the variable with a bad value."""
    return Environment(cache=cache_folder(variables), jobs=_positive(variables, "LLMOS_JOBS", _num_cores()))


def _positive(variables: Mapping[str, str], name: str, default: int) -> int:
    text = variables.get(name)
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{name}={text}: expected an integer of 1 or more")
    return int(text)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))
