"""A language model that embeds too: in process, both at once, and served, from one artifact of one set of weights."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
import transformers as tf

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.llm import LLMOS

from ..llm.conftest import CONFIG, TEMPLATE, _tokenizer  # noqa: TID252
from ..server.harness import running  # noqa: TID252
from ..server.test_artifacts import COMMAND  # noqa: TID252

pytestmark = pytest.mark.slow

TEXTS = ["hello world", "the quick brown fox", "a", "Paris is the capital of France. " * 6]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a tokenizer and a chat template, compiled from its directory."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    config = tf.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=256,
    )
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "small")
    files = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": CONFIG, "chat_template.jinja": TEMPLATE}
    for name, content in files.items():
        (folder / "small" / name).write_bytes(content)
    compile_model(folder / "small", options=CompileOptions(target="native", repro=None, embeddings="last")).save(folder / "small.llmos")
    return folder / "small.llmos"


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[LLMOS]:
    with LLMOS(path) as made:
        yield made


def test_embeddings_are_transformers_own(path: Path, model: LLMOS) -> None:
    own = tf.AutoModelForCausalLM.from_pretrained(path.with_suffix("")).eval()
    for text in TEXTS:
        ids = torch.tensor([_tokenizer().encode(text).ids])
        with torch.no_grad():
            hidden = own(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        assert np.abs(model.embed(text) - torch.nn.functional.normalize(hidden, dim=-1).numpy()).max() < 1e-5


def test_text_and_embeddings_at_once_are_those_of_each_alone(model: LLMOS) -> None:
    """Two engines call one program from their own threads."""

    def generate(seed: int) -> str:
        return model.generate_text(TEXTS[seed % 4], seed=seed, temperature=0.9, max_tokens=40)

    texts, vectors = [generate(seed) for seed in range(16)], [model.embed(text) for text in TEXTS]
    with ThreadPoolExecutor(16) as pool:
        written = [pool.submit(generate, seed) for seed in range(16)]
        embedded = [pool.submit(model.embed, text) for text in TEXTS * 16]
        assert [each.result() for each in written] == texts
        assert all(np.array_equal(found.result(), own) for found, own in zip(embedded, vectors * 16, strict=True))
    assert np.array_equal(model.embed(TEXTS), vectors)


def test_neither_torch_nor_transformers_is_loaded(path: Path) -> None:
    program = f"""
import sys
from llmos.runtime.llm import LLMOS
with LLMOS({str(path)!r}) as model:
    assert model.generate_text("hello", max_tokens=4) and model.embed(["hello", "a"]).shape == (2, 32)
print(sorted({{"torch", "transformers", "torch_mlir", "llvmlite"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_command_line_embeds_and_generates(path: Path) -> None:
    run = [sys.executable, "-m", "llmos.runtime.cli", "run", str(path)]
    done = subprocess.run([*run, "--text", "hello", "--text", "a"], capture_output=True, text=True, check=False)
    assert "32 dims" in done.stdout and "cosine similarity" in done.stdout, done.stderr
    assert subprocess.run([*run, "--prompt", "hello", "--max-tokens", "4"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("options", [(), ("--resource-policy", "isolated")], ids=["threads", "isolated"])
def test_a_server_gives_what_the_model_gives_in_process(path: Path, model: LLMOS, options: tuple[str, ...]) -> None:
    given = {"temperature": 0.8, "max_tokens": 30}
    chat = [{"role": "user", "content": "hello"}]
    answers, vectors = [model.chat(chat, seed=seed, **given) for seed in range(8)], [model.embed(text) for text in TEXTS]
    with (
        running([*COMMAND, f"tiny={path}", "--cache-mib", "1", *options]) as server,
        openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="none", max_retries=0) as client,
    ):

        def answer(seed: int) -> str | None:
            done = client.chat.completions.create(model="tiny", messages=chat, seed=seed, **given)  # type: ignore[call-overload]
            found: str | None = done.choices[0].message.content
            return found

        def embed(text: str) -> np.ndarray[Any, Any]:
            return np.array(client.embeddings.create(model="tiny", input=text).data[0].embedding, np.float32)

        with ThreadPoolExecutor(16) as pool:
            written, embedded = pool.map(answer, range(8)), pool.map(embed, TEXTS * 8)
            assert list(written) == answers
            assert all(np.array_equal(found, own) for found, own in zip(embedded, vectors * 8, strict=True))
        if options:
            _check_end_of_process(server.process.pid, lambda: answer(0) == answers[0], lambda: np.array_equal(embed(TEXTS[0]), vectors[0]))
        assert server.stop() == 0


def _check_end_of_process(server: int, generates: Callable[[], bool], embeds: Callable[[], bool]) -> None:
    """A process that ends beside a call for embeddings takes the caches along: the next generation is told, and no token is wrong."""
    (pid,) = Path(f"/proc/{server}/task/{server}/children").read_text().split()[:1]
    os.kill(int(pid), signal.SIGKILL)
    with contextlib.suppress(openai.InternalServerError):
        assert embeds()
    assert embeds()
    with pytest.raises(openai.InternalServerError):
        generates()
    assert generates() and embeds()


def test_a_server_of_one_entry_embeds_alone(path: Path, model: LLMOS) -> None:
    with running([*COMMAND, f"tiny={path}", "--entry", "embed"]) as server:
        answer = server.request("POST", "/v1/embeddings", {"model": "tiny", "input": TEXTS[0]})
        assert np.array_equal(np.array(answer.json()["data"][0]["embedding"], np.float32), model.embed(TEXTS[0]))
        assert server.request("POST", "/v1/completions", {"model": "tiny", "prompt": "a"}).status == 400
        assert server.stop() == 0
