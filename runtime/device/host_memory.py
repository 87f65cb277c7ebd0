"""Memory of the host: how much of it can still be used."""

from __future__ import annotations

from pathlib import Path

_CGROUP_FILES = (  # limit and use of memory, cgroup 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


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
