"""MiniLM from one artifact: right at every size, in a process without torch, from C, and the same bytes each time."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmos
from llmos.runtime.native.binding import core

from .conftest import Compile, call

SENTENCES = ("That is a happy person", "That is a very happy person", "Today is a sunny day")
SIZES = [(1, 8), (3, 17), (32, 128), (1, 256)]
HEAVY = ("torch", "torch_mlir", "llvmlite", "onnx", "transformers")
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def program(minilm: Path) -> llmos.Program:
    return llmos.load(minilm)


@pytest.fixture(scope="module")
def reference(minilm_source: Path) -> Any:
    """transformers' own model; mean pooling and L2 norm written out once more, as the model's card defines them."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(minilm_source, local_files_only=True).eval()

    def embed(ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            hidden = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.double().numpy()
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]
        return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))

    return embed


def tokens(batch: int, length: int, *, padded: bool) -> Arrays:
    """Random ids; `padded`: each row has its own number of real tokens, the first one all."""
    random = np.random.default_rng(batch * 1000 + length)
    ids, mask = random.integers(1000, 30000, (batch, length)), np.ones((batch, length), np.int64)
    for row in range(1, batch) if padded else ():
        mask[row, random.integers(1, length + 1) :] = 0
    return ids * mask, mask


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize(("batch", "length"), SIZES)
def test_embeddings_are_those_of_transformers(program: llmos.Program, reference: Any, batch: int, length: int, padded: bool) -> None:
    ids, mask = tokens(batch, length, padded=padded)
    found = program(ids, mask)
    assert isinstance(found, np.ndarray) and found.shape == (batch, 384) and found.dtype == np.float32
    assert np.abs(found - reference(ids, mask)).max() < 1e-5


def test_a_row_is_the_same_bits_alone_and_in_a_batch(program: llmos.Program) -> None:
    ids, mask = tokens(32, 32, padded=False)
    together = program(ids, mask)
    for row in (0, 7, 31):
        np.testing.assert_array_equal(program(ids[row : row + 1], mask[row : row + 1])[0], together[row])


def test_the_command_line_gives_the_known_cosines(minilm: Path) -> None:
    done = call("run", minilm, *(part for sentence in SENTENCES for part in ("--text", sentence)))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.split("cosine similarity")[1].splitlines()]
    assert ["[0]", "1.000", "0.943", "0.257"] in rows


def test_a_process_that_runs_an_artifact_holds_neither_torch_nor_the_compiler(minilm: Path) -> None:
    script = (
        "import sys, json, numpy, llmos; x = numpy.ones((2, 5), 'int64'); y = llmos.load(sys.argv[1])(x, x)\n"
        "from llmos.runtime.cli import main\n"
        "try: main(['run', sys.argv[1], '--text', 'a', '--text', 'b'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(json.dumps([y.shape, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(minilm)], capture_output=True, text=True, check=True)
    shape, modules = json.loads(done.stdout.splitlines()[-1])
    assert shape == [2, 384]
    roots = {name.split(".")[0] for name in modules}
    assert not roots & set(HEAVY)
    assert not [name for name in modules if name.startswith(("llmos.compiler", "llmos.passes", "llmos.models"))]


def test_every_variant_of_the_code_gives_the_same_embeddings(minilm: Path) -> None:
    ids, mask = tokens(3, 17, padded=True)
    targets = [code.target for code in llmos.Artifact.open(minilm).manifest.code]
    assert len(targets) == 2  # those whose float32 code differs
    found = []
    for target in targets:
        try:
            found.append(llmos.load(minilm, target=target)(ids, mask))
        except llmos.ArtifactError as error:
            assert "needs" in str(error) or "lacks" in str(error) or "doesn't have" in str(error)
    assert found
    for other in found[1:]:
        assert np.abs(other - found[0]).max() < 1e-6


@pytest.mark.slow
def test_compiled_twice_it_is_the_same_file(minilm: Path, minilm_source: Path, compiled: Compile) -> None:
    again = compiled(minilm_source, "again", "--name", "minilm", "--no-cache")
    assert sha256(again.read_bytes()).digest() == sha256(minilm.read_bytes()).digest()


def test_a_c_program_runs_it(minilm: Path, program: llmos.Program, tmp_path: Path) -> None:
    library = core().path
    source, include = library.parent / "examples" / "run.c", library.parent / "include"
    binary = tmp_path / "run"
    subprocess.run(["cc", str(source), "-I", str(include), str(library), f"-Wl,-rpath,{library.parent}", "-o", str(binary)], check=True)
    done = subprocess.run([str(binary), str(minilm), "3", "17", "3", "17"], capture_output=True, text=True, check=True)
    ones = np.ones((3, 17), np.int64)
    name, values = done.stdout.splitlines()[0].split(": ")
    assert name == "embeddings"
    np.testing.assert_allclose([float(value) for value in values.split()], program(ones, ones)[0][:4], rtol=1e-4)
