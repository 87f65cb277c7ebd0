"""Every seeded miscompile on models of 12 layers, each named in under a minute: `make proof`."""

from __future__ import annotations

import pytest

from llmos.compiler.frontend.model import ImportedModel
from tests.proof.bisecting import CONVOLUTIONS, ENCODER, found
from tests.proof.models import convolutions, encoder, fresh, located

NUM_LAYERS = 12


@pytest.fixture(scope="module")
def encoders() -> tuple[ImportedModel, str]:
    imported = encoder(NUM_LAYERS)
    return imported, located(imported.module)


@pytest.fixture(scope="module")
def convolutionals() -> tuple[ImportedModel, str]:
    imported = convolutions(NUM_LAYERS)
    return imported, located(imported.module)


@pytest.mark.parametrize("name", ENCODER)
def test_in_an_encoder(name: str, encoders: tuple[ImportedModel, str], monkeypatch: pytest.MonkeyPatch) -> None:
    found(fresh(*encoders), ENCODER[name], monkeypatch)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_in_a_convolutional_network(name: str, convolutionals: tuple[ImportedModel, str], monkeypatch: pytest.MonkeyPatch) -> None:
    found(fresh(*convolutionals), CONVOLUTIONS[name], monkeypatch)
