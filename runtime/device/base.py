"""The device interface: memory for tensors, and loading and running of an artifact's code.

`cpu` runs models. `null` runs nothing and counts calls, which tests the layers above a device without one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llmos.runtime.artifact.manifest import CodeSpec
from llmos.runtime.errors import ArtifactError, LlmosError

if TYPE_CHECKING:
    from llmos.runtime.artifact.reader import Artifact


@dataclass(frozen=True)
class Verdict:
    """Whether a device runs a code variant: `missing` names the missing features, empty if it does."""

    code: CodeSpec
    missing: tuple[str, ...]
    chosen: bool

    @property
    def reason(self) -> str:
        if self.chosen:
            return "chosen: the best variant that this machine can run"
        if not self.missing:
            return "can run, but a better variant comes first"
        return "needs " + ", ".join(self.missing)


class Buffer(Protocol):
    """Memory of a device, freed with its last reference."""

    @property
    def num_bytes(self) -> int: ...
    @property
    def address(self) -> int: ...


class DeviceArray(Protocol):
    """A dense, row-major array in a device's memory, which a call takes where it lies."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __dlpack__(self) -> Any: ...


class Module(Protocol):
    """An artifact's code, loaded on a device.

    shapes(entry, inputs, num_inputs, dims) checks the inputs, addresses of DLTensors, and writes the outputs' dims; run(entry, inputs,
    num_inputs, outputs, num_outputs, flags, profile) fills the outputs. Both return 0 or an error code of llmos.h, which `error` converts
    to an exception. Both are thread-safe.
    """

    @property
    def target(self) -> str: ...
    @property
    def shapes(self) -> Callable[[int, Any, int, Any], int]: ...
    @property
    def run(self) -> Callable[[int, Any, int, Any, int, int, int | None], int]: ...
    def error(self, code: int) -> LlmosError: ...
    def check(self) -> None:
        """When no run is active: raise ExecutionError if one wrote past its memory."""


class Device(Protocol):
    """Allocations and copies run in call order; `synchronize` waits for all earlier ones."""

    @property
    def name(self) -> str: ...
    @property
    def target(self) -> str:
        """Return what `llmos compile --target` makes the best code for it with."""

    def judge(self, artifact: Artifact) -> tuple[Verdict, ...]:
        """Return one verdict for each code variant, best first; at most one is chosen."""

    def load(self, artifact: Artifact, target: str | None = None) -> Module:
        """Load the best variant, or the one named `target`. Raises ArtifactError if there is none for this device."""

    def allocate(self, num_bytes: int) -> Buffer:
        """Allocate uninitialized memory. Raises ExecutionError if there is not enough."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Return an array of zeros in its memory. dtype: as a manifest names it. Raises ExecutionError if there is not enough."""

    def free_bytes(self) -> int:
        """Return the bytes of its memory that can still be used."""

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copy all of `source` to the start of `target`. Raises InputError if it doesn't fit."""

    def synchronize(self) -> None: ...


def choose(name: str, verdicts: tuple[Verdict, ...], machine: str, target: str | None = None, wanted: str = "native here") -> int:
    """Return the index of the variant to load: the chosen one, or the one named `target`. Raises ArtifactError if there is none.

    wanted: what the artifact is to be compiled for then, after --target.
    """
    for index, verdict in enumerate(verdicts):
        if verdict.chosen if target is None else verdict.code.target == target and not verdict.missing:
            return index
    if not verdicts:
        raise ArtifactError(f"{name}: the artifact holds no code")
    reasons = "; ".join(f"{verdict.code.target} {verdict.reason}" for verdict in verdicts if target in (None, verdict.code.target))
    if not reasons:
        raise ArtifactError(f"{name}: there is no variant {target!r}, only {', '.join(verdict.code.target for verdict in verdicts)}")
    raise ArtifactError(f"{name}: no code for this machine ({machine}): {reasons}; compile it with --target {wanted}")
