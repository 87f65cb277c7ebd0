"""Finding our passes: each file without a leading underscore, here or in a folder, holds one, under the name of the file."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Sequence

import llmos.passes
from llmos.passes._pass import Pass
from llmos.passes._upstream_names import UPSTREAM_PASS_NAMES


def pass_names() -> list[str]:
    """Return the names of our own passes, sorted, as kebab-case."""
    return sorted(pass_modules())


def pass_modules() -> dict[str, str]:
    """Return the module of each of our own passes, by the pass's name."""
    return {module.rpartition(".")[2].replace("_", "-"): module for module in _modules(llmos.passes.__name__, llmos.passes.__path__)}


def _modules(package: str, paths: Sequence[str]) -> Iterator[str]:
    """Yield the modules of a package and of the packages in it."""
    for found in pkgutil.iter_modules(paths):
        name = f"{package}.{found.name}"
        if found.name.startswith("_"):
            continue
        if found.ispkg:
            yield from _modules(name, [f"{path}/{found.name}" for path in paths])
        else:
            yield name


def pass_class(name: str) -> type[Pass]:
    """Return the class of our pass `name`; imports its file. Raises KeyError where there is none."""
    [found] = passes_defined_in(pass_modules()[name])
    return found


def passes_defined_in(module_name: str) -> list[type[Pass]]:
    """Return the pass classes that a module defines itself; imports it."""
    members = vars(importlib.import_module(module_name)).values()
    return [member for member in members if isinstance(member, type) and issubclass(member, Pass) and member.__module__ == module_name]


def nearest_names(name: str) -> list[str]:
    """Return up to five names, of our passes and MLIR's, that look like `name`, the closest first."""
    return difflib.get_close_matches(name, [*pass_names(), *UPSTREAM_PASS_NAMES], n=5, cutoff=0.5)
