"""The scheduler: which tokens of which sequences the next step computes. Pure policy, without device, threads or clock.

The rules, in order:
1. A sequence whose deadline has passed ends.
2. Sequences that lack one token (decodes) come first, so that no prompt delays them by more than its share of the step.
3. The rest of the step goes to sequences that lack more (prefills), in chunks. Those with the fewest tokens left come first, so that a
   short prompt doesn't wait for a long one, but half is kept for the oldest. Of several that lack the same block, one computes it.
4. Who lacks a block takes it from the youngest sequence that runs, if that is younger: it loses all its blocks and computes them again
   later. So the oldest sequence always advances, and none waits forever.
5. A sequence is admitted if its known tokens fit beside what the running ones still need. The first in line is never overtaken.
6. A sequence that missed its step because its mask was late is left out until the mask is there.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from collections.abc import Sequence as List

from llmos.runtime.engine.errors import DeadlineError, IntegrityError
from llmos.runtime.engine.generate.blocks import BlockPool
from llmos.runtime.engine.generate.draft import Draft
from llmos.runtime.engine.generate.prefix import PrefixHit, PrefixNode
from llmos.runtime.engine.generate.sequence import ABORT, ERROR, STOP, Sequence
from llmos.runtime.engine.generate.step import Chunk, Limits, Outcome, StepPlan

MANY_WAIT = 2  # see Scheduler.plan


class Scheduler:
    """Holds all sequences that have not ended: `running` and `waiting`, each in order. One thread at a time may call it."""

    def __init__(self, pool: BlockPool, limits: Limits, window: int | None = None) -> None:
        self.pool = pool
        self.limits = limits
        self._window = window
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self._held: dict[Sequence, Sequence] = {}  # follower -> leader
        self._timed: dict[Sequence, None] = {}  # those with a deadline
        self._next_deadline_s = math.inf  # none is earlier
        self._refused: tuple[Sequence, int] | None = None  # the first in line, for which there was only so much room

    # Public interface.

    @property
    def num_running(self) -> int:
        """Return how many sequences hold blocks."""
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        """Return how many sequences wait to run, or to run again."""
        return len(self.waiting) + len(self._held)

    def sequences(self) -> Iterator[Sequence]:
        """Yield all sequences that have not ended."""
        yield from self.running
        yield from self.waiting
        yield from self._held

    def blocks_needed(self, num_tokens: int) -> int:
        """Return how many blocks a sequence of so many tokens holds at most, alone and with the smallest chunks."""
        return self._span(num_tokens, 1)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its first step, and its followers until its prompt is computed."""
        _insert(self.waiting, sequence)
        self._held.update(dict.fromkeys(sequence.followers, sequence))
        if sequence.spec.deadline_s < math.inf:
            self._timed.update(dict.fromkeys([sequence, *sequence.followers]))
            self._next_deadline_s = min(self._next_deadline_s, sequence.spec.deadline_s)

    def remove(self, sequence: Sequence, reason: str = ABORT, error: Exception | None = None) -> bool:
        """End a sequence now and free its blocks. Return False if it had ended before. Not between plan and commit."""
        if sequence.finish_reason is not None:
            return False
        self._end(sequence, reason, error)
        return True

    def plan(self, now_s: float, max_prefill: int | None = None) -> StepPlan:
        """Choose the next step and reserve its blocks. commit or roll_back must follow.

        max_prefill: most tokens of prefills beside decodes; None: what the limits leave. It does not hold where more than MANY_WAIT times
        as many sequences wait for their first token as decode: then many would wait for few.
        """
        expired = self._expire(now_s)
        if self.waiting:
            self._admit()
        draft = Draft(self.limits)
        self._add_decodes(draft)
        num_waiting = len(self.running) - draft.num_decodes + len(self.waiting)
        if max_prefill is not None and 0 < num_waiting <= MANY_WAIT * draft.num_decodes:
            draft.num_tokens_left = min(draft.num_tokens_left, max(1, max_prefill))
        if draft.num_decodes < len(self.running):
            self._add_prefills(draft)
        return draft.plan(expired)

    def commit(self, plan: StepPlan, outcomes: List[Outcome]) -> None:
        """Take the results of a step. A sequence whose chunk failed ends with its error, and the others advance."""
        for (sequence, _, end, _, _), (sampled, prompt, error, is_deferred, is_complete) in zip(plan.chunks, outcomes, strict=True):
            if error is not None:
                self._end(sequence, ERROR, error)
                continue
            end -= is_deferred  # the last token's logits are wanted again
            sequence.num_computed = end
            sequence.num_prompt_rows += len(prompt)
            if end >= sequence.table.next_full:
                sequence.table.publish(sequence.tokens, end)
            if self._window is not None:
                sequence.table.free_behind(end)
            if sequence.followers and end >= sequence.num_prompt:
                self._release_followers(sequence)
            if sampled is not None:
                sequence.append(sampled.token)
                if sequence.finish_reason is not None:
                    self._end(sequence, sequence.finish_reason, None)
            elif is_complete:
                self._end(sequence, STOP, None)

    def roll_back(self, plan: StepPlan) -> None:
        """Give back what a step reserved, as if it had not been planned; preempted sequences remain so."""
        for chunk in plan.chunks:
            chunk.sequence.table.truncate(chunk.num_blocks)

    def check_integrity(self) -> None:
        """Check blocks, order and followers. Raises IntegrityError."""
        self.pool.check_integrity(sequence.table for sequence in self.running)
        for queue in (self.running, self.waiting):
            if any(a.spec.order >= b.spec.order for a, b in itertools.pairwise(queue)):
                raise IntegrityError("sequences are not in order")
        if any(sequence.table.num_held or sequence.num_computed for sequence in (*self.waiting, *self._held)):
            raise IntegrityError("a waiting sequence holds blocks")
        if any(sequence.num_computed >= sequence.num_tokens for sequence in self.sequences()):
            raise IntegrityError("a sequence has nothing left to compute")

    # Deadlines and ends.

    def _expire(self, now_s: float) -> tuple[Sequence, ...]:
        if now_s < self._next_deadline_s:
            return ()
        late = [sequence for sequence in self._timed if sequence.spec.deadline_s <= now_s]
        for sequence in late:
            self._end(sequence, ABORT, DeadlineError("the request timed out"))
        self._next_deadline_s = min((sequence.spec.deadline_s for sequence in self._timed), default=math.inf)
        return tuple(late)

    def _end(self, sequence: Sequence, reason: str, error: Exception | None) -> None:
        sequence.finish_reason, sequence.error = reason, error
        self._timed.pop(sequence, None)
        sequence.table.close()
        leader = self._held.pop(sequence, None)
        if leader is not None:
            leader.followers.remove(sequence)
        elif sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release_followers(sequence)

    def _release_followers(self, leader: Sequence) -> None:
        for sequence in leader.followers:
            del self._held[sequence]
            _insert(self.waiting, sequence)
        leader.followers.clear()

    # Planning.

    def _add_decodes(self, draft: Draft) -> None:
        for sequence in tuple(self.running):
            begin, table = sequence.num_computed, sequence.table
            if sequence.num_tokens - begin != 1 or table.node is None:  # a prefill, or one that has just lost its blocks
                continue
            if sequence.awaits_mask:
                continue
            if begin < table.num_tokens:
                draft.chunks[sequence] = Chunk(sequence, begin, begin + 1, begin, table.num_blocks)
            else:
                self._extend(draft, sequence, 1)
        draft.count_decodes()

    def _add_prefills(self, draft: Draft) -> None:
        """Add the prefills with the fewest tokens left first, but half of what the step has left goes to the oldest."""
        prefills = [sequence for sequence in self.running if sequence not in draft.chunks and _num_left(sequence) > 1]
        if not prefills:
            return
        for sequence in prefills:
            self._adopt(sequence)
        oldest, *others = prefills
        computed = {_next_block(oldest)}
        draft.hold_half()
        for sequence in sorted(others, key=_num_left):
            block = _next_block(sequence)
            if block[0] is None or (block in computed and _can_adopt(sequence)):  # it has just lost its blocks, or gets this one later
                continue
            self._extend(draft, sequence, draft.num_tokens_left)
            if sequence in draft.chunks:
                computed.add(block)
        draft.release_half()
        self._extend(draft, oldest, draft.num_tokens_left)

    def _adopt(self, sequence: Sequence) -> None:
        """Take over what other sequences with the same tokens have computed meanwhile."""
        if not _can_adopt(sequence):
            return
        adopted = sequence.table.adopt(sequence.tokens, sequence.num_tokens - 1)
        if adopted:
            if sequence.num_cached is not None and sequence.num_tokens == sequence.num_prompt and not sequence.num_preemptions:
                sequence.num_cached += adopted - sequence.num_computed
            sequence.num_computed = adopted
            sequence.table.free_behind(adopted)

    def _extend(self, draft: Draft, sequence: Sequence, num_tokens: int) -> None:
        """Put up to `num_tokens` tokens of a running sequence into the step, as far as there are blocks for them."""
        begin = sequence.num_computed
        while (end := self._last_token(draft, sequence, num_tokens)) <= begin:
            if end < 0 or not self._preempt_younger(draft, sequence):
                return
        draft.add(sequence, end)

    def _last_token(self, draft: Draft, sequence: Sequence, num_tokens: int) -> int:
        """Return the end of the longest chunk that fits; -1 if the step has no room for any."""
        begin = sequence.num_computed
        end = min(begin + num_tokens, begin + draft.num_tokens_left, sequence.num_tokens)
        if sequence.wants_prompt_rows:
            end = min(end, max(begin, sequence.num_prompt_rows) + draft.num_rows_left)
        elif end == sequence.num_tokens and not draft.num_rows_left:
            end -= 1
        if end <= begin:
            return -1
        return min(end, sequence.table.num_tokens + self.pool.num_free * self.pool.block_size)

    def _preempt_younger(self, draft: Draft, sequence: Sequence) -> bool:
        """Take the blocks of the youngest running sequence. Return False if none is younger."""
        victim = self.running[-1]
        if victim is sequence:
            return False
        self.running.pop()
        draft.drop(victim)
        victim.table.close()
        victim.num_computed = 0
        victim.num_preemptions += 1
        _insert(self.waiting, victim)
        return True

    def _admit(self) -> None:
        """Let waiting sequences run, as far as there is room."""
        while self.waiting and len(self.running) < self.limits.max_requests:
            sequence, room = self.waiting[0], self._room()
            if (sequence, room) == self._refused:  # as in the step before: don't look for its prefix again
                return
            hit = self._find_prefix(sequence)
            if self.running and self._blocks_taken(sequence, hit) > room:
                self._refused = sequence, room
                return
            sequence.table.open(hit)
            sequence.num_computed = 0 if hit is None else hit.num_blocks * self.pool.block_size
            if sequence.num_cached is None:
                sequence.num_cached = sequence.num_computed
            _insert(self.running, self.waiting.pop(0))

    def _find_prefix(self, sequence: Sequence) -> PrefixHit | None:
        """Return what of a waiting sequence is cached; at least one token is computed, and all whose logits are wanted."""
        most = sequence.num_prompt_rows if sequence.wants_prompt_rows else sequence.num_tokens - 1
        return sequence.table.find_prefix(sequence.tokens, most)

    def _room(self) -> int:
        """Return how many blocks another sequence may take, so that the running ones get what they need and each has one to spare."""
        promised = sum([max(0, self._peak(each) - each.table.num_held) for each in self.running])
        return self.pool.num_free - promised - len(self.running)

    def _blocks_taken(self, sequence: Sequence, hit: PrefixHit | None) -> int:
        """Return how many free blocks a waiting sequence takes until its known tokens are computed."""
        shared = () if hit is None else hit.blocks
        return self._peak(sequence) - len(shared) + self.pool.num_unused(shared)

    def _peak(self, sequence: Sequence) -> int:
        """Return how many blocks a sequence holds at most until its known tokens are computed."""
        return self._span(sequence.num_tokens, self.limits.max_tokens)

    def _span(self, num_tokens: int, chunk: int) -> int:
        size = self.pool.block_size
        count = -(-num_tokens // size)
        return count if self._window is None else min(count, (self._window + chunk - 3) // size + 2)


def _num_left(sequence: Sequence) -> int:
    return sequence.num_tokens - sequence.num_computed


def _next_block(sequence: Sequence) -> tuple[PrefixNode | None, bytes]:
    """Return which block a sequence computes next: its prefix and its tokens."""
    return sequence.table.node, sequence.table.next_tokens(sequence.tokens)


def _can_adopt(sequence: Sequence) -> bool:
    """Whether a sequence may take its next block from another one: at least one token is computed, and all whose logits are wanted."""
    return sequence.table.next_full < sequence.num_tokens and not sequence.wants_prompt_rows


def _insert(queue: list[Sequence], sequence: Sequence) -> None:
    bisect.insort(queue, sequence, key=lambda each: each.spec.order)
