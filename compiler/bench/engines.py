"""Engines and how they are loaded, each in a process of its own (compiler/bench/peers.py has their names)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmos.compiler.driver.sources import encoder_module
from llmos.compiler.support.environment import read_environment
from llmos.runtime.errors import UserError

Runner = Callable[[Sequence[np.ndarray]], list[np.ndarray]]

OPSET = 18


def load_llmos(artifact: Path, num_threads: int, device: str = "cpu") -> Runner:
    """Our own: `artifact` is the compiled file."""
    from llmos.runtime.device.select import open_device
    from llmos.runtime.native.binding import set_num_threads
    from llmos.runtime.program import load

    set_num_threads(num_threads)
    program = load(artifact, device=open_device(device))

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs = program(*inputs)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]

    return run


def load_eager(source: Path, num_threads: int) -> Runner:
    """The reference that the front end gives: torch, op by op."""
    import torch

    torch.set_num_threads(num_threads)
    if source.suffix == ".onnx":
        raise UserError("an ONNX file has no eager form: compare it with --against onnxruntime")
    return _torch_runner(torch_module(source))


def load_inductor(source: Path, num_threads: int) -> Runner:
    """torch.compile, one graph for all sizes."""
    import torch

    torch.set_num_threads(num_threads)
    if source.suffix == ".onnx":
        raise UserError("torch.compile takes no ONNX file: compare it with --against onnxruntime")
    return _torch_runner(torch.compile(torch_module(source), dynamic=True))


def load_onnxruntime(source: Path, num_threads: int) -> Runner:
    """onnxruntime's CPU provider with all its graph optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(onnx_file(source)), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(session.run(None, dict(zip(names, inputs, strict=True))))

    return run


def load_openvino(source: Path, num_threads: int, precision: str = "f32") -> Runner:
    """OpenVINO tuned for latency. `precision`: f32 or bf16, of its arithmetic."""
    import openvino

    return openvino_runner(openvino.Core().read_model(str(onnx_file(source))), num_threads, precision)


def openvino_runner(model: Any, num_threads: int, precision: str) -> Runner:
    """Compile an OpenVINO model for the CPU, tuned for latency."""
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(model, "CPU", hints)

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(value) for value in compiled(list(inputs)).values()]

    return run


def torch_module(source: Path) -> Callable[..., Any]:
    """The module of a .pt2 file or a Hugging Face directory."""
    if source.suffix == ".pt2":
        import torch

        module: Callable[..., Any] = torch.export.load(source).module()
        return module
    if source.is_dir():
        encoder: Callable[..., Any] = encoder_module(source)[0]
        return encoder
    raise UserError(f"{source}: the peers take a .pt2 or .onnx file or a Hugging Face directory; give it with --source")


def onnx_file(source: Path) -> Path:
    """The source as ONNX: itself, or exported once and kept in the compile cache."""
    if source.suffix == ".onnx":
        return source
    if source.suffix != ".pt2" and not source.is_dir():
        raise UserError(f"{source}: the peers take a .pt2 or .onnx file or a Hugging Face directory; give it with --source")
    folder = read_environment().cache / "bench"
    path = folder / f"{_fingerprint(source)}.onnx"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _export_onnx(source, path)
    return path


def _export_onnx(source: Path, path: Path) -> None:
    import torch

    # An exported program knows its dynamic shapes itself.
    module, example_args, dynamic_shapes = encoder_module(source) if source.is_dir() else (torch.export.load(source), (), None)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        program = torch.onnx.export(module, example_args, dynamic_shapes=dynamic_shapes, dynamo=True, opset_version=OPSET, verbose=False)
        assert program is not None
        program.save(str(temporary), external_data=False)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _fingerprint(source: Path) -> str:
    """Of the names, sizes and times of the source's files."""
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _torch_runner(module: Callable[..., Any]) -> Runner:
    import torch

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(array) for array in inputs))
        return [tensor.numpy() for tensor in (outputs if isinstance(outputs, (tuple, list)) else [outputs])]

    return run
