"""How many blocks the cache has: as asked for, or what free memory allows."""

from __future__ import annotations

from pathlib import Path

from llmos.runtime.engine.generate.spec import GenerationSpec
from llmos.runtime.errors import InputError

_CGROUP_FILES = (  # limit and use of memory, cgroup 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def count_blocks(
    spec: GenerationSpec, *, num_sequences: int, max_blocks: int, cache_blocks: int | None, cache_bytes: int | None, memory_fraction: float
) -> int:
    """Return the number of cache blocks: `cache_blocks`, or as many as `cache_bytes` hold, or as many as `num_sequences` of the full
    context need, as far as a fraction of the free memory holds them. At most `max_blocks`.

    Raises InputError if there is room for none.
    """
    if cache_blocks is not None:
        found = cache_blocks
    elif cache_bytes is not None:
        found = cache_bytes // spec.block_bytes
    else:
        wanted = num_sequences * -(-spec.max_length // spec.block_size)
        found = min(wanted, int(available_bytes() * memory_fraction) // spec.block_bytes)
    if found < 1:
        raise InputError(f"the cache has room for no block: one takes {spec.block_bytes:,} bytes, give it more memory")
    return min(found, max_blocks)


def available_bytes() -> int:
    """Return the bytes of memory that can still be used, by the system's own estimate and the limit of the container."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    system = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([system, *(limit - use for limit, use in map(_cgroup, _CGROUP_FILES) if limit)])


def _cgroup(files: tuple[str, str]) -> tuple[int, int]:
    """Return limit and use in bytes; 0 where there is no limit."""
    try:
        limit, use = (Path(name).read_text().strip() for name in files)
        return (int(limit), int(use)) if limit.isdigit() else (0, 0)
    except (OSError, ValueError):
        return 0, 0
