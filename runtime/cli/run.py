"""`llmos run`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmos.runtime.cli.generate import device_option, generate, given, only_with_prompt, sampling_options
from llmos.runtime.cli.tables import table
from llmos.runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from llmos.runtime.artifact.manifest import TensorSpec
    from llmos.runtime.program import Entry, Program

    Array = np.ndarray[Any, Any]


@click.command(name="run")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--input", "inputs", multiple=True, metavar="NAME=FILE.npy", help="An input; once for each.")
@click.option("--text", "texts", multiple=True, help="A text for a model that embeds texts; may be given several times.")
@click.option("--prompt", metavar="TEXT", help="A prompt for a language model, whose text streams; - reads it from standard input.")
@click.option(
    "--output", "outputs", multiple=True, metavar="DIR|NAME=FILE.npy", help="Where to save outputs: all into a folder, or one by one."
)
@click.option("--entry", default="", help="Entry to call; default main, or the first.")
@device_option
@sampling_options
def command(
    artifact: Path,
    inputs: tuple[str, ...],
    texts: tuple[str, ...],
    prompt: str | None,
    outputs: tuple[str, ...],
    entry: str,
    device: str,
    **sampling: Any,
) -> None:
    """Run ARTIFACT once and show its outputs; with no inputs, say what it takes.

    With --prompt, ARTIFACT is a language model or the directory of one, and the options of sampling apply.
    """
    if (bool(inputs), bool(texts), prompt is not None).count(True) > 1:
        raise UserError("--input, --text and --prompt don't go together: give one kind of input")
    params = given(sampling)
    if prompt is not None:
        if outputs or entry:
            raise UserError("--prompt doesn't go together with --output or --entry")
        generate(artifact, prompt, params, device)
        return
    only_with_prompt(params)
    from llmos.runtime.device.select import open_device
    from llmos.runtime.engine.model import embedding_entry
    from llmos.runtime.program import load

    program = load(artifact, device=open_device(device))
    if texts and not entry:
        entry = embedding_entry(program.manifest) or ""
    called = program[entry] if entry else program.default
    targets = _targets(outputs, [spec.name for spec in _shown(called)])
    if texts:
        results = [_embed(program, texts, entry)]
    elif inputs:
        results = _call(called, inputs)
    else:
        click.echo(_wanted(program, called))
        return
    _save(dict(zip((spec.name for spec in _shown(called)), results, strict=False)), targets)


def _shown(entry: Entry) -> list[TensorSpec]:
    """The outputs, then the inputs that a call writes into."""
    return [*entry.outputs, *[spec for spec in entry.inputs if spec.updated]]


def _wanted(program: Program, entry: Entry) -> str:
    from llmos.runtime.engine.generate.spec import TEXT_GENERATION

    rows = [(spec.name, spec.dtype, _shape(spec)) for spec in entry.inputs]
    generates = program.manifest.metadata.get("task") == TEXT_GENERATION
    advice = "it is a language model: give it a prompt with --prompt TEXT" if generates else "give each with --input NAME=FILE.npy"
    return f"entry {entry.spec.name} takes\n{table(rows)}\n{advice}"


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join(map(str, spec.shape)) + "]"


def _call(entry: Entry, inputs: Sequence[str]) -> list[Array]:
    named: dict[str, Array] = {}
    for text in inputs:
        name, path = _pair(text, "--input")
        if name in named:
            raise UserError(f"--input {name} is given twice")
        named[name] = _read(Path(path), name)
    result = entry(**named)
    results = list(result) if isinstance(result, tuple) else [result]
    results += [named[spec.name] for spec in entry.inputs if spec.updated]
    pairs = zip(_shown(entry), results, strict=True)
    click.echo(table([(spec.name, spec.dtype, list(array.shape), _summary(spec, array)) for spec, array in pairs]))
    return results


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UserError(f"{option} {text}: write it as NAME=FILE.npy")
    return name, value


def _read(path: Path, name: str) -> Array:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no .npy file with plain numbers in it"
        raise UserError(f"--input {name}: can't read {path}: {reason}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"--input {name}: {path} holds several arrays: save one with numpy.save")
    return array


def _summary(spec: TensorSpec, array: Array) -> str:
    """Return range, mean and the first values as text."""
    import numpy as np

    from llmos.runtime.artifact.bfloat16 import from_bfloat16

    values = from_bfloat16(array) if spec.dtype == "bfloat16" else array
    if values.size == 0:
        return "empty"
    first = np.array2string(values.reshape(-1)[:6], precision=4, separator=" ", threshold=6).strip("[]")
    if values.dtype.kind not in "iuf":
        return f"first: {first}"
    return f"min {values.min():.6g}  max {values.max():.6g}  mean {values.mean(dtype=np.float64):.6g}  first: {first}"


def _embed(program: Program, texts: Sequence[str], entry: str) -> Array:
    """Print and return embeddings [texts, width], with their cosine similarities."""
    import numpy as np

    from llmos.runtime.engine.model import ProgramModel
    from llmos.runtime.text.tokenizer import TextEncoder

    model = ProgramModel(program, entry=entry)
    encoder = TextEncoder(model)
    tokens = encoder.encode(texts)
    named = [encoder.inputs(ids) for ids in tokens]
    vectors: Array = np.concatenate([model([one[spec.name] for spec in model.signature.inputs])[0] for one in named])
    rows = []
    for index, (text, ids, vector) in enumerate(zip(texts, tokens, vectors, strict=True)):
        first = " ".join(f"{value:.4f}" for value in vector[:4])
        rows.append(
            (f"[{index}]", _short(text), f"{len(ids)} tokens", f"{vector.size} dims", f"norm {np.linalg.norm(vector):.4f}", f"{first} ...")
        )
    click.echo(table(rows, indent=0))
    if len(texts) > 1:
        click.echo("\ncosine similarity\n" + _similarities(vectors))
    return vectors


def _short(text: str) -> str:
    line = " ".join(text.split())
    return f'"{line}"' if len(line) <= 50 else f'"{line[:47]}..."'


def _similarities(vectors: Array) -> str:
    import numpy as np

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    names = [f"[{index}]" for index in range(len(vectors))]
    rows = [(name, *(f"{value:.3f}" for value in row)) for name, row in zip(names, unit @ unit.T, strict=True)]
    return table(rows, header=("", *names), indent=0)


def _targets(outputs: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """Map outputs to the files that they are saved to. Raises UserError before anything runs."""
    targets: dict[str, Path] = {}
    for text in outputs:
        name, equals, path = text.partition("=")
        if not equals:
            targets |= {known: Path(text) / f"{known}.npy" for known in names}
        elif name not in names:
            raise UserError(f"--output {text}: there is no output '{name}', only {', '.join(names)}")
        else:
            targets[name] = Path(path)
    return targets


def _save(results: dict[str, Array], targets: dict[str, Path]) -> None:
    import numpy as np

    for name, path in targets.items():
        temporary = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.save(file, results[name], allow_pickle=False)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"can't write {path}: {error.strerror or error}") from error
        click.echo(f"saved {name} to {path}")
