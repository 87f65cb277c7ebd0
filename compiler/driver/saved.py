"""Saved stages: `<stem>.<stage>` or `<stem>.<target>.<stage>`, with `.json` and `.safetensors` beside them for what the IR leaves out."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmos.compiler.backends.base import IMPORTED, PLANNED, Backend, CompiledModel, StageContent
from llmos.compiler.backends.registry import stage_names
from llmos.compiler.driver.weights_file import read_weights, write_weights
from llmos.compiler.frontend.annotations import check_annotations, check_symbols
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.parsing import parse_module, read_text
from llmos.compiler.ir.weights import Weight
from llmos.runtime.artifact.files import atomic_file
from llmos.runtime.artifact.manifest import Manifest
from llmos.runtime.errors import UserError

# Up to this stage the IR says all about the entries; after it a record does.
MODULE_STAGES = (IMPORTED, PLANNED)


@dataclass(frozen=True)
class Sidecar:
    """What goes with a saved stage: the model's name, weights, assets and metadata, and the record of the compile once it is known."""

    name: str
    weights: Mapping[str, Weight]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    assets: Mapping[str, bytes] = field(default_factory=dict)
    record: CompiledModel | None = None


@dataclass(frozen=True)
class SavedStage:
    """Where a saved stage lies: `stem` is the path without stage and target; `target` is "" before code is made for targets."""

    stem: Path
    stage: str
    target: str = ""

    @property
    def path(self) -> Path:
        return self.stem.with_name(".".join(filter(None, (self.stem.name, self.target, self.stage))))

    @property
    def sidecar(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{self.stage}.json")

    @property
    def weights(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{self.stage}.safetensors")

    @classmethod
    def of(cls, path: Path, backend: Backend, stage: str = "") -> SavedStage | None:
        """The saved stage of a backend that a file is, by its extension unless `stage` says it; None for a file that is none."""
        for candidate in [stage] if stage else stage_names(backend)[:-1]:
            if path.name.endswith(f".{candidate}"):
                names = [target.name for target in backend.known_targets]
                return cls._split(path.with_name(path.name.removesuffix(f".{candidate}")), candidate, path, names)
        return cls(path, stage) if stage else None

    @classmethod
    def _split(cls, stem: Path, stage: str, path: Path, targets: list[str]) -> SavedStage:
        for target in targets:
            if stem.name.endswith(f".{target}"):
                return cls(stem.with_name(stem.name.removesuffix(f".{target}")), stage, target)
        if stage not in MODULE_STAGES:
            raise UserError(f"{path} doesn't say its target: name it <model>.<target>.{stage}, with a target of {', '.join(targets)}")
        return cls(stem, stage)

    def variants(self, targets: list[str]) -> list[SavedStage]:
        """This file's siblings that hold the same stage for `targets`, in that order."""
        siblings = [SavedStage(self.stem, self.stage, target) for target in targets]
        return [sibling for sibling in siblings if sibling.path.is_file()]


def write_stage(saved: SavedStage, content: StageContent) -> Path:
    """Writes the stage itself, whole or not at all. Raises UserError where that fails."""
    data = content if isinstance(content, bytes) else str(content).encode()
    with atomic_file(saved.path) as file:
        file.write(data)
    return saved.path


def write_sidecar(saved: SavedStage, sidecar: Sidecar) -> list[Path]:
    """Writes what goes with the stage."""
    written = [saved.sidecar]
    with atomic_file(saved.sidecar) as file:
        file.write(json.dumps(_to_json(sidecar), indent=1).encode())
    if sidecar.weights:
        with atomic_file(saved.weights) as file:
            write_weights(file, sidecar.weights)
        written.append(saved.weights)
    return written


def read_sidecar(saved: SavedStage, weights_file: Path | None = None) -> Sidecar:
    """What goes with the stage; `weights_file` takes the place of the weights beside it. Raises UserError where one is damaged."""
    path = weights_file or (saved.weights if saved.weights.is_file() else None)
    weights = read_weights(path) if path else {}
    if not saved.sidecar.is_file():
        return Sidecar(saved.stem.name, weights)
    try:
        fields = json.loads(read_text(saved.sidecar))
        record = fields.get("record")
        return Sidecar(
            name=fields["name"],
            weights=weights,
            metadata=fields["metadata"],
            assets={name: base64.b64decode(data) for name, data in fields["assets"].items()},
            record=_record(record, weights) if record else None,
        )
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{saved.sidecar} can't be read: save the stage again") from None


def read_imported(saved: SavedStage, weights_file: Path | None = None) -> ImportedModel:
    """The model at a stage of MODULE_STAGES. Raises UserError where the file is missing or is no valid IR."""
    module = parse_module(read_text(saved.path), str(saved.path))
    sidecar = read_sidecar(saved, weights_file)
    try:
        check_symbols(module)
        check_annotations(module, sidecar.weights)
    except UserError as error:
        raise UserError(f"{saved.path}: {error}") from None
    return ImportedModel(sidecar.name, module, sidecar.weights, assets=sidecar.assets, metadata=sidecar.metadata)


def _to_json(sidecar: Sidecar) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": sidecar.name,
        "metadata": dict(sidecar.metadata),
        "assets": {name: base64.b64encode(data).decode() for name, data in sidecar.assets.items()},
    }
    if sidecar.record:
        fields["record"] = json.loads(_manifest(sidecar.name, sidecar.record).to_json())
    return fields


def _manifest(name: str, record: CompiledModel) -> Manifest:
    return Manifest(
        name=name,
        entries=record.entries,
        symbols=record.symbols,
        computed=record.computed,
        kernels=record.kernels,
        plan=record.plan,
        passes=record.passes,
    )


def _record(fields: Mapping[str, Any], weights: Mapping[str, Weight]) -> CompiledModel:
    manifest = Manifest.parse(json.dumps(fields).encode())
    return CompiledModel(
        entries=manifest.entries,
        symbols=manifest.symbols,
        computed=manifest.computed,
        weights=weights,
        kernels=manifest.kernels,
        plan=manifest.plan,
        passes=manifest.passes,
    )
