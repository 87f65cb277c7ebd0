"""Products of few rows by weights of 4 or 8 bits, which memory limits: `python benchmarks/skinny.py`.

Bytes are those of the weight as it lies in memory: numbers, scales and zero points. There are as many weights of a shape as exceed caches.
The limit is what the machine reads from memory, measured in the same run. Outputs are checked against numpy.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from bandwidth import median_s

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.bench.peak import measure_limits
from llmos.compiler.driver import compile as compile_model
from llmos.models.quantized_checkpoints.linear import QuantizedLinear
from llmos.models.quantized_checkpoints.weight import QuantizedWeight
from llmos.runtime.program import Program

SHAPES = ((4096, 4096), (11008, 4096))  # n, k
FAR_BYTES = 128 << 20  # of all weights of a shape: more than a level-3 cache has
# Of an output relative to the sum of its products' magnitudes, by the scheme: what float32 rounds, or 8 bits.
TOLERANCES = {"w4a16": 1e-5, "w8a16": 1e-2, "fp8": 4e-2, "w4a8": 1e-2, "w8a8": 1e-2}


class Products(torch.nn.Module):
    """x by each of some weights of random numbers, in groups; without a group by floats."""

    def __init__(self, count: int, n: int, k: int, group: int, asymmetric: bool) -> None:
        super().__init__()
        layers = (layer(n, k, group, asymmetric) if group else torch.nn.Linear(k, n, bias=False) for _ in range(count))
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [each(x) for each in self.layers]


def layer(n: int, k: int, group: int, asymmetric: bool) -> QuantizedLinear:
    low = 0 if asymmetric else -8
    kind = torch.uint8 if asymmetric else torch.int8
    numbers = torch.randint(low, low + 16, (n, k), dtype=kind)
    scales = torch.rand(n, k // group) / 100
    zero_points = torch.randint(0, 16, (n, k // group), dtype=kind) if asymmetric else None
    return QuantizedLinear(QuantizedWeight(numbers, scales, zero_points, "uint4" if asymmetric else "int4", group), None, torch.float32)


def compiled(module: torch.nn.Module, k: int, target: str, quant: str) -> Program:
    rows = torch.export.Dim("rows", min=1, max=512)
    options = CompileOptions(target=target, quant=quant, repro=None, cache=False, accuracy_report=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.llmos"
        compile_model(module.eval(), (torch.randn(2, k),), dynamic_shapes=({0: rows},), options=options).save(path)
        return llmos.load(path)


def check(module: Products, x: np.ndarray, outputs: list[np.ndarray], tolerance: float) -> None:
    """Raises ClickException for the product by the first weight where it isn't numpy's."""
    weight = module.layers[0].weight.detach().numpy()
    off = np.abs(outputs[0] - x @ weight.T).max() / (np.abs(x) @ np.abs(weight).T).max()
    if not off <= tolerance:
        raise click.ClickException(f"off by {off:.1e}")


@click.command()
@click.option("--scheme", "schemes", multiple=True, type=click.Choice(list(TOLERANCES)), default=tuple(TOLERANCES), show_default=True)
@click.option("--rows", multiple=True, default=(1, 8), show_default=True)
@click.option("--group", default=128, show_default=True, help="Of 4 bits.")
@click.option("--asymmetric/--symmetric", default=True, show_default=True)
@click.option("--target", default="native", show_default=True)
@click.option("--runs", default=20, show_default=True)
@click.option("--threads", default=2, show_default=True, help="That read; products take as many as the machine has.")
def main(schemes: tuple[str, ...], rows: tuple[int, ...], group: int, asymmetric: bool, target: str, runs: int, threads: int) -> None:
    """Print the time of a product, the share of the bandwidth at which it reads its weight, and its operations."""
    bandwidth = measure_limits(threads).bytes_per_s
    click.echo(f"{threads} threads read {bandwidth / 1e9:.1f} GB/s")
    click.echo("| scheme | n x k | rows | us | GB/s | of limit | GOP/s |\n|---|---|---|---|---|---|---|")
    for scheme in schemes:
        is_grouped = scheme.startswith("w4")
        for n, k in SHAPES:
            num_bytes = n * k // 2 + n * (k // group) * (5 if asymmetric else 4) if is_grouped else n * k
            module = Products(-(-FAR_BYTES // num_bytes), n, k, group if is_grouped else 0, asymmetric)
            program = compiled(module, k, target, "" if scheme == "w4a16" else scheme)
            for count in rows:
                x = np.random.default_rng(0).standard_normal((count, k), np.float32)
                check(module, x, [np.asarray(each) for each in program(x)], TOLERANCES[scheme])
                seconds = median_s(partial(program, x), runs) / len(module.layers)
                speed, work = num_bytes / seconds, 2 * count * n * k / seconds
                line = f"{seconds * 1e6:.0f} | {speed / 1e9:.1f} | {speed / bandwidth:.0%} | {work / 1e9:.0f}"
                click.echo(f"| {scheme} | {n} x {k} | {count} | {line} |")


if __name__ == "__main__":
    main()
