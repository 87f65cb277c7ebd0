"""How each aten op becomes linalg: functions `(builder, result, *args)` over `Tensor`s, and the table that names them (table.py)."""
