"""The process of one isolated model: loads an artifact and computes what the server asks for (`core/isolated.py`).

Arguments: the descriptors of a stream to the server and of the artifact, the model's name, the entry and the device. The first message says
what the model is, or why it can't be loaded. Each request then has one answer, an error included.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from llmos.runtime.engine.generate import StepModel
from llmos.runtime.engine.model import Array
from llmos.runtime.errors import LlmosError
from llmos.runtime.server.core.language import AnyModel, LanguageModel, load_served
from llmos.runtime.server.core.wire import receive, send


def main(stream: socket.socket, path: Path, name: str, entry: str, device: str) -> None:
    """Serve until the server ends."""
    try:
        model = load_served(path, name or None, entry, device=device, sealed=False)
        send(stream, _description(model))
    except LlmosError as error:
        send(stream, _error(error))
        return
    runner = _StepRunner(model.step) if isinstance(model, LanguageModel) else None
    while True:
        head, arrays = receive(stream)
        try:
            answer, results = _answer(model, runner, head, arrays)
        except LlmosError as error:
            answer, results = _error(error), []
        send(stream, answer, results)


def _answer(model: AnyModel, runner: _StepRunner | None, head: dict[str, Any], arrays: list[Array]) -> tuple[dict[str, Any], list[Array]]:
    if "asset" in head:
        content = model.asset(head["asset"])
        return {"missing": content is None}, [np.frombuffer(content or b"", np.uint8)]
    if "close" in head:
        model.close()
        return {}, []
    if runner is not None and "num_blocks" in head:
        return {}, [runner(arrays, head["num_blocks"])]
    tensors = model.embedder if isinstance(model, LanguageModel) else model
    assert tensors is not None
    return {}, tensors(arrays)


class _StepRunner:
    """Runs a language model on caches of its own; those of the server are never touched."""

    def __init__(self, step: StepModel) -> None:
        self._step = step
        self._caches: list[Array] = []
        self._num_blocks = 0

    def __call__(self, arrays: list[Array], num_blocks: int) -> Array:
        if self._num_blocks != num_blocks:
            self._caches = self._step.new_caches(num_blocks)
            self._num_blocks = num_blocks
        return self._step([*arrays, *self._caches])


def _description(model: AnyModel) -> dict[str, Any]:
    common = {"name": model.name, "digest": getattr(model, "digest", "")}
    if isinstance(model, LanguageModel):
        embedder = {"embedder": _description(model.embedder)} if model.embedder is not None else {}
        return {**common, "step": _plain(asdict(model.step.spec)), "sizes": asdict(model.step.sizes), **embedder}
    return {**common, "metadata": _plain(dict(model.metadata)), "signature": _plain(asdict(model.signature))}


def _plain(value: Any) -> Any:
    """Return a value of JSON's types."""
    return orjson.loads(orjson.dumps(value))


def _error(error: LlmosError) -> dict[str, Any]:
    return {"error": str(error), "kind": type(error).__name__}


if __name__ == "__main__":
    _stream = socket.socket(fileno=int(sys.argv[1]))
    try:
        main(_stream, Path(f"/proc/self/fd/{sys.argv[2]}"), *sys.argv[3:6])
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)  # the server has ended
