"""Folders of the user's that llmos writes to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(variables: Mapping[str, str] = os.environ) -> Path:
    """Return what may be deleted at any time: $LLMOS_CACHE, else $XDG_CACHE_HOME/llmos, else ~/.cache/llmos."""
    base = Path(variables.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return Path(variables.get("LLMOS_CACHE") or base / "llmos").expanduser()
