"""run, inspect and trust on real artifacts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.runtime.artifact.manifest import RowSpec
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.artifact.signature import new_key

from .artifacts import affine_artifact
from .conftest import Artifacts

Llmos = Callable[..., Any]


def test_run_on_an_input(llmos: Llmos, artifacts: Artifacts, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    done = llmos("run", artifacts.affine, "--input", "x=x.npy", "--output", "y=out.npy")
    assert (done.code, done.err) == (0, "")
    assert "float32  [2, 3]  min 1  max 11  mean 6" in done.out
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), [[1, 3, 5], [7, 9, 11]])
    assert llmos("run", artifacts.affine, "--input", "x=x.npy", "--output", "folder").code == 0
    assert (tmp_path / "folder" / "y.npy").exists()


def test_run_without_inputs_says_what_it_takes(llmos: Llmos, artifacts: Artifacts) -> None:
    done = llmos("run", artifacts.affine)
    assert done.code == 0
    assert "x  float32  [batch, 3]" in done.out


def test_run_on_texts(llmos: Llmos, artifacts: Artifacts, tmp_path: Path) -> None:
    done = llmos(
        "run", artifacts.counts, "--text", "the cat sat", "--text", "the dog sat", "--text", "happy day", "--output", "embeddings=e.npy"
    )
    assert (done.code, done.err) == (0, "")
    # Of five tokens each, special ones included, four are shared; then two of five and four.
    assert "[0]  1.000  0.800  0.447" in done.out
    vectors = np.load(tmp_path / "e.npy")
    np.testing.assert_allclose(vectors @ vectors.T, [[1, 0.8, 0.44721], [0.8, 1, 0.44721], [0.44721, 0.44721, 1]], atol=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.llmos"], "missing.llmos: can't open it"),
        (["AFFINE", "--input", "x"], "write it as NAME=FILE.npy"),
        (["AFFINE", "--input", "x=missing.npy"], "can't read missing.npy: No such file"),
        (["AFFINE", "--input", "x=junk.npy"], "no .npy file"),
        (["AFFINE", "--input", "x=pickle.npy"], "no .npy file"),
        (["AFFINE", "--input", "z=good.npy"], 'no input "z"'),
        (["AFFINE", "--input", "x=good.npy", "--input", "x=good.npy"], "given twice"),
        (["AFFINE", "--input", "x=wrong_dtype.npy"], "float64"),
        (["AFFINE", "--input", "x=good.npy", "--output", "q=a.npy"], "there is no output 'q', only y"),
        (["AFFINE", "--input", "x=good.npy", "--text", "a"], "don't go together"),
        (["AFFINE", "--entry", "other"], "no entry 'other'"),
        (["AFFINE", "--text", "a"], "no sentence encoder"),
        (["AFFINE", "--color"], "No such option"),
        (["junk.npy"], "junk.npy: "),
    ],
)
def test_wrong_use_of_run_is_one_line_and_exit_code_2(
    llmos: Llmos, artifacts: Artifacts, tmp_path: Path, args: list[str], message: str
) -> None:
    (tmp_path / "junk.npy").write_bytes(b"junk" * 100)
    np.save(tmp_path / "good.npy", np.zeros((1, 3), np.float32))
    np.save(tmp_path / "wrong_dtype.npy", np.zeros((1, 3), np.float64))
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    done = llmos("run", *(artifacts.affine if arg == "AFFINE" else arg for arg in args))
    assert done.code == 2, done
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_an_output_that_cant_be_written_leaves_nothing(llmos: Llmos, artifacts: Artifacts, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3), np.float32))
    (tmp_path / "taken").mkdir()
    done = llmos("run", artifacts.affine, "--input", "x=x.npy", "--output", "y=taken")
    assert (done.code, "can't write taken" in done.err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken", "x.npy"]


def test_an_index_that_data_breaks_is_an_error_of_the_call(llmos: Llmos, artifacts: Artifacts, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.full((1, 2), 99))
    np.save(tmp_path / "mask.npy", np.ones((1, 2), np.int64))
    done = llmos("run", artifacts.counts, "--input", "input_ids=ids.npy", "--input", "attention_mask=mask.npy")
    assert done.code != 0
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err


def test_inspect(llmos: Llmos, artifacts: Artifacts) -> None:
    done = llmos("inspect", artifacts.affine, "--host", "--kernels")
    assert (done.code, done.err) == (0, "")
    for line in (
        "input   x  float32  [batch, 3]",
        "batch  1 to 64",
        "needs teleport",
        "->  baseline   chosen",
        "scale  elementwise  num_ops=2",
        "(trusted)",
    ):
        assert line in done.out
    assert "elementwise  1" in llmos("inspect", artifacts.affine).out


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (RowSpec("batch"), "requests: joined along batch: row i of every output depends on row i of the inputs alone"),
        (RowSpec(reason="output 'y': softmax reduces over batch"), "requests: run one by one: output 'y': softmax reduces over batch"),
        (None, "requests: run one by one: an older compiler made this"),
    ],
)
def test_inspect_says_whether_requests_are_joined(llmos: Llmos, tmp_path: Path, rows: RowSpec | None, line: str) -> None:
    path = affine_artifact(tmp_path / "one.llmos", rows=rows)
    assert line in llmos("inspect", path).out
    assert Artifact.open(path).manifest.entries[0].rows == rows


def test_inspect_as_json(llmos: Llmos, artifacts: Artifacts) -> None:
    found = json.loads(llmos("inspect", artifacts.counts, "--json", "--host").out)
    assert found["name"] == "counts"
    assert found["entries"][0]["outputs"] == [{"name": "embeddings", "dtype": "float32", "shape": ["batch", 40]}]
    assert found["metadata"]["max_length"] == 16
    assert [variant["chosen"] for variant in found["host"]["variants"]] == [False, True]
    assert found["code"][0]["num_bytes"] > 0
    assert found["signature"]["trusted"] is True


def test_trust(llmos: Llmos, artifacts: Artifacts, tmp_path: Path) -> None:
    key = new_key()
    foreign = affine_artifact(tmp_path / "foreign.llmos", key)
    refused = llmos("run", foreign)
    assert refused.code == 2
    assert f"llmos trust add {key.public_hex}" in refused.err
    assert "not trusted here" in llmos("inspect", foreign).out
    assert llmos("trust", "add", key.public_hex, "--name", "partner").code == 0
    assert f"{key.public_hex}  partner" in llmos("trust", "list").out
    assert llmos("run", foreign).code == 0
    assert llmos("trust", "remove", "partner").code == 0
    assert llmos("run", foreign).code == 2
    assert "no trusted key is called 'partner'" in llmos("trust", "remove", "partner").err
