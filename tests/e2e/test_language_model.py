"""A language model from its directory to text, as users call it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmos.runtime.llm import LLMOS
from llmos.runtime.llm.compiled import artifact_of
from llmos.runtime.native.binding import num_threads, set_num_threads

from .conftest import call

pytestmark = pytest.mark.slow

# What its authors' own program gives, greedy, behind the first token.
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. "
    "She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\""
)
OPTIONS = ("--target", "native", "--no-accuracy-report")


@pytest.fixture(scope="module")
def directory(models: Path) -> Path:
    return models / "stories260k"


@pytest.fixture(scope="module")
def stories(directory: Path) -> Iterator[LLMOS]:
    with LLMOS(model_path=directory, compile_options=OPTIONS) as model:
        yield model


def test_greedy_text_is_the_authors(stories: LLMOS) -> None:
    assert stories.generate_text([1], temperature=0, max_tokens=150).startswith(STORY)
    prompt = "Once upon a time, there was a little girl named"
    assert (prompt + stories.generate_text(prompt, temperature=0, max_tokens=150)).startswith(STORY)


def test_a_stop_string(stories: LLMOS) -> None:
    (completion,) = stories.generate([1], temperature=0, stop=["red ball", "mom"])
    assert completion.text == STORY.partition("red ball")[0]
    assert completion.end.finish_reason == "stop"


def test_a_seed_gives_the_same_alone_together_and_on_any_threads(stories: LLMOS) -> None:
    prompts = [STORY[: 40 * i + 7] for i in range(5)]

    def text(i: int) -> str:
        return stories.generate_text(prompts[i], temperature=0.9, top_p=0.95, seed=i, max_tokens=60)

    alone = [text(i) for i in range(5)]
    assert len(set(alone)) == 5
    threads = num_threads()
    try:
        for count in (1, 3):
            set_num_threads(count)
            with ThreadPoolExecutor(5) as pool:
                assert list(pool.map(text, range(5))) == alone
    finally:
        set_num_threads(threads)

    async def together() -> list[str]:
        options = {"temperature": 0.9, "top_p": 0.95, "max_tokens": 60}
        return await asyncio.gather(*(stories.agenerate_text(prompts[i], seed=i, **options) for i in range(5)))

    assert asyncio.run(together()) == alone


def test_a_directory_is_compiled_once(directory: Path, stories: LLMOS) -> None:
    artifact = artifact_of(directory, OPTIONS)
    written = artifact.stat().st_mtime_ns
    with LLMOS(directory, compile_options=OPTIONS) as again:
        assert again.generate_text([1], temperature=0, max_tokens=20) == stories.generate_text([1], temperature=0, max_tokens=20)
    assert artifact.stat().st_mtime_ns == written


def test_the_command_streams(directory: Path, stories: LLMOS) -> None:
    artifact = artifact_of(directory, OPTIONS)
    done = call("run", artifact, "--prompt", "Once upon a time", "--temperature", 0, "--stop", "outside")
    assert (done.returncode, done.stdout) == (0, STORY.removeprefix("Once upon a time").partition("outside")[0] + "\n")
    assert re.fullmatch(r"5 tokens of prompt; \d+ generated; first after [\d.]+ s; then [\d.]+ tokens/s\n", done.stderr)
    assert call("run", artifact).stdout.endswith("it is a language model: give it a prompt with --prompt TEXT\n")
    refused = call("chat", artifact)
    assert (refused.returncode, refused.stderr) == (2, "error: 'stories260k' has no chat template: give it a prompt instead\n")


def test_the_process_imports_no_framework(directory: Path, stories: LLMOS) -> None:
    program = (
        "import sys; from llmos import LLMOS\n"
        f"with LLMOS({str(artifact_of(directory, OPTIONS))!r}) as model: model.generate_text('Once', max_tokens=3)\n"
        "print(sorted({'torch', 'transformers', 'torch_mlir', 'onnx', 'jinja2', 'llmos.compiler'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
