"""The little of the ELF format that code generation checks: machine and symbols of a 64-bit little-endian object (System V ABI, ELF-64)."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAGIC = b"\x7fELF"
EM_X86_64 = 62
EM_AARCH64 = 183

_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_SHN_UNDEF = 0
_STB_LOCAL = 0


class Symbol(NamedTuple):
    """An entry of a symbol table."""

    name: str
    is_defined: bool
    is_local: bool


class _Section(NamedTuple):
    kind: int
    offset: int
    num_bytes: int
    link: int


def machine(data: bytes) -> int:
    """Return the `e_machine` field, such as EM_X86_64. Raises ValueError for anything but a 64-bit little-endian ELF file."""
    if data[:6] != MAGIC + b"\x02\x01" or len(data) < 64:
        raise ValueError("not a 64-bit little-endian ELF file")
    (value,) = struct.unpack_from("<H", data, 18)
    return int(value)


def undefined_symbols(data: bytes) -> frozenset[str]:
    """Return the names that the object uses and doesn't define. Raises ValueError as `machine`."""
    return frozenset(s.name for s in symbols(data) if not s.is_defined and s.name)


def defined_symbols(data: bytes) -> frozenset[str]:
    """Return the names that the object defines for others (hidden ones included). Raises ValueError as `machine`."""
    return frozenset(s.name for s in symbols(data) if s.is_defined and not s.is_local)


def dynamic_symbols(data: bytes) -> frozenset[str]:
    """Return the names that a shared object exports. Raises ValueError as `machine`."""
    return frozenset(s.name for s in _table(data, _SHT_DYNSYM) if s.is_defined and s.name)


def symbols(data: bytes) -> list[Symbol]:
    """Return all entries of the object's symbol table. Raises ValueError as `machine`."""
    return list(_table(data, _SHT_SYMTAB))


def _table(data: bytes, kind: int) -> Iterator[Symbol]:
    machine(data)
    sections = list(_sections(data))
    for table in (s for s in sections if s.kind == kind):
        names = sections[table.link].offset
        for offset in range(table.offset, table.offset + table.num_bytes, 24):
            name, info, _, section = struct.unpack_from("<IBBH", data, offset)
            text = data[names + name : data.index(b"\0", names + name)].decode()
            yield Symbol(text, section != _SHN_UNDEF, info >> 4 == _STB_LOCAL)


def _sections(data: bytes) -> Iterator[_Section]:
    (table,) = struct.unpack_from("<Q", data, 40)
    entry_bytes, count = struct.unpack_from("<HH", data, 58)
    for offset in range(table, table + count * entry_bytes, entry_bytes):
        _, kind, _, _, start, num_bytes, link = struct.unpack_from("<IIQQQQI", data, offset)
        yield _Section(kind, start, num_bytes, link)
