"""Peers that quantize the model with their own tools: onnxruntime's dynamic and static int8, OpenVINO's int8 by NNCF.

Static ones are calibrated on random inputs: what they cost doesn't depend on the values, and how accurate they are is not measured here.
Quantized files are kept beside the exported model in the compile cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmos.compiler.bench.engines import Runner, load_onnxruntime, onnx_file, openvino_runner

NUM_CALIBRATION = 8  # random inputs
TOKENS = 32  # of a dynamic dim, in calibration


def load_onnxruntime_dynamic(source: Path, num_threads: int) -> Runner:
    """onnxruntime with weights in int8 per column and scales of activations that follow at run time (`quantize_dynamic`)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def write(path: Path, out: Path) -> None:
        quantize_dynamic(str(path), str(out), per_channel=True, weight_type=QuantType.QInt8)

    return load_onnxruntime(_kept(source, "dynamic-int8", write), num_threads)


def load_onnxruntime_static(source: Path, num_threads: int) -> Runner:
    """onnxruntime with QDQ pairs around products and convolutions, per channel (`quantize_static`)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, path: Path) -> None:
            self.left = _random_inputs(path)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    def write(path: Path, out: Path) -> None:
        prepared = out.with_suffix(".prepared")
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(str(prepared), str(out), Reader(path), quant_format=QuantFormat.QDQ, per_channel=True, **types)
        prepared.unlink()

    return load_onnxruntime(_kept(source, "static-int8", write), num_threads)


def load_openvino_int8(source: Path, num_threads: int) -> Runner:
    """OpenVINO's runtime on a model that NNCF quantized after training."""
    import nncf
    import openvino

    path = onnx_file(source)
    model = openvino.Core().read_model(str(path))
    data = nncf.Dataset([list(each.values()) for each in _random_inputs(path)])
    is_transformer = any(each.dtype == np.int64 for each in next(_random_inputs(path)).values())
    kind = {"model_type": nncf.ModelType.TRANSFORMER} if is_transformer else {}
    return openvino_runner(nncf.quantize(model, data, subset_size=NUM_CALIBRATION, **kind), num_threads, "f32")


def _kept(source: Path, how: str, write: Callable[[Path, Path], None]) -> Path:
    """The model quantized one way, made once."""
    path = onnx_file(source)
    if source.suffix == ".onnx":
        from llmos.compiler.support.environment import read_environment

        folder = read_environment().cache / "bench"
        folder.mkdir(parents=True, exist_ok=True)
        out = folder / f"{path.stem}-{path.stat().st_size}-{path.stat().st_mtime_ns}.{how}.onnx"
    else:
        out = path.with_suffix(f".{how}.onnx")
    if not out.is_file():
        temporary = out.with_suffix(f".{os.getpid()}.tmp")
        try:
            write(path, temporary)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    return out


def _random_inputs(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of an ONNX file by name: normal floats, small integers, ones for masks."""
    import onnx

    random = np.random.default_rng(0)
    graph: Any = onnx.load(str(path), load_external_data=False).graph
    constants = {each.name for each in graph.initializer}
    for _ in range(NUM_CALIBRATION):
        yield {each.name: _random_input(each, random) for each in graph.input if each.name not in constants}


def _random_input(value: Any, random: np.random.Generator) -> np.ndarray:
    import onnx

    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    # The first dynamic dim is a batch, which may be 1; others count tokens or pixels.
    shape = [dim.dim_value or (1 if axis == 0 else TOKENS) for axis, dim in enumerate(kind.shape.dim)]
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    return np.ones(shape, dtype) if "mask" in value.name else random.integers(0, 100, shape).astype(dtype)


QUANTIZED_PEERS: Mapping[str, Callable[[Path, int], Runner]] = {
    "onnxruntime-int8": load_onnxruntime_dynamic,
    "onnxruntime-qdq": load_onnxruntime_static,
    "openvino-int8": load_openvino_int8,
}
