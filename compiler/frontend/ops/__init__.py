"""Lowerings of aten ops to linalg: functions `(builder, result, *args)` over `Tensor`s, and their table (table.py)."""
