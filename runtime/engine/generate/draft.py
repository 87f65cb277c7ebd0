"""A step that is being planned."""

from __future__ import annotations

from llmos.runtime.engine.generate.sequence import Sequence
from llmos.runtime.engine.generate.step import Chunk, Limits, StepPlan


class Draft:
    """chunks: by sequence; the first `num_decodes` are decodes. num_tokens_left, num_rows_left: what others may still take."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.chunks: dict[Sequence, Chunk] = {}
        self.preempted: list[Sequence] = []
        self.num_tokens_left = limits.max_tokens
        self.num_rows_left = limits.max_rows
        self.num_decodes = 0
        self._held = 0, 0

    def count_decodes(self) -> None:
        """Take note that all chunks so far are those of one token, and that no others will be."""
        self.num_decodes = len(self.chunks)
        self.num_tokens_left = self._limits.max_tokens - self.num_decodes
        self.num_rows_left = self._limits.max_rows - self.num_decodes

    def hold_half(self) -> None:
        """Keep half of what is left, a token and a row at least, for later."""
        self._held = (self.num_tokens_left + 1) // 2, 1
        self._add_left(-1)

    def release_half(self) -> None:
        """Allow what was kept."""
        self._add_left(1)

    def _add_left(self, sign: int) -> None:
        num_tokens, num_rows = self._held
        self.num_tokens_left += sign * num_tokens
        self.num_rows_left += sign * num_rows

    def add(self, sequence: Sequence, end: int) -> None:
        """Add the tokens of a sequence up to `end`, and reserve their blocks."""
        begin, table = sequence.num_computed, sequence.table
        first_row = max(begin, sequence.num_prompt_rows) if sequence.wants_prompt_rows else end - (end == sequence.num_tokens)
        self.chunks[sequence] = Chunk(sequence, begin, end, min(first_row, end), table.num_blocks)
        table.reserve(end)
        self.num_tokens_left -= end - begin
        self.num_rows_left -= max(0, end - first_row)

    def drop(self, sequence: Sequence) -> None:
        """Remove a sequence, since it lost its blocks."""
        self.preempted.append(sequence)
        if sequence not in self.chunks:
            return
        self.num_decodes -= list(self.chunks).index(sequence) < self.num_decodes
        chunk = self.chunks.pop(sequence)
        self.num_tokens_left += chunk.end - chunk.begin
        self.num_rows_left += chunk.end - chunk.first_row

    def plan(self, expired: tuple[Sequence, ...]) -> StepPlan:
        """Return the step."""
        chunks = tuple(self.chunks.values())
        num_tokens = num_rows = self.num_decodes
        for chunk in chunks[self.num_decodes :]:
            num_tokens += chunk.end - chunk.begin
            num_rows += chunk.end - chunk.first_row
        return StepPlan(chunks, expired, tuple(self.preempted), num_tokens, num_rows, self.num_decodes)
