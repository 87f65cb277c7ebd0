"""Generated code run between pages that nobody may touch: an access outside of a buffer ends the process with a fault.

Each buffer (input, output, weight, temporaries, scratch) lies alone between two unmapped pages, against the one behind or against the one
before it: a read or write of one element too far, to either side, faults in one of the two. The bytes between a buffer and the other
page hold a pattern, which must be there after the call.

An address sanitizer would see no more: it has no instrumentation of code that LLVM made from kernels. It would see less, since its red
zones are skipped by an index that is far off.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmos.compiler.execution.native import CompiledCode, Launch
from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.device import cpu

PAGE = mmap.PAGESIZE
PATTERN = 0xA5
POISON = 0xFF  # in what may not be read before it is written: NaN in every float type
ALIGNED = 64  # what code may take for granted of weights, temporaries and scratch

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Overrun(AssertionError):
    """Something beside a buffer was written to."""


@dataclass(frozen=True)
class Region:
    """Pages between two that are not mapped."""

    first: int
    num_bytes: int

    @classmethod
    def of(cls, num_pages: int) -> Region:
        whole = (num_pages + 2) * PAGE
        address = _libc.mmap(None, whole, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        for guard in (address, address + whole - PAGE):
            assert _libc.mprotect(guard, PAGE, 0) == 0
        return cls(address + PAGE, num_pages * PAGE)


@dataclass
class GuardedMemory:
    """Hands out buffers, and checks and takes back all of them at the end of `lent`. `at_end`: against the page behind."""

    at_end: bool = True
    _free: dict[int, list[Region]] = field(default_factory=dict)
    _lent: list[tuple[Region, int, int]] = field(default_factory=list)

    def buffer(self, num_bytes: int, alignment: int, fill: int = POISON) -> int:
        pages = max(1, -(-num_bytes // PAGE))
        kept = self._free.setdefault(pages, [])
        region = kept.pop() if kept else Region.of(pages)
        address = (region.first + region.num_bytes - num_bytes) // alignment * alignment if self.at_end else region.first
        ctypes.memset(region.first, PATTERN, region.num_bytes)
        ctypes.memset(address, fill, num_bytes)
        self._lent.append((region, address, num_bytes))
        return address

    def array(self, shape: Sequence[int], dtype: np.dtype, alignment: int | None = None) -> np.ndarray:
        num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        address = self.buffer(num_bytes, alignment or dtype.itemsize, 0 if dtype == np.bool_ else POISON)
        memory = (ctypes.c_char * num_bytes).from_address(address)
        return np.frombuffer(memory, dtype).reshape(shape)

    def copy(self, array: np.ndarray, alignment: int | None = None) -> np.ndarray:
        made = self.array(array.shape, array.dtype, alignment)
        made[...] = array
        return made

    @contextmanager
    def lent(self) -> Iterator[None]:
        try:
            yield
            for region, address, num_bytes in self._lent:
                before, after = address - region.first, region.first + region.num_bytes - address - num_bytes
                around = ctypes.string_at(region.first, before) + ctypes.string_at(address + num_bytes, after)
                if around.count(PATTERN) != before + after:
                    raise Overrun(f"a write beside a buffer of {num_bytes} bytes")
        finally:
            for region, _, _ in self._lent:
                self._free[region.num_bytes // PAGE].append(region)
            self._lent.clear()


class GuardedProgram:
    """The main entry of an artifact, run on one thread in guarded memory."""

    def __init__(self, path: Path) -> None:
        self._artifact = Artifact.open(path)
        manifest = self._artifact.manifest
        self._entry, self._symbols = manifest.entries[0], manifest.symbols
        chosen = manifest.code[cpu.choose(self._artifact)]
        self._code = CompiledCode(bytes(self._artifact.member(chosen.member)))
        self._memory = GuardedMemory()

    def __call__(self, inputs: Sequence[np.ndarray], at_end: bool) -> tuple[list[int], list[np.ndarray]]:
        """The codes of all dispatches (every one runs, whatever those before it say), and copies of the outputs."""
        memory, codes = self._memory, [0]
        memory.at_end = at_end

        def launch(started: Launch) -> int:
            codes.append(started.run(scratch=memory.buffer(started.scratch_bytes, ALIGNED)))
            return 0

        with memory.lent():
            given = [memory.copy(each) for each in inputs]
            weights = [memory.copy(each, ALIGNED) for each in self._artifact.weights.values()]
            outputs = self._outputs(self._sizes(inputs))
            allocate = lambda num_bytes: memory.buffer(num_bytes, ALIGNED)  # noqa: E731
            codes.append(self._code.call(self._entry.symbol, given, outputs, weights, launch, allocate))
            return codes, [np.array(each) for each in outputs]

    def _sizes(self, inputs: Sequence[np.ndarray]) -> Mapping[str, int]:
        pairs = [
            (dim, size)
            for spec, each in zip(self._entry.inputs, inputs, strict=True)
            for dim, size in zip(spec.shape, each.shape, strict=True)
        ]
        return {dim: size for dim, size in pairs if isinstance(dim, str)}

    def _outputs(self, sizes: Mapping[str, int]) -> list[np.ndarray]:
        specs = self._entry.outputs
        symbols = [sizes[symbol.name] for symbol in self._symbols]
        dims = iter(self._code.dims(self._entry.shapes, symbols, sum(len(spec.shape) for spec in specs)))
        return [self._memory.array([next(dims) for _ in spec.shape], np.dtype(DTYPES[spec.dtype].storage)) for spec in specs]
