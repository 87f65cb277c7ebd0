"""The engines that `llmos bench` compares, by name. Each is loaded in a process of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from llmos.compiler.bench.engines import Runner, load_eager, load_inductor, load_llmos, load_onnxruntime, load_openvino
from llmos.compiler.bench.quantized_peers import QUANTIZED_PEERS
from llmos.compiler.bench.tvm_peer import load_tvm

__all__ = ["PEERS", "Runner"]

PEERS: Mapping[str, Callable[[Path, int], Runner]] = {
    "llmos": load_llmos,
    "eager": load_eager,
    "inductor": load_inductor,
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "openvino-bf16": functools.partial(load_openvino, precision="bf16"),
    "tvm": load_tvm,
    **QUANTIZED_PEERS,
}
