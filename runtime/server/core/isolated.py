"""Models that run in a process of their own, so that a crash takes one model only.

The artifact is copied to memory once, sealed; the process maps the copy, and so does the next one if it ends. Batching, queue and text stay
in the server. A call whose process ends is an error; the next call starts another process, soon at first and later if it ends again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmos.runtime.artifact.manifest import RowSpec, TensorSpec
from llmos.runtime.artifact.reader import sealed_copy
from llmos.runtime.device.host_memory import available_bytes
from llmos.runtime.engine.errors import StateLostError
from llmos.runtime.engine.generate import CacheSpec, GenerationSpec, StepSizes
from llmos.runtime.engine.generate.model import STEP_INPUTS, host_caches
from llmos.runtime.engine.model import Array, Signature
from llmos.runtime.errors import ArtifactError, ExecutionError, InputError, LlmosError, UserError
from llmos.runtime.server.core.language import AnyModel, LanguageModel
from llmos.runtime.server.core.wire import receive, send

_LOG = logging.getLogger("llmos.server")
_MODULE = "llmos.runtime.server.model_worker"
_KINDS: Mapping[str, type[LlmosError]] = {kind.__name__: kind for kind in (ArtifactError, ExecutionError, InputError, UserError)}
_FREE_STARTS = 3  # after which a process that ends again waits
_CALM_S = 60.0  # after which a start counts no more
_LONGEST_WAIT_S = 30.0
_CLOSE_S = 10.0


def load_isolated(path: Path, name: str | None = None, entry: str = "", *, device: str = "cpu") -> AnyModel:
    """Load an artifact in a process of its own; see `load_served`."""
    process = ModelProcess(path, name or "", entry, device)
    try:
        found = process.start()
    except BaseException:
        process.end()
        raise
    if "step" in found:
        embedder = IsolatedModel(process, found["embedder"]) if "embedder" in found else None
        return LanguageModel(IsolatedStepModel(process, found), process.asset, str(found["digest"]), embedder)
    return IsolatedModel(process, found)


class ModelProcess:
    """The process of a model, again and again. Safe to use from several threads: it answers one call after the other.

    generation: the number of the process that answers, or of the next where it has ended. lock: held while it answers.
    """

    def __init__(self, path: Path, name: str, entry: str, device: str = "cpu") -> None:
        self._path = path
        self._arguments = (name, entry, device)
        self._file = sealed_copy(path)
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: socket.socket | None = None
        self._starts: list[float] = []
        self._ended = False
        self.generation = 1
        self.lock = threading.RLock()

    @property
    def pid(self) -> int:
        """Return that of the running process, 0 if there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> dict[str, Any]:
        """Start a process, and return what its model is. Raises the error of its loading."""
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), self._file)
            command = [sys.executable, "-m", _MODULE, *map(str, descriptors), *self._arguments]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=descriptors, start_new_session=True
            )
        self._stream = ours
        self._starts = [*(start_s for start_s in self._starts if time.monotonic() - start_s < _CALM_S), time.monotonic()]
        try:
            return self._received(ours)[0]
        except (EOFError, OSError) as error:
            raise ExecutionError(f"{self._path}: its process ended while it was loaded ({self._forget()})") from error

    def ask(self, head: dict[str, Any], arrays: Sequence[Array] = ()) -> tuple[dict[str, Any], list[Array]]:
        """Return the answer to a request. Raises StateLostError if the process has ended, or the error of the model."""
        with self.lock:
            stream = self._stream or self._start_again()
            try:
                send(stream, head, arrays)
                return self._received(stream)
            except (EOFError, OSError) as error:
                reason = self._forget()
                _LOG.error("the process of %s ended (%s); the next call starts another", self._path, reason)
                raise StateLostError(f"the model's process has ended ({reason}): send the request again") from error

    def asset(self, name: str) -> bytes | None:
        """Return a file of the artifact, None where it lacks it."""
        answer, (content,) = self.ask({"asset": name})
        return None if answer["missing"] else content.tobytes()

    def close(self) -> None:
        """Check the model's memory, and end. Raises LlmosError if it is damaged."""
        try:
            if self._stream is not None:
                self._stream.settimeout(_CLOSE_S)
                self.ask({"close": True})
        finally:
            self.end()

    def end(self) -> None:
        """End the process, whatever it does, and let the copy of the artifact go."""
        if self._ended:
            return
        self._ended = True
        self._forget()
        os.close(self._file)

    def _start_again(self) -> socket.socket:
        if self._ended:
            raise ExecutionError("the model is closed")
        recent = [start_s for start_s in self._starts if time.monotonic() - start_s < _CALM_S]
        if len(recent) > _FREE_STARTS:
            wait_s = min(_LONGEST_WAIT_S, 2.0 ** (len(recent) - _FREE_STARTS)) - (time.monotonic() - recent[-1])
            if wait_s > 0:
                raise ExecutionError(f"the model's process has ended {len(recent)} times: it starts again in {wait_s:.0f} s")
        self.start()
        assert self._stream is not None
        return self._stream

    def _received(self, stream: socket.socket) -> tuple[dict[str, Any], list[Array]]:
        head, arrays = receive(stream)
        if "error" in head:
            message = str(head["error"]).replace(f"/proc/self/fd/{self._file}", str(self._path))
            raise _KINDS.get(head["kind"], ExecutionError)(message)
        return head, arrays

    def _forget(self) -> str:
        """End the process if it has not ended; return how it did."""
        stream, process = self._stream, self._process
        self._stream = self._process = None
        if process is None:
            return "closed"
        self.generation += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)  # one that has closed its stream is about to end
        process.kill()
        code = process.wait()
        if stream is not None:
            stream.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class IsolatedModel:
    """A model of tensors in a process of its own. See Model."""

    def __init__(self, process: ModelProcess, found: Mapping[str, Any]) -> None:
        self._process = process
        self.name: str = found["name"]
        self.digest: str = found["digest"]
        self.metadata: Mapping[str, Any] = found["metadata"]
        self.signature = _signature(found["signature"])

    def asset(self, name: str) -> bytes | None:
        return self._process.asset(name)

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        return self._process.ask({}, arrays)[1]

    def close(self) -> None:
        self._process.close()


