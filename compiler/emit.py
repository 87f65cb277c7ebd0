"""LLVM IR to objects and shared objects: a process per module where there are cores for it, and nothing compiled twice."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llmos.compiler.cache import Cache, cache_key
from llmos.compiler.codegen.llvm import compile_object
from llmos.compiler.environment import read_environment
from llmos.compiler.options import CompileOptions
from llmos.compiler.target import Target
from llmos.compiler.worker import compile_in_child

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Emitter:
    """Compiles LLVM IR with `jobs` processes at a time; `cache` None compiles everything anew."""

    jobs: int = 1
    cache: Cache | None = None

    def objects(self, modules: Sequence[tuple[Target, str]], progress: Progress | None = None) -> list[bytes]:
        """The object of each (target, LLVM IR text), in order. `progress` is told how many of how many are done.

        Raises PassError where LLVM fails, also where it takes its process with it.
        """
        found = {index: data for index, module in enumerate(modules) if (data := self._cached(module)) is not None}
        missing = [index for index in range(len(modules)) if index not in found]
        for index, data in zip(missing, self._compile([modules[index] for index in missing]), strict=True):
            found[index] = data
            if self.cache:
                self.cache.put(_key(modules[index]), data)
            if progress:
                progress(len(found), len(modules))
        return [found[index] for index in range(len(modules))]

    def _cached(self, module: tuple[Target, str]) -> bytes | None:
        return self.cache.get(_key(module)) if self.cache else None

    def _compile(self, modules: Sequence[tuple[Target, str]]) -> Iterator[bytes]:
        if self.jobs == 1 or len(modules) == 1:
            for target, text in modules:
                yield compile_object(text, target)
        elif modules:
            # The threads only wait for their processes: LLVM's Python binding holds one lock for all of them.
            with ThreadPoolExecutor(self.jobs) as pool:
                yield from pool.map(compile_in_child, modules)


def _key(module: tuple[Target, str]) -> str:
    target, text = module
    revision = [importlib.metadata.version("llmos"), importlib.metadata.version("llvmlite")]
    return cache_key(["object", *revision, target.triple, target.cpu, target.features, text])


def emitter(options: CompileOptions) -> Emitter:
    """The emitter that a compile's options and environment ask for."""
    environment = read_environment()
    return Emitter(options.jobs or environment.jobs, Cache(environment.cache) if options.cache else None)
