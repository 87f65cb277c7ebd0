"""The machine this process runs on, and which code variant of an artifact it takes."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from llmos.runtime.artifact.manifest import CodeSpec, Manifest
from llmos.runtime.errors import ArtifactError
from llmos.runtime.native.binding import core, num_threads


@dataclass(frozen=True)
class Host:
    """A CPU: architecture as in platform.machine(), and the features, in LLVM's names, that CPU and system both offer."""

    arch: str
    features: frozenset[str]


@dataclass(frozen=True)
class Verdict:
    """Whether a host runs a variant, and why not: `missing` is empty where it does."""

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


@functools.cache
def host() -> Host:
    return Host(core().host_arch(), frozenset(core().host_features()))


def host_num_threads() -> int:
    return num_threads()


def judge(manifest: Manifest, machine: Host) -> tuple[Verdict, ...]:
    """One verdict per variant, in manifest order (best first); at most one is chosen."""
    missing = [_missing(code, machine) for code in manifest.code]
    best = next((index for index, lacks in enumerate(missing) if not lacks), None)
    return tuple(Verdict(code, missing[index], index == best) for index, code in enumerate(manifest.code))


def choose(manifest: Manifest, machine: Host, target: str | None = None) -> int:
    """The index of the variant to load: the best that runs, or the one named `target`. Raises ArtifactError when there is none."""
    verdicts = judge(manifest, machine)
    for index, verdict in enumerate(verdicts):
        if verdict.chosen if target is None else verdict.code.target == target and not verdict.missing:
            return index
    if not verdicts:
        raise ArtifactError(f"{manifest.name}: the artifact holds no code")
    reasons = "; ".join(f"{verdict.code.target} {verdict.reason}" for verdict in verdicts if target in (None, verdict.code.target))
    if not reasons:
        raise ArtifactError(f"{manifest.name}: there is no variant {target!r}, only {', '.join(code.target for code in manifest.code)}")
    raise ArtifactError(f"{manifest.name}: no code for this machine ({machine.arch}): {reasons}; compile it with --target native here")


def _missing(code: CodeSpec, machine: Host) -> tuple[str, ...]:
    if code.arch != machine.arch:
        return (f"a {code.arch} machine",)
    return tuple(feature for feature in code.features if feature not in machine.features)
