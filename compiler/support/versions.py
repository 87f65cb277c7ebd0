"""Versions of the packages that take part in a compile."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

_PACKAGES = ("llmos", "torch-mlir", "llvmlite", "torch", "onnx", "numpy")
_PRODUCERS = ("llmos", "torch", "torch-mlir", "llvmlite")


def installed() -> dict[str, str]:
    """Versions of Python and of the packages that take part in a compile and are installed."""
    return {"python": platform.python_version(), "machine": platform.machine(), **_versions(_PACKAGES)}


def producer() -> dict[str, str]:
    """Versions of what decides the bytes of an artifact."""
    return _versions(_PRODUCERS)


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
