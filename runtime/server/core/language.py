"""What a server is given to serve: models of tensors, and language models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmos.runtime.engine.generate import ProgramStepModel, StepModel
from llmos.runtime.engine.generate.spec import TEXT_GENERATION
from llmos.runtime.engine.model import Model, ProgramModel, embedding_model


@dataclass(frozen=True)
class LanguageModel:
    """A language model to serve. asset: gives a file of its artifact by name, None where it lacks it. digest: of the artifact.

    embedder: what embeds texts by the same weights, from a thread of its own; it ends with the step.
    """

    step: StepModel
    asset: Callable[[str], bytes | None]
    digest: str = ""
    embedder: Model | None = None

    @property
    def name(self) -> str:
        return self.step.name

    def close(self) -> None:
        """See StepModel.close."""
        self.step.close()


AnyModel = Model | LanguageModel


def load_served(path: Path, name: str | None = None, entry: str = "", *, device: str = "cpu", sealed: bool = True) -> AnyModel:
    """Load an artifact to serve: a language model, or an entry of any other, or the one that is named.

    device: as `open_device` knows it. sealed: a copy, which nothing that is done to the file can change.
    Raises ArtifactError, InputError for an unknown entry, or what `open_device` raises.
    """
    from llmos.runtime.device.select import open_device
    from llmos.runtime.program import load

    program = load(path, device=open_device(device), sealed=sealed)
    if program.manifest.metadata.get("task") != TEXT_GENERATION or entry not in ("", program.default.spec.name):
        return ProgramModel(program, name=name, entry=entry)
    assets = program.manifest.assets

    def asset(file: str) -> bytes | None:
        return program.artifact.asset(file) if f"assets/{file}" in assets else None

    return LanguageModel(ProgramStepModel(program, name), asset, program.artifact.digest, embedding_model(program, name))
