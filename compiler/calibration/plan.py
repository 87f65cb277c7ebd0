"""The plan of `--quant auto`: which products are quantized, and why; the artifact's metadata holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """What becomes of one product. error: of the outputs where it alone is quantized, in the budget's figure."""

    label: str
    is_kept: bool
    is_smoothed: bool
    error: float


@dataclass(frozen=True)
class Plan:
    """Choices in program order. error: of the whole plan on `num_calls` calibration calls; speedup: float's time over its own."""

    choices: tuple[Choice, ...]
    budget: str
    figure: str
    error: float
    speedup: float
    num_calls: int

    @property
    def keep(self) -> tuple[int, ...]:
        """Numbers of the products that stay in float."""
        return tuple(number for number, each in enumerate(self.choices) if each.is_kept)

    @property
    def why(self) -> str:
        """One line."""
        count, kept = len(self.choices), len(self.keep)
        least = f"all {count} products are quantized" if not kept else f"{kept} of {count} products stay in float, those that cost most"
        return (
            f"{least}: {self.figure} {self.error:.3g} on {self.num_calls} calibration calls, budget {self.budget}; "
            f"{self.speedup:.2f} times as fast as float on the machine that compiled it"
        )

    def to_json(self) -> dict[str, Any]:
        """As metadata; figures have three digits."""
        products = [
            {"label": each.label, "kept": each.is_kept, "smoothed": each.is_smoothed, "error": float(f"{each.error:.3g}")}
            for each in self.choices
        ]
        return {"why": self.why, "figure": self.figure, "products": products}
