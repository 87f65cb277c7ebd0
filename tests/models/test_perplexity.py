"""The perplexity of a language model in its accuracy report: that of transformers, in `inspect` and again in `verify`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import pytest
import torch
import transformers as tf
from click.testing import CliRunner

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.artifact.perplexity import MAX_TOKENS, WINDOW
from llmos.runtime.cli.inspect import command as inspect
from llmos.runtime.cli.verify import command as verify
from llmos.runtime.errors import UserError

from .test_causal_lm import MODELS


def shown(command: click.Command, *arguments: str) -> str:
    found = CliRunner().invoke(command, arguments)
    assert found.exit_code == 0, found.output
    return found.output


def own_perplexity(folder: Path, text: str) -> float:
    """As transformers computes it, window by window."""
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(tf.AutoTokenizer.from_pretrained(folder)(text).input_ids[:MAX_TOKENS])
    windows = ids.split(WINDOW)
    with torch.no_grad():
        total = sum(float(model(window[None], labels=window[None]).loss) * (len(window) - 1) for window in windows)
    return math.exp(total / (len(ids) - len(windows)))


@pytest.mark.slow
def test_stories260k_has_the_perplexity_that_transformers_finds(tmp_path: Path) -> None:
    folder, text = MODELS / "stories260k", MODELS / "text" / "tinyshakespeare.txt"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set LLMOS_TEST_MODELS to the folder of test models")
    path = str(tmp_path / "stories.llmos")
    options = CompileOptions(target="native", kv="fp32", perplexity=text, repro=None)
    compile_model(folder, options=options).save(Path(path))
    wanted = own_perplexity(folder, text.read_text())
    assert f"perplexity {wanted:.4g} on 2,048 tokens ({wanted:.4g} for the reference)" in shown(inspect, path)
    found = json.loads(shown(verify, path, "--json"))["perplexity"]
    assert found["tokens"] == MAX_TOKENS
    assert found["perplexity"] == pytest.approx(wanted, rel=2e-5)
    assert found["reference"] == pytest.approx(wanted, rel=2e-5)


def test_what_has_no_perplexity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        CompileOptions(perplexity=tmp_path / "text")
    (tmp_path / "text").write_text("Once")
    with pytest.raises(UserError, match="part of the accuracy report"):
        CompileOptions(perplexity=tmp_path / "text", accuracy_report=False)
    options = CompileOptions(perplexity=tmp_path / "text", target="native", repro=None)
    with pytest.raises(UserError, match="language models"):
        compile_model(torch.nn.Linear(2, 2), (torch.zeros(1, 2),), options=options)
