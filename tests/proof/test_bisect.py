"""Bisection on a small model: a clean compile, and some of the seeded miscompiles (all of them: `make proof`)."""

from __future__ import annotations

import pytest

from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.verify.bisect import CLEAN, bisect
from tests.proof.bisecting import CACHE, ENCODER, OPTIONS, found
from tests.proof.models import encoder, fresh, located

SOME = ("dropped epilogue", "stale buffer", "lost tail of rows", "wrong packing order")


@pytest.fixture(scope="module")
def encoders() -> tuple[ImportedModel, str]:
    imported = encoder(2)
    return imported, located(imported.module)


def test_a_right_compile_is_clean(encoders: tuple[ImportedModel, str]) -> None:
    verdict = bisect(fresh(*encoders), OPTIONS, lambda _: None, CACHE)
    assert verdict.kind == CLEAN and verdict.error < 1e-5


@pytest.mark.parametrize("name", SOME)
def test_a_miscompile_is_named(name: str, encoders: tuple[ImportedModel, str], monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = found(fresh(*encoders), ENCODER[name], monkeypatch)
    assert verdict.error > 1e-4 or verdict.detail


def test_a_wrong_front_end_is_named(encoders: tuple[ImportedModel, str]) -> None:
    imported = fresh(*encoders)
    assert imported.reference is not None
    reference = imported.reference
    object.__setattr__(imported, "reference", lambda inputs: [2 * array for array in reference(inputs)])
    assert bisect(imported, OPTIONS, lambda _: None, CACHE).kind == "front end"
