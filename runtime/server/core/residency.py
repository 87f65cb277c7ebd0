"""Which models stay in memory: those used last, within a budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmos.runtime.errors import UserError

STATIC, DYNAMIC, ISOLATED = "static", "dynamic", "isolated"
RESOURCES = (STATIC, DYNAMIC, ISOLATED)


def check_resource(text: str) -> str:
    """Return a resource policy. Raises UserError if it is none."""
    if text not in RESOURCES:
        raise UserError(f"'{text:.60}' is no resource policy: give one of {', '.join(RESOURCES)}")
    return text


@dataclass(frozen=True)
class Resident:
    """A model in memory. last_s: when a request last began to use it. used: whether one does now, for whose end its unloading would wait.
    removable: whether it may be unloaded.
    """

    name: str
    num_bytes: int
    last_s: float
    used: bool
    removable: bool


def to_remove(residents: Iterable[Resident], needed_bytes: int, budget_bytes: int) -> list[str] | None:
    """Return the models to unload so that `needed_bytes` more fit into the budget; None if they can't.

    Those that nobody uses go first, the least recently used one before others. No more are removed than are needed.
    """
    residents = list(residents)
    excess = sum(resident.num_bytes for resident in residents) + needed_bytes - budget_bytes
    removed = []
    for resident in sorted(residents, key=lambda resident: (resident.used, resident.last_s)):
        if excess <= 0:
            break
        if resident.removable and resident.num_bytes:
            removed.append(resident.name)
            excess -= resident.num_bytes
    return removed if excess <= 0 else None
