"""How many blocks the cache has: as asked for, or what free memory allows."""

from __future__ import annotations

from llmos.runtime.engine.generate.spec import GenerationSpec
from llmos.runtime.errors import InputError


def count_blocks(
    spec: GenerationSpec, *, num_sequences: int, max_blocks: int, cache_blocks: int | None, cache_bytes: int | None, usable_bytes: int
) -> int:
    """Return the number of cache blocks: `cache_blocks`, or as many as `cache_bytes` hold, or as many as `num_sequences` of the full
    context need, as far as `usable_bytes` hold them. At most `max_blocks`.

    Raises InputError if there is room for none.
    """
    if cache_blocks is not None:
        found = cache_blocks
    elif cache_bytes is not None:
        found = cache_bytes // spec.block_bytes
    else:
        wanted = num_sequences * -(-spec.max_length // spec.block_size)
        found = min(wanted, usable_bytes // spec.block_bytes)
    if found < 1:
        raise InputError(f"the cache has room for no block: one takes {spec.block_bytes:,} bytes, give it more memory")
    return min(found, max_blocks)