class IsolatedStepModel:
    """A language model in a process of its own, where its caches are, too. See StepModel."""

    def __init__(self, process: ModelProcess, found: Mapping[str, Any]) -> None:
        self._process = process
        self.name: str = found["name"]
        self.spec = _generation_spec(found["step"])
        self.sizes = StepSizes(**found["sizes"])
        self._generation = process.generation  # of the process that has what earlier steps wrote

    def __call__(self, arrays: Sequence[Array]) -> Array:
        """Compute one step. Of the caches, which are never touched here, only the number of blocks matters.

        Raises StateLostError also where the process that had them ended in a call that was no step.
        """
        count = len(STEP_INPUTS)
        with self._process.lock:
            before, self._generation = self._generation, self._process.generation
            if before != self._generation:
                raise StateLostError("the model's process has ended: send the request again")
            try:
                _, (logits,) = self._process.ask({"num_blocks": len(arrays[count])}, arrays[:count])
            except StateLostError:
                self._generation = self._process.generation
                raise
        return logits

    def new_caches(self, num_blocks: int) -> list[Array]:
        """Return caches that stand for those of the process, and take no memory as long as nobody touches them."""
        return host_caches(self.spec, num_blocks)

    def free_bytes(self) -> int:
        """Return what the host has."""
        return available_bytes()

    def close(self) -> None:
        self._process.close()


def _signature(found: Mapping[str, Any]) -> Signature:
    inputs, outputs = (tuple(_tensor(spec) for spec in found[key]) for key in ("inputs", "outputs"))
    symbols = {name: (low, high) for name, (low, high) in found["symbols"].items()}
    return Signature(inputs, outputs, symbols, RowSpec(**found["rows"]) if found["rows"] else None)


def _tensor(found: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(**{**found, "shape": tuple(found["shape"])})


def _generation_spec(found: Mapping[str, Any]) -> GenerationSpec:
    caches = tuple(CacheSpec(cache["name"], tuple(cache["block_shape"]), cache["window"]) for cache in found["caches"])
    return GenerationSpec(**{**found, "caches": caches, "eos_token_ids": tuple(found["eos_token_ids"])})
