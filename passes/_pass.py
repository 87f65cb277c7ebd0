"""What a pass is: a frozen dataclass whose fields are its options, with `run` to change a module in place."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from llmos.compiler.ir.bindings import ir
from llmos.passes._context import PassContext
from llmos.passes._options import options_text
from llmos.passes._property import Property


def kebab_case(class_name: str) -> str:
    """Return a class name as a pass's name: FuseElementwise -> fuse-elementwise."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", class_name).lower()


@dataclass(frozen=True)
class Pass(ABC):
    """Base of every pass.

    A pass `fuse-elementwise` is the class FuseElementwise in passes/fuse_elementwise.py, its docstring shows the IR before and after.
    `requires` and `ensures` are properties that the manager checks before and after `run`.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[frozenset[Property]] = frozenset()
    ensures: ClassVar[frozenset[Property]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = kebab_case(cls.__name__)

    @abstractmethod
    def run(self, module: ir.Module, context: PassContext) -> None:
        """Change `module` in place. `context` says what pays.

        The manager has entered the module's context and an unknown location, and verifies it afterwards.
        Raises UnsupportedError for a model that can't be compiled; any other exception is taken as an error of this pass.
        """

    def __str__(self) -> str:
        """As in a pipeline's text, `name{option=value}`, with the options that differ from their defaults."""
        options = options_text(self)
        return f"{self.name}{{{options}}}" if options else self.name
