"""Typed reading of parsed JSON; every error names the path of the invalid field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llmos.runtime.errors import ArtifactError


def fail(message: str) -> ArtifactError:
    return ArtifactError(message)


def parse_json(data: bytes, what: str) -> Any:
    """Parse JSON bytes. Raises ArtifactError for invalid JSON or a duplicate key."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise fail(f"{what}: not valid JSON ({error})") from error


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return result


@dataclass(frozen=True)
class Fields:
    """One JSON object and its path in the document."""

    path: str
    value: Any

    def __post_init__(self) -> None:
        if not isinstance(self.value, dict):
            raise fail(f"{self.path}: expected an object")

    def get(self, key: str, kind: type, kind_name: str) -> Any:
        if key not in self.value:
            raise fail(f"{self.path}.{key}: missing")
        return _typed(self.value[key], kind, f"{self.path}.{key}", kind_name)

    def string(self, key: str) -> str:
        return str(self.get(key, str, "a string"))

    def integer(self, key: str) -> int:
        return int(self.get(key, int, "an integer"))

    def number(self, key: str) -> float:
        value = self.integer(key) if isinstance(self.value.get(key), int) else self.get(key, float, "a number")
        return float(value)

    def array(self, key: str) -> list[Any]:
        return list(self.get(key, list, "an array"))

    def mapping(self, key: str) -> dict[str, Any]:
        return dict(self.get(key, dict, "an object"))

    def strings(self, key: str) -> tuple[str, ...]:
        return tuple(_typed(item, str, f"{self.path}.{key}", "strings") for item in self.array(key))

    def integers(self, key: str) -> tuple[int, ...]:
        return tuple(_typed(item, int, f"{self.path}.{key}", "integers") for item in self.array(key))

    def dims(self, key: str) -> tuple[int | str, ...]:
        return tuple(
            item if isinstance(item, str) else int(_typed(item, int, f"{self.path}.{key}", "integers and strings"))
            for item in self.array(key)
        )

    def record(self, key: str) -> Fields:
        return Fields(f"{self.path}.{key}", self.mapping(key))

    def records(self, key: str) -> list[Fields]:
        return [Fields(f"{self.path}.{key}[{index}]", item) for index, item in enumerate(self.array(key))]

    def named_records(self, key: str) -> dict[str, Fields]:
        return {name: Fields(f"{self.path}.{key}[{name!r}]", item) for name, item in self.mapping(key).items()}

    def rest(self, *keys: str) -> dict[str, Any]:
        """Return the fields other than `keys`."""
        return {key: value for key, value in self.value.items() if key not in keys}


def _typed(value: Any, kind: type, path: str, kind_name: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise fail(f"{path}: expected {kind_name}")
    return value
