"""Causal language models as a step over a paged cache on the fake GPU, against transformers and the CPU's code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import llmos
from llmos.compiler.backends.cuda.llvm import assemble, find_ptxas
from llmos.models.causal_lm import CausalLMOptions, import_causal_lm, import_model
from llmos.runtime.artifact.reader import Artifact
from tests.models.test_causal_lm import MODELS, Cached, model_of, own_logits

from . import fake


@pytest.fixture(autouse=True)
def machine() -> Iterator[None]:
    """A fresh fake machine for each test."""
    fake.driver().fake_cuda_reset()
    yield
    fake.driver().fake_cuda_reset()


def stories() -> Path:
    folder = MODELS / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set LLMOS_TEST_MODELS to the folder of test models")
    return folder


@pytest.mark.parametrize("family", ["gemma2"])
def test_logits_are_transformers_own(family: str) -> None:
    model = model_of(family)
    cached = Cached(fake.program(import_model(model, CausalLMOptions("fp32"), name="model"), ()))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 100, length).tolist() for length in (1, 7, 40)]
    together = cached.step(*[(request, 0, prompt) for request, prompt in enumerate(prompts)])
    bounds = np.cumsum([0, *map(len, prompts)])
    for low, high, prompt in zip(bounds, bounds[1:], prompts, strict=False):
        own = own_logits(model, prompt)
        assert np.abs(together[low:high] - own).max() <= 1e-4 * np.abs(own).max()
    alone = Cached(cached.program)
    chunks = [alone.step((2, low, prompts[2][low:high])) for low, high in ((0, 1), (1, 30), (30, 40))]
    assert np.array_equal(np.concatenate(chunks), together[bounds[2] :])


@pytest.mark.slow
def test_stories260k_tells_its_story() -> None:
    import torch
    import transformers as tf

    cached = Cached(fake.program(import_causal_lm(stories(), CausalLMOptions("fp32")), ()), 1)
    ids = [1]
    for position in range(24):
        ids.append(int(cached.step((0, position, ids[-1:]))[0].argmax()))
    with torch.no_grad():
        own = tf.AutoModelForCausalLM.from_pretrained(stories()).generate(torch.tensor([[1]]), max_new_tokens=24, do_sample=False)[0]
    assert ids == own.tolist()


@pytest.mark.slow
def test_stories260k_assembles_for_each_chip_without_spills(tmp_path: Path) -> None:
    ptxas = find_ptxas()
    if ptxas is None:
        pytest.skip("no ptxas here: CUDA's, or that of the package nvidia-cuda-nvcc")
    llmos.compile(stories(), target="cuda:sm_80,cuda:sm_90a,cuda:sm_100").save(tmp_path / "stories.llmos")
    artifact = Artifact.open(tmp_path / "stories.llmos")
    assert [code.target for code in artifact.manifest.code] == ["cuda:sm_100", "cuda:sm_90a", "cuda:sm_80"]
    for code in artifact.manifest.code:
        ptx = bytes(artifact.member(code.modules["ptx"])).decode()
        reports = assemble(ptx, code.target.removeprefix("cuda:"), ptxas)[1]
        assert {report.name.partition("_")[2] for report in reports} >= {"paged_attention", "scatter", "contraction", "row_reduction"}
        assert all(report.spilled_bytes == 0 for report in reports)
