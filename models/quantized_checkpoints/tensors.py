"""The tensors of a checkpoint by name, mapped from their files as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmos.runtime.errors import UserError


class TensorFiles(Mapping[str, torch.Tensor]):
    """Tensors of safetensors files; none is copied. Raises UserError for a damaged file, or a name in two of them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[str, Any] = {}
        for path in paths:
            file = _opened(path)
            for name in file.keys():  # noqa: SIM118
                if name in self._files:
                    raise UserError(f"{path}: holds {name}, and another file does too; remove one of them")
                self._files[name] = file

    def __getitem__(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self._files[name].get_tensor(name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); copy it again") from None
