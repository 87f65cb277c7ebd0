"""`llmos compile`: a model to one artifact."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from llmos.compiler.backends.options import EMBEDDINGS, KV_TYPES, PRECISIONS, CompileOptions
from llmos.compiler.cli.model_options import parsed_options
from llmos.compiler.support.progress import progress_for_terminal
from llmos.runtime.errors import UserError


@click.command("compile")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The artifact to write; default NAME.llmos here.")
@click.option("--backend", default="", help="What makes the code: cpu, cuda, tvm, null, or a package's; by default as the target says.")
@click.option("--target", default="portable", show_default=True, help="portable, native, or names such as x86-64-v4 or cuda:sm_90a.")
@click.option("--precision", default="fp32", show_default=True, help=f"Arithmetic: {' or '.join(PRECISIONS)}.")
@click.option(
    "--quant",
    default="",
    metavar="SCHEME",
    help="Quantize: w8a8 and w8a8:smooth products in 8 bits, auto a plan within --budget, w8a16, fp8 and w4a16:g128 weights alone, "
    "w4a8:g128 weights in 4 bits by activations in 8. Weights are rounded by --calibrate with :gptq behind w8a8, w4a16:gN and w4a8:gN, "
    "and with :awq behind the last two.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Data that quantization is fitted to: a text a line, or arrays (.npz by input name, .npy).",
)
@click.option(
    "--dynamic",
    default="",
    metavar="NAME[=SIZE],...",
    help="Names for the dimensions that stay symbolic, such as batch,tokens. For an ONNX model also its own names with a size to fix "
    "them to, or a range: batch=1:64,height=480.",
)
@click.option(
    "--kv", default="", metavar="TYPE", help=f"What a language model caches keys and values as: {', '.join(KV_TYPES)}; default bf16."
)
@click.option(
    "--embeddings",
    default="",
    metavar="POOLING",
    help=f"Let a causal language model give embeddings of texts too, of their hidden states: {' or '.join(EMBEDDINGS)}.",
)
@click.option("--generate/--no-generate", default=True, help="Let a causal language model generate text; without, it only embeds.")
@click.option(
    "--perplexity",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text whose perplexity, of the model and of the compiled code, a language model's accuracy report is to hold.",
)
@click.option("--bind", multiple=True, metavar="NAME=NUMBER", help="An input of an ONNX model that becomes a constant; repeatable.")
@click.option(
    "--random", default="", metavar="NAME", help="An input to add, the seed of the model's random numbers; without it they are refused."
)
@click.option("--name", default="", help="The model's name in the artifact; default from SOURCE.")
@click.option("--from", "from_stage", default="", metavar="STAGE", help="SOURCE is a saved stage, such as linalg.mlir, fused.mlir or ll.")
@click.option("--stop-after", default="", metavar="STAGE", help="Save that stage beside OUTPUT and stop.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights (safetensors) for a saved stage, instead of those beside it.")
@click.option("--dump-ir", type=click.Path(path_type=Path), help="Folder for a numbered dump after each pass, and for every stage.")
@click.option("--jobs", default=0, help="Processes that compile at the same time; default one per core.")
@click.option("--cache/--no-cache", default=True, help="Keep compiled code for later runs.")
@click.option(
    "--accuracy-report/--no-accuracy-report",
    "--certificate/--no-certificate",  # its earlier name
    "accuracy_report",
    default=True,
    help="Run the compiled code beside the reference, and keep what that shows.",
)
@click.option("--winograd/--no-winograd", default=True, help="Compute 3x3 convolutions by fewer multiplications, where that is faster.")
@click.option(
    "--budget",
    metavar="ERROR",
    help="Largest error of an output, relative to its scale, to let pass; or cosine>=0.999; of logits also kl<=0.01 or top1>=0.98.",
)
@click.option(
    "--tune",
    type=float,
    metavar="SECONDS",
    help="Measure shapes of tiles on this machine for so long, and keep what is best in OUTPUT.lock, which later compiles read.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(
    source: Path,
    output: Path | None,
    backend: str,
    target: str,
    precision: str,
    quant: str,
    calibrate: Path | None,
    dynamic: str,
    kv: str,
    embeddings: str,
    generate: bool,
    perplexity: Path | None,
    bind: tuple[str, ...],
    random: str,
    name: str,
    from_stage: str,
    stop_after: str,
    weights: Path | None,
    dump_ir: Path | None,
    jobs: int,
    cache: bool,
    accuracy_report: bool,
    winograd: bool,
    budget: str | None,
    tune: float | None,
    quiet: bool,
) -> None:
    """Compile SOURCE, a .pt2, .onnx, .mlir or .gguf file, a Hugging Face directory or a saved stage, into one artifact."""
    options = parsed_options(
        dynamic,
        bind,
        budget,
        precision=precision,
        quant=quant,
        calibrate=calibrate,
        backend=backend,
        target=target,
        kv=kv,
        embeddings=embeddings,
        generate=generate,
        perplexity=perplexity,
        random=random,
        name=name,
        from_stage=from_stage,
        stop_after=stop_after,
        dump_ir=dump_ir,
        jobs=jobs,
        cache=cache,
        accuracy_report=accuracy_report,
        winograd=winograd,
        tune=tune,
    )
    _run(source, output or default_output(source, name), options, weights, quiet)


def _run(source: Path, output: Path, options: CompileOptions, weights: Path | None, quiet: bool) -> None:
    from llmos.compiler.driver import ModelWarning, compile_to_file

    with warnings.catch_warnings(record=True) as caught, _without_collection():
        warnings.simplefilter("always", ModelWarning)
        result = compile_to_file(source, output, options, progress_for_terminal(quiet), weights)
    for warning in caught:
        if issubclass(warning.category, ModelWarning):
            click.echo(f"warning: {warning.message}", err=True)
    for path in result.written:
        click.echo(f"{path} ({_size(path.stat().st_size)})")


@contextmanager
def _without_collection() -> Iterator[None]:
    """A compile makes many objects and drops few: looking for garbage among them takes a fifth of the time of an import."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def default_output(source: Path, name: str) -> Path:
    """<name or source>.llmos in the working directory. Raises UserError where neither gives a name."""
    stem = name or source.resolve().name.split(".")[0]
    if not stem:
        raise UserError("give the artifact's name with -o")
    return Path(f"{stem}.llmos")


def _size(num_bytes: int) -> str:
    if num_bytes < 1 << 20:
        return f"{num_bytes / 1024:.1f} KiB"
    return f"{num_bytes / (1 << 20):.1f} MiB"
