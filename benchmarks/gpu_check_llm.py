"""Language models in `make gpu-check`: a step over a paged cache against the CPU's code, and the time of a decode."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.compiler.frontend.model import ImportedModel
from llmos.models.causal_lm import CausalLMOptions, import_model
from llmos.runtime.engine.generate import ProgramStepModel
from llmos.runtime.program import Program

LoadModel = Callable[[ImportedModel], Program]

SMALL: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
LARGE: Mapping[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 2816,
    "vocab_size": 32000,
}
TOLERANCE = {"fp32": 4e-5, "bf16": 1e-2, "int8": 2e-2}  # of the largest logit; a key may round to its other neighbor in the cache
STEPS = 20


@dataclass(frozen=True)
class Compared:
    """error: of the GPU's logits beside the CPU's, relative to the largest. same_bits: of a second run, and of prompts in chunks."""

    name: str
    error: float
    tolerance: float
    same_bits: bool


def random_model(sizes: Mapping[str, Any]) -> Any:
    """Return a Llama of random weights, the same each time."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**sizes)).eval().float()


@dataclass
class Steps:
    """A program and its caches; request r has the blocks from 1 + width * r on."""

    program: Program
    num_requests: int = 2
    width: int = 16
    model: ProgramStepModel = field(init=False)
    caches: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.model = ProgramStepModel(self.program)
        self.caches = self.model.new_caches(1 + self.num_requests * self.width)

    def run(self, *parts: tuple[int, int, Sequence[int]]) -> np.ndarray:
        """Compute the logits of all tokens of some (request, first position, tokens)."""
        tables = 1 + np.arange(self.num_requests * self.width, dtype=np.int32).reshape(self.num_requests, self.width)
        requests = np.concatenate([[request] * len(tokens) for request, _, tokens in parts]).astype(np.int32)
        positions = np.concatenate([first + np.arange(len(tokens)) for _, first, tokens in parts]).astype(np.int32)
        slots = (tables[requests, positions // 16] * 16 + positions % 16).astype(np.int32)
        tokens = np.concatenate([tokens for _, _, tokens in parts]).astype(np.int32)
        return self.model([tokens, positions, slots, requests, tables, np.arange(len(tokens), dtype=np.int32), *self.caches]).copy()


def compare(kv: str, load_model: LoadModel) -> Compared:
    """Run prompts and a decode on the GPU and by the CPU's code."""
    prompts = [np.random.default_rng(seed).integers(3, 100, length).tolist() for seed, length in ((0, 61), (1, 18))]
    parts = ((0, 0, prompts[0]), (1, 0, prompts[1])), ((1, 18, [7]), (0, 61, [9]))
    programs = [load_model(import_model(random_model(SMALL), CausalLMOptions(kv), name="small")), _on_cpu(kv)]
    gpu, cpu = ([steps.run(*each) for each in parts] for steps in map(Steps, programs))
    again = Steps(programs[0])
    chunks = [again.run((0, low, prompts[0][low:high])) for low, high in ((0, 1), (1, 40), (40, 61))]
    alone = [np.concatenate(chunks), again.run((1, 0, prompts[1])), again.run((1, 18, [7])), again.run((0, 61, [9]))]
    same = np.array_equal(np.concatenate(gpu), np.concatenate(alone))
    largest = max(float(np.abs(each).max()) for each in cpu)
    error = max(float(np.abs(a - b).max()) for a, b in zip(gpu, cpu, strict=True)) / largest
    return Compared(f"language model, {kv} cache", error if np.isfinite(error) else float("inf"), TOLERANCE[kv], same)


def _on_cpu(kv: str) -> Program:
    options = CompileOptions(target="native", accuracy_report=False, repro=None)
    with tempfile.TemporaryDirectory() as folder:
        compile_model(import_model(random_model(SMALL), CausalLMOptions(kv), name="small"), options=options).save(
            Path(folder) / "cpu.llmos"
        )
        return llmos.load(Path(folder) / "cpu.llmos")


def decode_seconds(load_model: LoadModel) -> Iterator[tuple[str, float, int]]:
    """Yield name, seconds of the fastest step of a decode at batch 1, and bytes of the weights that it reads."""
    program = load_model(import_model(random_model(LARGE), CausalLMOptions("bf16"), name="large"))
    steps = Steps(program, 1)
    times = []
    for position in range(STEPS):
        begin = time.perf_counter()
        steps.run((0, position, [5 + position]))
        times.append(time.perf_counter() - begin)
    embedding = LARGE["vocab_size"] * LARGE["hidden_size"] * 4  # of which a step gathers a row
    yield "decode 0.2 B", min(times), sum(int(weight.num_bytes) for weight in program.manifest.weights) - embedding
