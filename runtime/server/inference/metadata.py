"""What the Open Inference Protocol says of a server and its models."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from llmos.runtime.artifact.manifest import TensorSpec
from llmos.runtime.server.core.served import ServedLanguageModel
from llmos.runtime.server.core.state import ServerState
from llmos.runtime.server.inference.tensors import DATATYPES


def server_metadata(state: ServerState) -> dict[str, Any]:
    """Return the server's name, version and extensions."""
    extensions = ["binary_tensor_data", *(["model_repository"] if state.settings.repository_api else [])]
    return {"name": "llmos", "version": version("llmos"), "extensions": extensions}


def model_metadata(state: ServerState, name: str, version: str | None = None) -> dict[str, Any]:
    """Return a model's versions, inputs and outputs. Raises HttpError 404."""
    served = state.registry.find(name, version)
    found = {"name": name, "versions": state.registry.versions(name), "platform": "llmos"}
    if isinstance(served, ServedLanguageModel):  # takes no tensors
        return {**found, "inputs": [], "outputs": []}
    signature = served.model.signature
    return {**found, "inputs": [_tensor(spec) for spec in signature.inputs], "outputs": [_tensor(spec) for spec in signature.outputs]}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}
