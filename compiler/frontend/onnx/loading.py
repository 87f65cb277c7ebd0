"""Loading of an ONNX file: memory-mapped external data, opset versions, inferred shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx.version_converter
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from llmos.compiler.frontend.onnx.scales import check_scales
from llmos.compiler.frontend.onnx.validate import check_model
from llmos.runtime.errors import UnsupportedError, UserError

Source: TypeAlias = "str | Path | onnx.ModelProto"


OLDEST_OPSET = 7
# Key of a node's metadata: its opset version, if that isn't the model's.
BODY_VERSION = "llmos.opset_version"


@dataclass(frozen=True)
class LoadedModel:
    """A parsed file and the folder that its external data is relative to."""

    proto: onnx.ModelProto
    folder: Path
    name: str
    path: Path | None = None

    @property
    def versions(self) -> Mapping[str, int]:
        """Return the opset version of each domain; ai.onnx is ""."""
        imports = self.proto.opset_import
        return {domain: item.version for domain, item in zip(_domains(imports), imports, strict=True)}

    @property
    def reader(self) -> partial[np.ndarray]:
        """Return the function that reads a TensorProto of the model into an array (`read_tensor`)."""
        return partial(read_tensor, self.folder)


def load_model(source: Source) -> LoadedModel:
    """Parse a file (or take a ModelProto) and infer its shapes. Raises UserError if it is missing or damaged.

    Raises UnsupportedError for an opset that the installed onnx can't read or convert.
    """
    if isinstance(source, onnx.ModelProto):
        model = LoadedModel(source, Path(), source.graph.name or "model")
    else:
        path = Path(source)
        model = LoadedModel(_parse(path), path.parent, path.stem, path)
    if not model.proto.graph.output:
        raise UserError(f"'{model.name}' isn't an ONNX model, or it is cut short: its graph has no outputs.")
    model = replace(model, proto=_with_distinct_opsets(model))
    _check_opset(model)
    check_model(model.proto)
    check_scales(model.proto.graph)
    model = _upgraded(model)
    return replace(model, proto=_with_shapes(model.proto))


def _with_distinct_opsets(model: LoadedModel) -> onnx.ModelProto:
    """Deduplicate opset imports, also in functions: tools that merge graphs repeat them. Raises UserError for different versions."""
    lists = [model.proto.opset_import, *(function.opset_import for function in model.proto.functions)]
    if all(len(_domains(imports)) == len(set(_domains(imports))) for imports in lists):
        return model.proto
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        versions: dict[str, int] = {}
        for domain, item in zip(_domains(imports), imports, strict=True):
            if versions.setdefault(domain, item.version) != item.version:
                raise UserError(
                    f"'{model.name}' imports versions {versions[domain]} and {item.version} of the opset of {domain or 'ai.onnx'}: "
                    "convert its parts to one version (onnx.version_converter) before they are merged."
                )
        del imports[:]
        imports.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    return proto


def plain_domain(domain: str) -> str:
    """Normalize a domain as in the schemas: ai.onnx is ""."""
    return "" if domain == "ai.onnx" else domain


def _domains(imports: Iterable[onnx.OperatorSetIdProto]) -> list[str]:
    return [plain_domain(item.domain) for item in imports]


def _check_opset(model: LoadedModel) -> None:
    version, newest = model.versions.get("", OLDEST_OPSET), onnx.defs.onnx_opset_version()
    if not 1 <= version <= newest:
        raise UnsupportedError(
            f"'{model.name}' uses opset {version}, and the onnx installed here has 1 to {newest}: export it with one of these."
        )


def _upgraded(model: LoadedModel) -> LoadedModel:
    """Convert a model of an opset before 7 to opset 7, which has numpy broadcasting, by ONNX's converter."""
    version = model.versions.get("", OLDEST_OPSET)
    if version >= OLDEST_OPSET:
        return model
    try:
        proto = onnx.version_converter.convert_version(model.proto, OLDEST_OPSET)
        for node in proto.graph.node:
            if node.op_type == "PRelu":  # the converter doesn't adapt its slope of one number a channel
                node.metadata_props.add(key=BODY_VERSION, value=str(version))
        return replace(model, proto=proto)
    except Exception as error:
        raise UnsupportedError(
            f"'{model.name}' uses opset {version}, and onnx.version_converter can't bring it to {OLDEST_OPSET} ({error}); export it again."
        ) from error


def read_tensor(folder: Path, tensor: TensorProto) -> np.ndarray:
    """Return the array of a TensorProto, mapped copy-on-write if its data is external. Raises UserError if the data is missing."""
    if any(dim < 0 for dim in tensor.dims):
        raise UserError(f"the weight '{tensor.name}' has the sizes {list(tensor.dims)}: the model is damaged, save it again.")
    try:
        return _read_external(folder, tensor) if uses_external_data(tensor) else np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the data of '{tensor.name}' can't be read ({error}): the model is damaged, save it again.") from error


def _read_external(folder: Path, tensor: TensorProto) -> np.ndarray:
    info = ExternalDataInfo(tensor)
    path = (folder / info.location).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"external data of '{tensor.name}' points outside the model's folder: {info.location}.")
    if not path.is_file():
        raise UserError(f"external data file '{info.location}' of the model is missing; put it beside the .onnx file.")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        raise UnsupportedError(f"4-bit external data ('{tensor.name}') isn't supported.")
    count = math.prod(tensor.dims)
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
    """Add inferred shapes if inference works; only type-dependent function bodies need them, so failure is allowed."""
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:
        return proto
