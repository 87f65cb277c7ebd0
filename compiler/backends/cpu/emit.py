"""LLVM IR to objects: a process per module, as many at a time as there are cores, and nothing compiled twice."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from llmos.compiler.backends.cpu.target import Target, targets_of
from llmos.compiler.backends.cpu.worker import compile_in_child
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.support.cache import Cache, cache_key
from llmos.compiler.support.environment import read_environment

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Emitter:
    """Compiles LLVM IR with `jobs` processes at a time, never in this one; `cache` None compiles everything anew."""

    jobs: int = 1
    cache: Cache | None = None

    def objects(self, modules: Iterable[tuple[Target, str]], progress: Progress | None = None) -> list[bytes]:
        """The object of each (target, LLVM IR text), in order. `progress` is told how many of how many are done.

        Each is compiled as soon as `modules` gives it, beside the making of the next; equal ones are compiled once. Raises PassError
        where LLVM fails, also where it takes its process with it.
        """
        with ThreadPoolExecutor(self.jobs) as pool:
            started: dict[tuple[Target, str], Future[bytes]] = {}
            running = []
            for module in modules:
                if module not in started:
                    started[module] = pool.submit(self._object, module)
                running.append(started[module])
            found = []
            for future in running:
                found.append(future.result())
                if progress:
                    progress(len(found), len(running))
        return found

    def _object(self, module: tuple[Target, str]) -> bytes:
        cached = self.cache.get(_key(module)) if self.cache else None
        if cached is not None:
            return cached
        # Threads alone would not do: LLVM's Python binding holds one lock for all of them, and LLVM may end its process.
        data = compile_in_child(module)
        if self.cache:
            self.cache.put(_key(module), data)
        return data


def _key(module: tuple[Target, str]) -> str:
    target, text = module
    revision = [importlib.metadata.version("llmos"), importlib.metadata.version("llvmlite")]
    return cache_key(["object", *revision, target.triple, target.cpu, target.features, *target.emulates, text])


def emitter(options: CompileOptions, num_modules: int = 0) -> Emitter:
    """The emitter that a compile's options and environment ask for. num_modules: other than one for each target."""
    environment = read_environment()
    jobs = min(options.jobs or environment.jobs, num_modules or len(targets_of(options)))
    return Emitter(jobs, Cache(environment.cache) if options.cache else None)
