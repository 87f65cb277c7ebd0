"""Model directories that are compiled once, and kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from llmos.runtime.errors import UserError
from llmos.runtime.folders import cache_folder

_LOG = logging.getLogger("llmos")
_SOURCES = (".gguf",)  # files that are compiled; others are artifacts


def must_compile(path: Path) -> bool:
    """Return whether a path is that of a model's source, not of an artifact."""
    return path.is_dir() or path.suffix in _SOURCES


def artifact_of(path: Path, options: Sequence[str] = ()) -> Path:
    """Return the artifact of a model: an artifact itself, or what `llmos compile` makes of a directory, once.

    options: of `llmos compile`, such as ("--quant", "w8a8"). What is kept, in `models` of the cache folder, stays valid until a file of the
    directory changes, or llmos or the options do. The compiler runs in a process of its own. Raises UserError.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or directory")
    if not must_compile(path):
        if options:
            raise UserError(f"{path}: it is compiled already, so it takes no options of the compiler ({' '.join(options)})")
        return path
    source = path.resolve()
    place = _digest([str(source), *options])
    folder = cache_folder() / "models"
    name = source.name if source.is_dir() else source.stem
    artifact = folder / f"{name}-{place}-{_digest([version('llmos'), *_files(source)])}.llmos"
    with _locked(folder, place):
        if not artifact.exists():
            _compile(source, artifact, options)
            _remove_others(folder, place, artifact)
    return artifact


def _files(source: Path) -> list[str]:
    """What tells whether a model has changed: names, sizes and times of its files."""
    files = sorted(each for each in source.iterdir() if each.is_file()) if source.is_dir() else [source]
    return [f"{each.name} {each.stat().st_size} {each.stat().st_mtime_ns}" for each in files]


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


@contextlib.contextmanager
def _locked(folder: Path, place: str) -> Iterator[None]:
    """Let one process at a time compile a model."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / f".{place}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise UserError(
            f"can't keep compiled models in {folder}: {error.strerror}; set LLMOS_CACHE to a folder that can be written"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compile(source: Path, artifact: Path, options: Sequence[str]) -> None:
    _LOG.info("compiling %s, once, into %s", source, artifact)
    command = [sys.executable, "-m", "llmos.runtime.cli", "compile", str(source), "-o", str(artifact), "--quiet", *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not artifact.exists():
        lines = done.stderr.strip().splitlines()
        reason = lines[-1].removeprefix("error: ") if lines else f"the compiler ended with exit code {done.returncode}"
        raise UserError(f"{source} can't be compiled: {reason}")


def _remove_others(folder: Path, place: str, artifact: Path) -> None:
    """Remove what was made of earlier states of the model."""
    for path in folder.glob(f"*-{place}-*.llmos"):
        if path != artifact:
            path.unlink(missing_ok=True)
