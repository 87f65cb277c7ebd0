"""Calibration inputs from files and from memory, and what is refused in a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.calibration.data import as_calibration, calibration_inputs
from llmos.compiler.calibration.text import encoded
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.verify.samples import InputSpec
from llmos.models.causal_lm import INPUTS
from llmos.runtime.errors import UserError


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Table(torch.nn.Module):
    """As an encoder: ids and a mask to numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(8, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids) * attention_mask[..., None]


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    """x and y, float32 [batch, 3], of 1 to 8 rows."""
    example = torch.randn(2, 3), torch.randn(2, 3)
    batch = torch.export.Dim("batch", min=1, max=8)
    return import_torch(Sum().eval(), example, ({0: batch}, {0: batch}), name="m")


@pytest.fixture(scope="module")
def encoder() -> ImportedModel:
    """With a tokenizer of the words a, b and c, and inputs of at most 4 tokens."""
    example = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    dims = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("tokens", min=1, max=4)}
    names = ("input_ids", "attention_mask")
    imported = import_torch(Table().eval(), example, (dims, dict(dims)), input_names=names, name="m")
    tokenizer = Tokenizer(WordLevel({"a": 1, "b": 2, "c": 3, "?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    return replace(imported, assets={"tokenizer.json": tokenizer.to_str().encode()}, metadata={"max_length": 4})


def read(model: ImportedModel, given: Any) -> list[tuple[np.ndarray, ...]]:
    return calibration_inputs(model, CompileOptions(quant="w8a8", calibrate=as_calibration(given)))


def shapes(calls: Sequence[Sequence[np.ndarray]]) -> list[list[tuple[int, ...]]]:
    return [[array.shape for array in call] for call in calls]


def test_texts_are_steps_of_a_language_model(encoder: ImportedModel) -> None:
    """Each a prompt of its own in caches of zeros, its tokens cut to the longest, with the logits of all of them."""
    inputs = [InputSpec(name, "int32", ("n",)) for name in INPUTS]
    inputs += [InputSpec("cache.0", "float32", ("blocks", 2, 64)), InputSpec("cache.1", "bfloat16", ("blocks", 1, 32))]
    model = replace(encoder, metadata={"generation": {"max_length": 20}})
    short, long = encoded(["a c b", "a " * 30], model, inputs, "calibrate")
    assert list(short) == [spec.name for spec in inputs]
    assert short["tokens"].tolist() == [1, 3, 2] and short["positions"].tolist() == short["slots"].tolist() == [0, 1, 2]
    assert short["logit_rows"].tolist() == [0, 1, 2] and short["token_requests"].tolist() == [0, 0, 0]
    assert len(long["tokens"]) == 20 and long["block_tables"].tolist() == [[0, 1]] and long["slots"][-1] == 19
    assert long["cache.0"].shape == (2, 2, 64) and long["cache.1"].dtype == np.uint16 and not long["cache.1"].any()
    with pytest.raises(UserError, match="calibrate has a text of no token"):
        encoded(["  "], model, inputs, "calibrate")


def test_texts_are_encoded_alone_and_cut(encoder: ImportedModel, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a b\n\n  c a b a b a  \n")
    for given in (tmp_path / "t.txt", str(tmp_path / "t.txt"), ["a b", "c a b a b a"]):
        calls = read(encoder, given)
        assert [call[0].tolist() for call in calls] == [[[1, 2]], [[3, 1, 2, 1]]]
        assert all(call[1].dtype == np.int64 and call[1].all() for call in calls)


def test_arrays_are_one_call_or_as_many_as_a_further_axis_counts(model: ImportedModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, shape in enumerate([(5, 3), (7, 5, 3)]):
        arrays = {"y": rng.random(shape), "x": np.ones(shape, np.float32)}
        np.savez(tmp_path / f"{number}.npz", **arrays)
        calls = read(model, tmp_path / f"{number}.npz")
        assert shapes(calls) == [[(5, 3), (5, 3)]] * (1, 7)[number]
        np.testing.assert_array_equal(calls[-1][1], arrays["y"].reshape(-1, 5, 3)[-1].astype(np.float32))
        assert all(array.dtype == np.float32 for call in calls for array in call)


def test_calls_in_memory(model: ImportedModel) -> None:
    x, y = torch.randn(4, 3), np.zeros((4, 3), np.float32)
    assert shapes(read(model, [(x, y), {"y": y, "x": x}])) == [[(4, 3), (4, 3)]] * 2
    assert shapes(read(model, {"x": x, "y": y})) == [[(4, 3), (4, 3)]]


def test_without_data_the_examples_of_the_model_are_taken(model: ImportedModel) -> None:
    assert shapes(read(model, None)) == [[(2, 3), (2, 3)]]
    assert len(read(replace(model, examples=()), None)) == 1


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def text(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at / "none.txt", "none.txt: no such file"),
        (lambda at: text(at / "a.txt", b"\n \n"), "is empty: give at least one text"),
        (lambda at: text(at / "a.txt", b"hello"), "is text, and the model has no tokenizer.json: give a .npz"),
        (lambda at: text(at / "a.txt", b"\xff\xfe\x00"), "is neither text in UTF-8, .npz nor .npy"),
        (lambda at: text(at / "a.npz", b"PK"), "can't be read as arrays"),
        (lambda at: text(at / "a.npy", b""), "can't be read as arrays"),
        (lambda at: saved(at / "a.npz"), "is empty: give at least one text or one set of inputs"),
        (lambda at: saved(at / "a.npz", x=ONES), "has the inputs x where the model has x, y"),
        (lambda at: saved(at / "a.npz", x=ONES, z=ONES), "has the inputs x, z where the model has x, y"),
        (lambda at: saved(at / "a.npz", x=ONES, y=ONES[:, :2]), "y has the shape [2, 2] where the model takes [batch, 3]"),
        (lambda at: saved(at / "a.npz", x=ONES, y=ONES[:1]), "x has the shape [2, 3] where the model takes [batch, 3], batch=1"),
        (lambda at: saved(at / "a.npz", x=ONES[0], y=ONES[0]), "x has the shape [3] where the model takes [batch, 3]"),
        (lambda at: saved(at / "a.npz", x=np.ones((9, 3)), y=np.ones((9, 3))), "batch=9 where the model takes 1 to 8"),
        (lambda at: saved(at / "a.npz", x=np.ones((2, 1, 3)), y=np.ones((3, 1, 3))), "has 2 of x, 3 of y: give as many of each"),
        (lambda at: saved(at / "a.npz", x=ONES, y=ONES.astype("complex64")), "y is complex64 where the model takes float32"),
        (lambda at: saved(at / "a.npz", x=ONES, y=ONES * np.nan), "y has NaN or infinite elements"),
        (lambda at: [(ONES, ONES), (ONES,)], "calibrate of call 1: has 1 arrays where the model has 2 inputs: x, y"),
        (lambda at: [], "calibrate is empty"),
    ],
)
def test_bad_data_is_refused_in_a_line(model: ImportedModel, tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read(model, make(tmp_path))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_one_array_for_several_inputs_is_refused(model: ImportedModel, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ONES)
    with pytest.raises(UserError, match="is one array, and the model has the inputs x, y"):
        read(model, tmp_path / "a.npy")


def test_data_without_a_scheme_is_refused() -> None:
    with pytest.raises(UserError, match="--calibrate is for quantization"):
        CompileOptions(calibrate=Path("a.txt"))
