"""The command line of `llmos bench`, and its table."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.bench.inputs import make_inputs, parse_files, parse_shape, shape_text
from llmos.compiler.bench.measure import Engine, Measurement, measure
from llmos.compiler.bench.peak import Limits, measure_limits
from llmos.compiler.bench.peers import PEERS
from llmos.compiler.bench.profile import CallProfile, profile_call, profile_lines
from llmos.compiler.bench.work import arithmetic_s, total_flops
from llmos.compiler.driver import compile_to_file
from llmos.compiler.support.progress import progress_for_terminal
from llmos.runtime.artifact.manifest import Manifest
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.cli.generate import device_option
from llmos.runtime.device.select import open_device
from llmos.runtime.errors import UserError

_COLUMNS = ("size", "engine", "median ms", "p95", "p99", "speedup", "GFLOP/s", "of peak", "max error")


@click.command("bench")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--against", default="eager,onnxruntime", show_default=True, help=f"Of {', '.join(p for p in PEERS if p != 'llmos')}.")
@click.option("--source", type=click.Path(path_type=Path), help="What the artifact was compiled from, for the other engines.")
@click.option(
    "--input-shape", "shapes", multiple=True, metavar="NAME=N,...", help="Sizes to measure, such as batch=1,tokens=128; repeatable."
)
@click.option("--input", "files", multiple=True, metavar="NAME=FILE.npy", help="Values of an input; the others are made up.")
@click.option("--threads", default=0, help="Threads of every engine; default one per core.")
@click.option("--runs", default=30, show_default=True, help="Runs of each engine at each size, 20 or more.")
@click.option("--peak/--no-peak", default=True, help="Measure the machine's peak and print percentages of it.")
@click.option("--profile", is_flag=True, help="Where the time goes: each dispatch, beside what this machine can do at most.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    model: Path, against: str, source: Path | None, shapes: Sequence[str], files: Sequence[str],
    threads: int, runs: int, peak: bool, profile: bool, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Measure MODEL, an artifact or something to compile, against other engines in one run on this machine.

    `llmos bench serve URL` measures a server.
    """
    peers = _peers(against)
    num_threads = threads or len(os.sched_getaffinity(0))
    if runs < 20:
        raise UserError(f"--runs {runs}: percentiles need 20 or more")
    if profile and device != "cpu":
        raise UserError("--profile compares with what this machine's processor can do: it doesn't go together with --device")
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as name:
        folder = Path(name)
        artifact = _artifact(model, folder, device)
        origin = source or (None if model.suffix == ".llmos" else model)
        if peers and origin is None:
            raise UserError("the other engines need what the artifact was compiled from: give it with --source, or --against ''")
        manifest = Artifact.open(artifact).manifest
        sizes = [parse_shape(text, manifest) for text in shapes or ("",)]
        inputs = [make_inputs(manifest.entries[0], size, parse_files(files)) for size in sizes]
        limits = measure_limits(num_threads) if device == "cpu" and (peak or profile) else None
        with contextlib.ExitStack() as stack:
            engines = [stack.enter_context(Engine("llmos", artifact, num_threads, folder, device))]
            engines += [stack.enter_context(Engine(peer, origin, num_threads, folder)) for peer in peers if origin]
            records = [
                record
                for size, arrays in zip(sizes, inputs, strict=True)
                for record in describe(measure(engines, arrays, runs, folder), manifest, size, limits)
            ]
        profiles = (
            [profile_call(artifact, *pair, num_threads, runs, limits) for pair in zip(inputs, sizes, strict=True)]
            if limits and profile
            else []
        )
    _show(records, limits, num_threads, profiles, as_json)


def _peers(against: str) -> list[str]:
    peers = [part.strip() for part in against.split(",") if part.strip()]
    for peer in peers:
        if peer not in PEERS or peer == "llmos":
            raise UserError(f"no engine is called {peer!r}; there are {', '.join(name for name in PEERS if name != 'llmos')}")
    return peers


def _artifact(model: Path, folder: Path, device: str) -> Path:
    if not model.exists():
        raise UserError(f"no such file or directory: {model}")
    if model.suffix == ".llmos":
        return model
    out = folder / "model.llmos"
    compile_to_file(model, out, CompileOptions(target=open_device(device).target), progress_for_terminal())
    return out


def describe(measured: Sequence[Measurement], manifest: Manifest, size: Mapping[str, int], limits: Limits | None) -> list[dict[str, Any]]:
    """One record for each engine; ratios are to llmos, which comes first, errors to eager or else the first peer."""
    own = measured[0]
    reference = next((m for m in measured if m.peer == "eager"), measured[1] if len(measured) > 1 else None)
    flops = total_flops(manifest, size)
    least_s = arithmetic_s(manifest, size, limits) if limits else None
    return [
        {
            "size": shape_text(size),
            "engine": m.peer,
            "num_runs": len(m.seconds),
            "median_s": m.median,
            "p95_s": m.percentile(95),
            "p99_s": m.percentile(99),
            "ratio": m.median / own.median,
            "flops_per_s": flops / m.median if flops else None,
            "of_peak": least_s / m.median if least_s else None,
            "max_error": m.error_against(reference.outputs) if reference and m is not reference else None,
            "reference": reference.peer if reference else None,
        }
        for m in measured
    ]


def _show(
    records: Sequence[Mapping[str, Any]], limits: Limits | None, num_threads: int, profiles: Sequence[CallProfile], as_json: bool
) -> None:
    if as_json:
        rates: dict[str, float | None] = {"peak_flops_per_s": None}
        if limits:
            rates = {
                "peak_flops_per_s": limits.flops_per_s,
                "peak_int8_ops_per_s": limits.int8_ops_per_s or None,
                "peak_bf16_ops_per_s": limits.bf16_ops_per_s or None,
                "memory_bytes_per_s": limits.bytes_per_s,
            }
        found = {"profiles": [profile.record() for profile in profiles]} if profiles else {}
        click.echo(json.dumps({"num_threads": num_threads, **rates, "measurements": records, **found}, indent=1))
        return
    rows = [_COLUMNS, *(_row(record) for record in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        click.echo(
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    if limits:
        peaks = ((limits.flops_per_s, "GFLOP/s fp32"), (limits.bf16_ops_per_s, "GFLOP/s bf16"), (limits.int8_ops_per_s, "GOP/s int8"))
        known = [f"{rate * 1e-9:.0f} {unit}" for rate, unit in peaks if rate]
        rates_text = ", ".join([*known, f"{limits.bytes_per_s * 1e-9:.0f} GB/s from memory"])
        click.echo(f"this machine at most: {rates_text}, on {num_threads} threads")
    for profile in profiles:
        click.echo("\n" + "\n".join(profile_lines(profile)))


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    def cell(key: str, text: str, scale: float = 1.0) -> str:
        return "" if record[key] is None else text.format(record[key] * scale)

    faster = "" if record["engine"] == "llmos" else f"{record['ratio']:.2f}x"
    return (
        record["size"],
        record["engine"],
        cell("median_s", "{:.3f}", 1e3),
        cell("p95_s", "{:.3f}", 1e3),
        cell("p99_s", "{:.3f}", 1e3),
        faster,
        cell("flops_per_s", "{:.0f}", 1e-9),
        cell("of_peak", "{:.0%}"),
        cell("max_error", "{:.1e}"),
    )
