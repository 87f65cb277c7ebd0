"""The lock file of a tuned artifact, NAME.llmos.lock: what a measured search chose, so that a later compile gives the same bytes.

    {"format": 1, "target": "x86-64-v4", "machine": "Intel(R) Xeon(R) Processor, 2 cores, 2048 KiB", "sizes": {"batch": 1, "tokens": 128},
     "dispatches": {"24e85ab3c1f08d17": {"label": "matmul+bias+gelu", "choices": {"rows": 32}, "default_us": 214.1, "best_us": 199.6}}}

A dispatch is known by the hash of its text (passes/tile_dispatches.py). One without choices was measured too: the analytic model's are
best there. Times are of one launch, medians.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmos.compiler.ir.tiling import Tiling, Tilings
from llmos.runtime.errors import UserError

FORMAT = 1


class LockMismatch(Exception):
    """A lock that says nothing of this compile; the message is why."""


@dataclass(frozen=True)
class Locked:
    """One dispatch: its choices by name, and medians of its time in microseconds without and with them."""

    label: str
    choices: Mapping[str, int]
    default_us: float
    best_us: float


@dataclass(frozen=True)
class Lock:
    """What was chosen for a target, on which machine, at which sizes of the symbols; `dispatches` by their hash."""

    target: str
    machine: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    dispatches: Mapping[str, Locked] = field(default_factory=dict)

    def tilings(self) -> Tilings:
        """Of the dispatches that have choices."""
        return Tilings(tuple((key, Tiling.of(self.target, each.choices)) for key, each in sorted(self.dispatches.items()) if each.choices))

    def to_json(self) -> str:
        record = {
            "format": FORMAT,
            "target": self.target,
            "machine": self.machine,
            "sizes": dict(self.sizes),
            "dispatches": {
                key: {"label": each.label, "choices": dict(each.choices), "default_us": each.default_us, "best_us": each.best_us}
                for key, each in sorted(self.dispatches.items())
            },
        }
        return json.dumps(record, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str) -> Lock:
        """Raises LockMismatch for another format, or anything that no lock holds."""
        try:
            record = json.loads(text)
            if record["format"] != FORMAT:
                raise LockMismatch(f"has format {record['format']}, this version reads {FORMAT}")
            dispatches = {key: _locked(str(record["target"]), each) for key, each in record["dispatches"].items()}
            return cls(record["target"], str(record["machine"]), {k: int(v) for k, v in record["sizes"].items()}, dispatches)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LockMismatch(f"is no lock ({error})") from error


def _locked(target: str, record: Mapping[str, Any]) -> Locked:
    Tiling.of(target, record["choices"])
    return Locked(str(record["label"]), dict(record["choices"]), float(record["default_us"]), float(record["best_us"]))


def lock_path(artifact: Path) -> Path:
    """Beside the artifact."""
    return artifact.with_name(f"{artifact.name}.lock")


def read_lock(path: Path) -> Lock | None:
    """The lock of that name, None where there is none. Raises LockMismatch, UserError where it can't be read."""
    try:
        return Lock.parse(path.read_text())
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise LockMismatch("is no text") from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}; remove it to compile without") from None


def write_lock(path: Path, lock: Lock) -> None:
    """Whole or not at all. Raises UserError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(lock.to_json())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"can't write {path}: {error.strerror}") from None
