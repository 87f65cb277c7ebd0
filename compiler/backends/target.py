"""What code is made for, whatever the backend. No MLIR here: worker processes import it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """What one code variant of an artifact is made for. device: kind of device that runs it, such as "cpu"."""

    name: str
    device: str

    def __str__(self) -> str:
        return self.name

    def code_target(self, multiplied: Collection[str]) -> Target:
        """The plainest target whose code is the same, for kernels that multiply some types beside float32: "bf16", "int8"."""
        return self

    @abstractmethod
    def runs_here(self) -> bool:
        """Whether this machine runs the target's code."""

    @abstractmethod
    def this_machine(self) -> str:
        """What times of its code depend on here, in words."""

    @property
    @abstractmethod
    def requirements(self) -> str:
        """What a machine needs to run the code, in words."""
