"""Where the models of a server come from: artifacts that were named one by one, and a folder of models with versions."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmos.runtime.errors import ExecutionError, UserError
from llmos.runtime.server.core.residency import DYNAMIC, ISOLATED, STATIC

ARTIFACT_FILE = "model.llmos"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_CONTROLS = ("none", "explicit", "poll")

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class VersionPolicy:
    """Which of the versions of a model are served.

    num_latest: so many of the highest; None: those of `specific`, or all if that is empty.
    """

    num_latest: int | None = 1
    specific: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """Read `latest`, `latest:N`, `specific:1,3` or `all`. Raises UserError."""
        kind, colon, given = text.partition(":")
        if text == "all":
            return cls(None)
        if kind == "latest" and (not colon or _VERSION.fullmatch(given)):
            return cls(int(given or 1))
        numbers = given.split(",")
        if kind == "specific" and all(map(_VERSION.fullmatch, numbers)):
            return cls(None, frozenset(map(int, numbers)))
        raise UserError(f"'{text:.60}' is no version policy: give latest, latest:N, specific:1,3 or all")

    def choose(self, versions: Iterable[int]) -> list[int]:
        """Return those to serve, lowest first."""
        found = sorted(versions)
        if self.num_latest is not None:
            return found[-self.num_latest :]
        return [version for version in found if version in self.specific] if self.specific else found


@dataclass(frozen=True)
class ModelControl:
    """How models of the folder come and go. at_start: all are loaded then. poll_s: seconds between two looks at the folder; None: never."""

    at_start: bool = True
    poll_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> ModelControl:
        """Read `none`, `explicit`, `poll` or `poll:SECONDS`. Raises UserError."""
        kind, colon, seconds = text.partition(":")
        if kind not in _CONTROLS or (colon and kind != "poll"):
            raise UserError(f"'{text:.60}' is no model control: give none, explicit, poll or poll:SECONDS")
        if kind != "poll":
            return cls(at_start=kind == "none")
        try:
            poll_s = float(seconds) if colon else 15.0
        except ValueError:
            poll_s = 0.0
        if not 0.01 <= poll_s < float("inf"):
            raise UserError(f"model control '{text:.60}': the seconds of poll must be a number above 0.01")
        return cls(poll_s=poll_s)


@dataclass(frozen=True)
class ArtifactFile:
    """A file with what tells it from one that replaces it: its inode, size in bytes, and time of change in ns."""

    path: Path
    stamp: Stamp

    @property
    def num_bytes(self) -> int:
        """Return its size."""
        return self.stamp[1]

    @classmethod
    def of(cls, path: Path) -> ArtifactFile:
        """Look at a file; one that can't be looked at has a stamp of its own, and says what is wrong when it is loaded."""
        try:
            found = path.stat()
        except OSError:
            return cls(path, (0, 0, 0))
        return cls(path, (found.st_ino, found.st_size, found.st_mtime_ns))


@dataclass(frozen=True)
class Repository:
    """The artifacts that can be served, by name and version. Reads the folder at each question, and keeps nothing. What asks for models or
    versions raises ExecutionError where a folder can't be read, which is not the same as an empty one.

    listed: artifacts by their names, each version 1. folder: holds MODEL/VERSION/model.llmos, as Triton's does. policy: of models
    that `policies` does not name. start: which models of the folder are loaded at the start; None: as `control` says. resource: of models
    that `resources` does not name (`residency.py`); only those of the folder can be dynamic.
    """

    listed: Mapping[str, Path] = field(default_factory=dict)
    folder: Path | None = None
    control: ModelControl = ModelControl()
    policy: VersionPolicy = VersionPolicy()
    policies: Mapping[str, VersionPolicy] = field(default_factory=dict)
    start: tuple[str, ...] | None = None
    resource: str = STATIC
    resources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = next((name for name in self.listed if not NAME.fullmatch(name)), None)
        if wrong is not None:
            raise UserError(bad_name(wrong))
        if self.folder is not None and not self.folder.is_dir():
            raise UserError(f"{self.folder} is no folder: --model-repository takes one that holds MODEL/VERSION/{ARTIFACT_FILE}")
        repeated = next((name for name in self.folder_names() if name in self.listed), None)
        if repeated is not None:
            raise UserError(f"two models are named '{repeated}': one in {self.folder}, and {self.listed[repeated]}")

    def names(self) -> list[str]:
        """Return the models that there are, loaded or not."""
        return [*self.listed, *self.folder_names()]

    def folder_names(self) -> list[str]:
        """Return the models of the folder: its folders whose names can stand in a URL."""
        return sorted(name for name in _folders(self.folder, must_exist=True) if NAME.fullmatch(name)) if self.folder is not None else []

    def at_start(self) -> list[str]:
        """Return the models of the folder that are loaded at the start."""
        if self.start is not None:
            return list(dict.fromkeys(self.start))
        return [name for name in self.folder_names() if not self.is_dynamic(name)] if self.control.at_start else []

    def is_dynamic(self, name: str) -> bool:
        """Return whether a model of this name is loaded when a request needs it."""
        return name not in self.listed and self.resources.get(name, self.resource) == DYNAMIC

    def is_isolated(self, name: str) -> bool:
        """Return whether a model of this name runs in a process of its own."""
        return self.resources.get(name, self.resource) == ISOLATED

    def dynamic_names(self) -> list[str]:
        """Return the models that are loaded when a request needs them."""
        if DYNAMIC not in (self.resource, *self.resources.values()):
            return []
        return [name for name in self.folder_names() if self.is_dynamic(name)]

    def versions(self, name: str) -> dict[int, ArtifactFile]:
        """Return a model's versions, lowest first; none for an unknown name."""
        if name in self.listed:
            return {1: ArtifactFile.of(self.listed[name])}
        if self.folder is None or not NAME.fullmatch(name):
            return {}
        numbers = sorted(int(found) for found in _folders(self.folder / name) if _VERSION.fullmatch(found))
        paths = {number: self.folder / name / str(number) / ARTIFACT_FILE for number in numbers}
        return {number: ArtifactFile.of(path) for number, path in paths.items() if _is_there(path)}

    def wanted(self, name: str, without: Collection[int] = ()) -> dict[int, ArtifactFile]:
        """Return the versions of a model that its policy serves, lowest first. without: those that are as if they were not there."""
        versions = self.versions(name)
        if name in self.listed:
            return versions
        versions = {number: file for number, file in versions.items() if number not in without}
        return {number: versions[number] for number in self.policies.get(name, self.policy).choose(versions)}


def bad_name(name: str) -> str:
    """Return the message for a name that can't be a model's."""
    return f"'{name}' can't be a model's name in a URL: give another with name=path (letters, digits, '.', '_', '-')"


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # loading it says what is wrong
    return True


def _folders(folder: Path, *, must_exist: bool = False) -> list[str]:
    """Return the folders in a folder, none for one that is not there unless it must be. Raises ExecutionError if it can't be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if _is_folder(entry)]
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not must_exist:
            return []
        raise ExecutionError(f"can't read the model repository's folder {folder} ({error.strerror or error})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
