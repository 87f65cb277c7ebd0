"""The backends there are: built-in ones, and those that other packages register under the entry point group `llmos.backends`.

[project.entry-points."llmos.backends"]
mine = "my_package.backend:MyBackend"
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from importlib.metadata import EntryPoint

from llmos.compiler.backends.base import ARTIFACT, IMPORTED, PLANNED, Backend
from llmos.compiler.backends.options import CompileOptions, one_of
from llmos.runtime.errors import UserError

GROUP = "llmos.backends"
DEFAULT = "cpu"
_BUILT_IN = (
    EntryPoint("cpu", "llmos.compiler.backends.cpu.backend:CpuBackend", GROUP),
    EntryPoint("cuda", "llmos.compiler.backends.cuda.backend:CudaBackend", GROUP),
    EntryPoint("tvm", "llmos.compiler.backends.tvm.backend:TvmBackend", GROUP),
    EntryPoint("null", "llmos.compiler.backends.null.backend:NullBackend", GROUP),
)


def backend_names() -> list[str]:
    """Built-in ones first."""
    return list(_registered())


def get_backend(name: str) -> Backend:
    """The backend of a name. Raises UserError for an unknown name, and for one whose package can't be imported."""
    registered = _registered()
    one_of("--backend", name, registered)
    return _loaded(registered[name])


def backend_of(options: CompileOptions) -> Backend:
    """The backend that a compile's options name, or else that its target begins with: "cuda:sm_90a" is one of `cuda`."""
    prefix, colon, _ = options.target.partition(":")
    return get_backend(options.backend or (prefix if colon else DEFAULT))


def stage_names(backend: Backend) -> tuple[str, ...]:
    """Extensions of what a compile passes through, in order (docs/passes.md); any but the last can be the input of a later run."""
    return (IMPORTED, PLANNED, *backend.stages, ARTIFACT)


def check_stages(options: CompileOptions, backend: Backend) -> None:
    """Raises UserError where options.from_stage or stop_after is no stage of the backend, or the one comes before the other."""
    names = stage_names(backend)
    for option, stage in (("--from", options.from_stage), ("--stop-after", options.stop_after)):
        if stage:
            one_of(option, stage, names)
    if options.from_stage and options.stop_after and names.index(options.stop_after) <= names.index(options.from_stage):
        raise UserError(f"--stop-after {options.stop_after} comes before what --from {options.from_stage} makes")


@cache
def _loaded(point: EntryPoint) -> Backend:
    """One object serves all compiles of a process."""
    try:
        backend: Backend = point.load()()
    except (ImportError, AttributeError) as error:
        raise UserError(f"backend {point.name!r} can't be loaded from {point.value}: {error}; install its package again") from error
    return backend


def _registered() -> dict[str, EntryPoint]:
    """By name; a package can't replace a built-in one."""
    found = {point.name: point for point in _BUILT_IN}
    for point in metadata.entry_points(group=GROUP):
        found.setdefault(point.name, point)
    return found
