"""Causal language models as a step over a paged cache on the fake GPU, against transformers and the CPU's code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import llmos
from llmos.compiler.backends.cuda.llvm import assemble, find_ptxas
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.models.causal_lm import CausalLMOptions, import_model, open_causal_lm
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.device.cuda import CudaDevice, GpuArray
from llmos.runtime.engine.generate import GenerationEngine, GenerationOptions, Limits, ProgramStepModel, SamplingParams
from llmos.runtime.engine.generate.model import STEP_INPUTS
from llmos.runtime.errors import InputError
from llmos.runtime.program import Program
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

    cached = Cached(fake.program(import_model(open_causal_lm(stories()).model, CausalLMOptions("fp32"), name="stories"), ()), 1)
    ids = [1]
    for position in range(24):
        ids.append(int(cached.step((0, position, ids[-1:]))[0].argmax()))
    with torch.no_grad():
        own = tf.AutoModelForCausalLM.from_pretrained(stories()).generate(torch.tensor([[1]]), max_new_tokens=24, do_sample=False)[0]
    assert ids == own.tolist()


class Tiny:
    """A model of the engine's tests, compiled once for the fake GPU and for this machine."""

    def __init__(self, folder: Path) -> None:
        imported = [import_model(model_of("llama"), CausalLMOptions("bf16"), name="model") for _ in range(2)]  # passes change a module
        self.gpu = fake.program(imported[0], ())
        compile_model(imported[1], options=CompileOptions(target="native", repro=None)).save(folder / "model.llmos")
        self.cpu = llmos.load(folder / "model.llmos")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


PROMPTS = [np.random.default_rng(seed).integers(3, 100, 20).tolist() for seed in range(3)]


def generated(program: Program) -> list[list[int]]:
    """Greedy tokens of all prompts at once, in an engine that splits them and shares their blocks."""
    engine = GenerationEngine(ProgramStepModel(program), GenerationOptions(Limits(16, 4, 8), cache_blocks=12))
    try:
        requests = [engine.submit(prompt, SamplingParams(max_tokens=6, temperature=0)) for prompt in PROMPTS]
        found = [[event.token for event in request.result()[0].tokens] for request in requests]
        engine.check_integrity()
    finally:
        engine.close()
    return found


def test_the_engine_generates_the_cpus_tokens(tiny: Tiny) -> None:
    assert generated(tiny.gpu) == generated(tiny.cpu)


def test_a_step_leaves_the_cache_where_it_lies(tiny: Tiny) -> None:
    """Its calls of the driver, in order: inputs up, kernels, the error and the logits down; the caches are in no copy."""
    model = ProgramStepModel(tiny.gpu)
    caches = model.new_caches(1000)
    assert all(isinstance(cache, GpuArray) for cache in caches)
    assert model.free_bytes() == (1 << 30) - fake.driver().fake_cuda_allocated()
    arrays = [np.array([[1]] if name == "block_tables" else [0 if name != "slots" else 16], np.int32) for name in STEP_INPUTS]
    for _ in range(2):
        fake.driver().fake_cuda_reset()
        model([*arrays, *caches])
    made = fake.calls()
    copied = [int(line.split()[1]) for line in made if line.startswith("cuMemcpyAsync")]
    assert copied == [4] * len(STEP_INPUTS) + [4, 100 * 4]  # the inputs, the error word, the logits
    launched = [line.split()[1] for line in made if line.startswith("cuLaunchKernel")]
    assert len(launched) == len(tiny.gpu.manifest.kernels)
    kernels = [at for at, line in enumerate(made) if line.startswith("cuLaunchKernel")]
    first, last = kernels[0], kernels[-1]
    assert sum(line.startswith("cuStreamSynchronize") for line in made) == 3  # for who made the caches, the error word and the logits
    copies = [at for at, line in enumerate(made) if line.startswith("cuMemcpyAsync")]
    assert copies[len(STEP_INPUTS) - 1] < first and last < copies[len(STEP_INPUTS)]
    assert not any(line.startswith(("cuMemcpy", "cuStreamSynchronize")) for line in made[first:last])  # the host waits for no kernel


def test_arrays_of_a_gpu_are_taken_where_they_lie_and_by_no_other(tiny: Tiny) -> None:
    fake.driver().fake_cuda_machine(12080, 2, 9, 0, 1 << 30)
    model, other = ProgramStepModel(tiny.gpu), CudaDevice(1)
    arrays = [np.array([[1]] if name == "block_tables" else [0], np.int32) for name in STEP_INPUTS]
    shape = (4, *model.spec.caches[0].block_shape)
    with pytest.raises(InputError, match=r'input "cache.0": it is neither in CPU memory nor on GPU 0; move it first'):
        model([*arrays, *(other.zeros(shape, "bfloat16") for _ in model.spec.caches)])
    with pytest.raises(InputError, match=r'input "cache.0": it is not in CPU memory'):
        ProgramStepModel(tiny.cpu)([*arrays, *(other.zeros(shape, "bfloat16") for _ in model.spec.caches)])


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
