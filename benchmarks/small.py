"""Small and recurrent models against onnxruntime: `python benchmarks/small.py`, at one thread and at two.

Files come from $LLMOS_TEST_MODELS (docs/performance.md); the recurrent layers are made here. Each row is a `llmos bench`: engines take
turns in processes of their own, medians, outputs compared. Exits with 1 where outputs differ by more than a row allows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from suite import LLMOS, measure

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Row:
    """A model file (or a recurrent layer: op, hidden size, directions), its sizes, and the largest absolute difference allowed."""

    name: str
    file: str = ""
    layer: tuple[str, int, int] | None = None
    sizes: tuple[str, ...] = ("",)
    tolerance: float = 1e-3
    options: tuple[str, ...] = ()  # of `llmos compile`


ROWS = (
    Row("magika", "magika/model.onnx"),
    Row("silero-vad", "silero-vad/silero_vad_16k_op15.onnx", options=("--dynamic", "sequence=512")),
    Row("sbd-lstm", "sbd-lstm/model.onnx", sizes=("batch=1,length=200", "batch=8,length=200")),
    Row("mnist", "mnist/microsoft-mnist.onnx", tolerance=1e-2),
    Row("basic-pitch", "basic-pitch/nmp.onnx"),
    Row("shufflenet-int8", "shufflenet-int8/shufflenet-v2-12-int8.onnx", tolerance=1.0),
    Row("squeezenet-fp16", "squeezenet-fp16/SqueezeNet_fp16.onnx", tolerance=0.5),
    Row("yunet", "yunet/yunet_n_dynamic.onnx", tolerance=1e-2, options=("--dynamic", "height=320,width=320")),
    Row("super-resolution", "super-resolution/super_resolution.onnx", tolerance=1e-2),
    Row("lstm-64", layer=("LSTM", 64, 1), sizes=("length=100,batch=1",)),
    Row("lstm-128-both", layer=("LSTM", 128, 2), sizes=("length=100,batch=1",)),
    Row("lstm-256", layer=("LSTM", 256, 1), sizes=("length=100,batch=1", "length=100,batch=16")),
    Row("lstm-512", layer=("LSTM", 512, 1), sizes=("length=100,batch=1", "length=100,batch=16")),
    Row("gru-256-both", layer=("GRU", 256, 2), sizes=("length=100,batch=1", "length=100,batch=16")),
)


def recurrent_layer(op: str, hidden: int, directions: int) -> onnx.ModelProto:
    """One layer over x [length, batch, hidden] with weights of our own."""
    generator, gates = np.random.default_rng(0), GATES[op] * hidden
    shapes = {"w": (directions, gates, hidden), "r": (directions, gates, hidden), "b": (directions, 2 * gates)}
    weights = [
        numpy_helper.from_array((generator.standard_normal(shape) / hidden**0.5).astype(np.float32), name) for name, shape in shapes.items()
    ]
    options = {"linear_before_reset": 1} if op == "GRU" else {}
    direction = "forward" if directions == 1 else "bidirectional"
    node = helper.make_node(op, ["x", "w", "r", "b"], ["y"], hidden_size=hidden, direction=direction, **options)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length", "batch", hidden])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["length", directions, "batch", hidden])
    return helper.make_model(helper.make_graph([node], op, [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def source_of(row: Row, models: Path, folder: Path) -> Path | None:
    """The ONNX file of a row; None, with a note, where it isn't installed."""
    if row.layer is not None:
        file = folder / f"{row.name}.onnx"
        onnx.save(recurrent_layer(*row.layer), file)
        return file
    file = models / row.file
    if not file.exists():
        click.echo(f"{row.name}: left out, there is no {file}", err=True)
        return None
    return file


def report(row: Row, artifact: Path, source: Path, threads: int, runs: int) -> bool:
    """Print a row's lines; whether its outputs are right."""
    result = measure(artifact, source, row.sizes, ["onnxruntime"], runs, threads)
    by_engine = {(record["engine"], record["size"]): record for record in result["measurements"]}
    right = True
    for size in dict.fromkeys(size for _, size in by_engine):
        ours, theirs = by_engine["llmos", size], by_engine["onnxruntime", size]
        error = ours["max_error"]
        right &= error is not None and error <= row.tolerance
        times = f"{ours['median_s'] * 1e3:.3f} | {theirs['median_s'] * 1e3:.3f} | {theirs['ratio']:.2f}x"
        click.echo(f"| {row.name} {size} | {threads} | {times} | {error:.0e} |")
    return right


@click.command()
@click.option("--only", multiple=True, help="Rows to run; all by default.")
@click.option("--runs", default=30, show_default=True)
@click.option("--threads", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--compile/--no-compile", "anew", default=True, help="Use the artifacts of the run before.")
@click.option("--measure/--no-measure", "timed", default=True, help="Only compile.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "llmos-benchmarks")
def main(only: tuple[str, ...], runs: int, threads: tuple[int, ...], anew: bool, timed: bool, folder: Path) -> None:
    """Run the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    models = Path(os.environ.get("LLMOS_TEST_MODELS", Path(__file__).resolve().parents[2] / "shared" / "models"))
    right = True
    click.echo("| model, size | threads | llmos ms | onnxruntime ms | llmos is faster by | max error |\n|---|---|---|---|---|---|")
    for row in ROWS:
        source = source_of(row, models, folder) if not only or row.name in only else None
        if source is None:
            continue
        artifact = folder / f"{row.name}.llmos"
        if anew:
            subprocess.run(
                [*LLMOS, "compile", str(source), "-o", str(artifact), "--target", "native", *row.options],
                check=True,
                stderr=subprocess.DEVNULL,
            )
        for count in threads if timed else ():
            right &= report(row, artifact, source, count, runs)
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
