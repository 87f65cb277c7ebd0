"""What the code of one target consists of: a shared object of host functions, PTX, and what ptxas made of it; as one sequence of bytes."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

HOST, PTX, CUBIN = "host.so", "kernels.ptx", "kernels.cubin"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Parts:
    """cubin: empty where there was no ptxas."""

    host: bytes
    ptx: str
    cubin: bytes = b""

    def to_bytes(self) -> bytes:
        """Return a zip file of the parts; equal parts give equal bytes."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as file:
            for name, data in ((HOST, self.host), (PTX, self.ptx.encode()), (CUBIN, self.cubin)):
                if data:
                    file.writestr(zipfile.ZipInfo(name, _EPOCH), data)
        return packed.getvalue()

    @classmethod
    def of(cls, data: bytes) -> Parts:
        """Read what `to_bytes` gave."""
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return cls(file.read(HOST), file.read(PTX).decode(), file.read(CUBIN) if CUBIN in file.namelist() else b"")
