"""`llmos serve` on a compiled language model gives what the model gives in process."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import openai
import pytest
import torch
import transformers as tf

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.models.causal_lm import CausalLMOptions, import_model
from llmos.runtime.llm import LLMOS

from ..llm.conftest import CONFIG, TEMPLATE, _tokenizer  # noqa: TID252
from ..server.harness import running  # noqa: TID252
from ..server.test_artifacts import COMMAND  # noqa: TID252

pytestmark = pytest.mark.slow


def artifact(path: Path) -> Path:
    """Compile a small Llama with a tokenizer and a chat template."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    config = tf.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=256,
    )
    assets = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": CONFIG, "chat_template.jinja": TEMPLATE}
    imported = import_model(tf.AutoModelForCausalLM.from_config(config).eval(), CausalLMOptions(), name="small", assets=assets)
    compile_model(imported, options=CompileOptions(target="native", repro=None, accuracy_report=False)).save(path)
    return path


def test_a_compiled_language_model(tmp_path: Path) -> None:
    path = artifact(tmp_path / "small.llmos")
    given = {"temperature": 0.8, "seed": 5, "max_tokens": 30}
    with LLMOS(path) as model:
        expected = model.chat([{"role": "user", "content": "hello"}], **given)
    options = ["--cache-mib", "1", "--max-running", "4", "--max-step-tokens", "9", "--generation-timeout-s", "30"]
    with running([*COMMAND, f"tiny={path}", *options]) as server:
        with openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="none", max_retries=0) as client:
            (card,) = client.models.list()
            assert (card.id, card.model_dump()["max_model_len"]) == ("tiny", 256)
            answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello"}], **given)
            assert answer.choices[0].message.content == expected
            with pytest.raises(openai.BadRequestError, match="the context is 256"):
                client.completions.create(model="tiny", prompt=[1] * 256)
        assert server.stop() == 0


def test_a_language_model_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = artifact(tmp_path / "small.llmos")
    given = {"temperature": 0.8, "seed": 5, "max_tokens": 30}
    with LLMOS(path) as model:
        expected = model.chat([{"role": "user", "content": "hello"}], **given)
    options = ["--cache-mib", "1", "--max-running", "4", "--max-step-tokens", "9", "--resource-policy", "isolated"]
    with running([*COMMAND, f"tiny={path}", *options]) as server:
        path.unlink()
        with openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="none", max_retries=0) as client:

            def answer() -> str | None:
                done = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello"}], **given)
                return done.choices[0].message.content

            assert answer() == expected
            (pid,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()[:1]
            os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(openai.InternalServerError):  # the first call finds its state gone
                assert answer() == expected
            assert answer() == expected
        assert server.stop() == 0
