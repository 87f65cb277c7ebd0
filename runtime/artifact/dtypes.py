"""Element types of tensors: their names in manifests (numpy's, and bfloat16), sizes, and names elsewhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """One element type. `storage` is the numpy dtype that holds its bits if numpy lacks the type."""

    name: str
    num_bytes: int
    storage: str
    safetensors: str


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("bool", 1, "bool", "BOOL"),
        DType("int8", 1, "int8", "I8"),
        DType("int16", 2, "int16", "I16"),
        DType("int32", 4, "int32", "I32"),
        DType("int64", 8, "int64", "I64"),
        DType("uint8", 1, "uint8", "U8"),
        DType("uint16", 2, "uint16", "U16"),
        DType("uint32", 4, "uint32", "U32"),
        DType("uint64", 8, "uint64", "U64"),
        DType("float16", 2, "float16", "F16"),
        DType("bfloat16", 2, "uint16", "BF16"),
        DType("float32", 4, "float32", "F32"),
        DType("float64", 8, "float64", "F64"),
        DType("complex64", 8, "complex64", "C64"),
        DType("complex128", 16, "complex128", "C128"),
    )
}
