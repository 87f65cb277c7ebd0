"""What is tested here are our kernels, whatever LLVM makes of them: it optimizes nothing, which is most of a compile's time.

tests/codegen and tests/fuzz run what its optimizer makes. So do modules that say `OPTIMIZED = True`, which watch what memory is touched,
and all of them under `--optimize` (`make test-slow`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.compiler.backends.cpu import emit
from tests.conformance.inprocess import object_of


@pytest.fixture(autouse=True, scope="module")
def unoptimized(llmos_home: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """A cache of its own keeps such code from the other tests."""
    if request.config.getoption("--optimize") or getattr(request.module, "OPTIMIZED", False):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMOS_CACHE", f"{os.environ['LLMOS_CACHE']}-unoptimized")
        patch.setattr(emit, "compile_in_child", lambda request: object_of(request[1], request[0], "pic", "default"))
        yield
