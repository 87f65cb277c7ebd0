"""Reading an ONNX file: external data mapped, versions, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from llmos.compiler.frontend.onnx.validate import check_graph
from llmos.runtime.errors import UnsupportedError, UserError

Source: TypeAlias = "str | Path | onnx.ModelProto"


@dataclass(frozen=True)
class LoadedModel:
    """A parsed file and the folder that its external data is relative to."""

    proto: onnx.ModelProto
    folder: Path
    name: str
    path: Path | None = None

    @property
    def versions(self) -> Mapping[str, int]:
        """Opset version per domain; ai.onnx is ""."""
        return {("" if item.domain == "ai.onnx" else item.domain): item.version for item in self.proto.opset_import}

    @property
    def reader(self) -> partial[np.ndarray]:
        return partial(read_tensor, self.folder)


def load_model(source: Source) -> LoadedModel:
    """Parse a file (or take a ModelProto), with its shapes inferred. UserError if it is missing, damaged or too old."""
    if isinstance(source, onnx.ModelProto):
        model = LoadedModel(source, Path(), source.graph.name or "model")
    else:
        path = Path(source)
        model = LoadedModel(_parse(path), path.parent, path.stem, path)
    if not model.proto.graph.output:
        raise UserError(f"'{model.name}' isn't an ONNX model, or it is cut short: its graph has no outputs.")
    version = model.versions.get("", 0)
    if 0 < version < 7:
        raise UnsupportedError(f"'{model.name}' uses opset {version}; convert it to 7 or later with onnx.version_converter.")
    check_graph(model.proto.graph)
    return replace(model, proto=_with_shapes(model.proto))


def read_tensor(folder: Path, tensor: TensorProto) -> np.ndarray:
    """The array of a TensorProto, mapped copy-on-write if its data stands in another file."""
    if not uses_external_data(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    info = ExternalDataInfo(tensor)
    path = (folder / info.location).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"external data of '{tensor.name}' points outside the model's folder: {info.location}.")
    if not path.is_file():
        raise UserError(f"external data file '{info.location}' of the model is missing; put it beside the .onnx file.")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        raise UnsupportedError(f"4-bit external data ('{tensor.name}') isn't supported.")
    count = int(np.prod(tensor.dims, dtype=np.int64))
    offset = info.offset or 0
    if offset + count * dtype.itemsize > path.stat().st_size:
        raise UserError(f"external data file '{info.location}' is too short for '{tensor.name}'; copy it again.")
    if count == 0:
        return np.empty(tuple(tensor.dims), dtype)
    return np.memmap(path, dtype=dtype, mode="c", offset=offset, shape=tuple(tensor.dims))


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise UserError(f"no such file: '{path}'.")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise UserError(f"'{path}' isn't an ONNX model, or it is damaged: {error}.") from error


def _with_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With inferred shapes where inference works; it only serves function bodies that depend on types, so it may fail."""
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:
        return proto
