"""Finding our passes: each file of this folder without a leading underscore holds one, under the name of the file."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

import llmos.passes
from llmos.passes._pass import Pass
from llmos.passes._upstream_names import UPSTREAM_PASS_NAMES


def pass_names() -> list[str]:
    """Return the names of our own passes, sorted, as kebab-case."""
    found = pkgutil.iter_modules(llmos.passes.__path__)
    return sorted(module.name.replace("_", "-") for module in found if not module.name.startswith("_"))


def pass_class(name: str) -> type[Pass]:
    """Return the class of our pass `name`; imports its file. Raises KeyError where there is none."""
    if name not in pass_names():
        raise KeyError(name)
    module = importlib.import_module(f"llmos.passes.{name.replace('-', '_')}")
    [found] = passes_defined_in(module.__name__)
    return found


def passes_defined_in(module_name: str) -> list[type[Pass]]:
    """Return the pass classes that a module defines itself; imports it."""
    members = vars(importlib.import_module(module_name)).values()
    return [member for member in members if isinstance(member, type) and issubclass(member, Pass) and member.__module__ == module_name]


def nearest_names(name: str) -> list[str]:
    """Return up to five names, ours first, that look like `name`."""
    ours = difflib.get_close_matches(name, pass_names(), n=3, cutoff=0.5)
    upstream = difflib.get_close_matches(name, UPSTREAM_PASS_NAMES, n=5, cutoff=0.5)
    return (ours + upstream)[:5]
