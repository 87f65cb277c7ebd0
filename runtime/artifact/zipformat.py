"""The ZIP64 layout of an artifact (APPNOTE 6.3, sections 4.3.7 to 4.3.16); runtime/native/zip.c accepts exactly these bytes.

Every member is stored, with sizes and offsets in ZIP64 extra fields whatever their size, no time, and an alignment field (0xD935, as
Android's zipalign writes it) that moves its data to a multiple of 64 bytes. Members follow each other with nothing between.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from llmos.runtime.native.abi import ALIGNMENT

_VERSION = 45
_MADE_BY = 3 << 8 | _VERSION  # Unix, so that tools apply the mode below
_MODE = 0o100644 << 16
_UTF8 = 0x0800
_DATE = 0x0021  # 1980-01-01, the earliest date of the format
_IN_ZIP64 = 0xFFFFFFFF


@dataclass(frozen=True)
class ZipMember:
    """One member: the offset of its local header, its size and the CRC-32 of its data."""

    name: str
    offset: int
    num_bytes: int
    crc: int = 0

    @property
    def data_offset(self) -> int:
        return self.offset + len(local_header(self))

    @property
    def end(self) -> int:
        return self.data_offset + self.num_bytes


def local_header(member: ZipMember) -> bytes:
    name = member.name.encode()
    zip64 = struct.pack("<HHQQ", 1, 16, member.num_bytes, member.num_bytes)
    fixed = 30 + len(name) + len(zip64) + 6
    padding = -(member.offset + fixed) % ALIGNMENT
    extra = zip64 + struct.pack("<HHH", 0xD935, 2 + padding, ALIGNMENT) + bytes(padding)
    head = struct.pack("<IHHHHHIIIHH", 0x04034B50, _VERSION, _UTF8, 0, 0, _DATE, member.crc, _IN_ZIP64, _IN_ZIP64, len(name), len(extra))
    return head + name + extra


def central_header(member: ZipMember) -> bytes:
    name = member.name.encode()
    extra = struct.pack("<HHQQQ", 1, 24, member.num_bytes, member.num_bytes, member.offset)
    versions = struct.pack("<IHHHHHH", 0x02014B50, _MADE_BY, _VERSION, _UTF8, 0, 0, _DATE)
    sizes = struct.pack("<IIIHHHHHII", member.crc, _IN_ZIP64, _IN_ZIP64, len(name), len(extra), 0, 0, 0, _MODE, _IN_ZIP64)
    return versions + sizes + name + extra


def end_records(num_members: int, directory_offset: int, directory_bytes: int) -> bytes:
    """Return the ZIP64 end record, its locator and the end record."""
    end64 = struct.pack(
        "<IQHHIIQQQQ", 0x06064B50, 44, _MADE_BY, _VERSION, 0, 0, num_members, num_members, directory_bytes, directory_offset
    )
    locator = struct.pack("<IIQI", 0x07064B50, 0, directory_offset + directory_bytes, 1)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, _IN_ZIP64, _IN_ZIP64, 0)
    return end64 + locator + end
