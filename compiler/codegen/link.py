"""Objects -> one shared object, with the system's C compiler as linker driver. Only the machine that compiles needs one.

The shared object has no dependency (`-nostdlib`): its only undefined symbols are memory functions of the C library, which every process
has. The same objects give the same bytes: fixed file names, no build id, no symbol table.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from llmos.compiler.codegen import elf
from llmos.compiler.codegen.llvm import LIBC_SYMBOLS
from llmos.runtime.errors import PassError, UserError

__all__ = ["find_linker", "link_shared"]

# Who can link for a machine: the native compiler says which machine it is for, a cross compiler has it in its name.
_CROSS_COMPILERS = {
    elf.EM_X86_64: ("x86_64-linux-gnu-gcc", "x86_64-unknown-linux-gnu-gcc"),
    elf.EM_AARCH64: ("aarch64-linux-gnu-gcc", "aarch64-unknown-linux-gnu-gcc"),
}
_ARCH_NAMES = {elf.EM_X86_64: "x86_64", elf.EM_AARCH64: "aarch64"}

_FLAGS = (
    "-shared",
    "-nostdlib",
    "-Wl,--build-id=none",
    "-Wl,--gc-sections",
    "-Wl,--strip-all",
    "-Wl,--hash-style=gnu",
    "-Wl,-Bsymbolic",
    "-Wl,-z,noexecstack",
    "-Wl,-z,relro",
    "-Wl,-z,now",
)


def link_shared(objects: Sequence[bytes], compiler: str | None = None) -> bytes:
    """Link objects of one machine into the bytes of a shared object that exports `__tvm_ffi_*` and `__llmos_*` only.

    `compiler` is the C compiler to link with (default: `find_linker`). Raises UserError if there is none or if it fails, PassError if an
    object needs a symbol that neither another object nor the C library has.
    """
    if not objects:
        raise PassError("nothing to link: the module gave no object")
    _check_symbols(objects)
    driver = compiler or find_linker(_machine(objects))
    with tempfile.TemporaryDirectory(prefix="llmos-link-") as directory:
        names = [f"{index}.o" for index in range(len(objects))]
        for name, data in zip(names, objects, strict=True):
            (Path(directory) / name).write_bytes(data)
        _run([driver, *_FLAGS, "-o", "code.so", *names], directory)
        return (Path(directory) / "code.so").read_bytes()


def find_linker(machine: int) -> str:
    """Path of a C compiler that links for `machine` (an ELF `e_machine` value). Raises UserError with what to install."""
    cross = next((path for name in _CROSS_COMPILERS.get(machine, ()) if (path := shutil.which(name))), None)
    if cross:
        return cross
    native = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    arch = _ARCH_NAMES.get(machine, f"ELF machine {machine}")
    if native is None:
        raise UserError("no C compiler found to link the artifact's code; install one (for example: apt install gcc) and compile again")
    if _compiler_machine(native) != machine:
        raise UserError(
            f"`{native}` can't link {arch} code; install gcc-{arch.replace('_', '-')}-linux-gnu, or choose a target of this machine"
        )
    return native


@cache
def _compiler_machine(compiler: str) -> int | None:
    """The machine that a compiler makes code for, from the triple it reports."""
    triple = subprocess.run([compiler, "-dumpmachine"], capture_output=True, text=True, check=False).stdout.strip()
    arch = triple.split("-")[0].replace("arm64", "aarch64").replace("amd64", "x86_64")
    return next((machine for machine, name in _ARCH_NAMES.items() if name == arch), None)


def _machine(objects: Sequence[bytes]) -> int:
    machines = {elf.machine(data) for data in objects}
    if len(machines) != 1:
        raise PassError("objects of different machines can't be linked into one shared object")
    return machines.pop()


def _check_symbols(objects: Sequence[bytes]) -> None:
    defined = frozenset().union(*(elf.defined_symbols(data) for data in objects))
    missing = frozenset().union(*(elf.undefined_symbols(data) for data in objects)) - defined - LIBC_SYMBOLS
    if missing:
        raise PassError(f"generated code calls {', '.join(sorted(missing))}, which no object defines")


def _run(command: list[str], directory: str) -> None:
    try:
        result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"can't run the C compiler `{command[0]}` to link: {error.strerror}; install one or name another") from error
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"`{command[0]}` failed to link the artifact's code ({last[0]}); check that it works for this target")
