"""Grammars that generated tokens follow: which tokens may come next is computed beside the steps, in threads.

A mask takes microseconds, but that of a difficult grammar milliseconds. So it is computed while the model runs, and a step never waits for
one longer than GRACE_S: a sequence whose mask is late leaves the step without a token, and is scheduled again when the mask is there.
Whether it was late changes no token, since a mask depends on the grammar and the tokens of its own sequence alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from llmos.runtime.engine.model import Array
from llmos.runtime.errors import InputError, LlmosError

GRACE_S = 0.001  # that a step waits for masks that are not there when the model is done
_FAST_S = 0.0005  # guides that took less the last time share a job; others can't make them late


class Guide(Protocol):
    """The state of a grammar behind the tokens of one sequence; used by one thread at a time."""

    def next_mask(self, token: int | None) -> Array | None:
        """Take the token that was sampled, None before the first one, and return the tokens that may follow.

        uint32 [ceil(vocab_size / 32)], as the sampler takes it; None where the text is complete. Raises LlmosError if it can't go on.
        """
        ...


class Grammar(Protocol):
    """What the texts of a request must be."""

    def start(self) -> Guide:
        """Return the state before the first token; callable from any thread."""
        ...


class Guidance:
    """What a sequence needs of its grammar. mask, is_complete and error are of the tokens so far, once `ready` is set.

    is_late: a step had to leave its sequence out. The engine's thread and, between `begin` and `ready`, one of a worker use it.
    """

    __slots__ = ("_grammar", "_guide", "_token", "error", "is_begun", "is_complete", "is_late", "mask", "ready", "run_s")

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._guide: Guide | None = None
        self._token: int | None = None
        self.mask: Array | None = None
        self.is_complete = False
        self.error: Exception | None = None
        self.is_begun = False
        self.is_late = False
        self.ready = threading.Event()
        self.run_s = 1.0  # of the last computation; the first one is not known to be fast

    @property
    def is_awaited(self) -> bool:
        """Whether a step has left the sequence out, and the mask is still not there."""
        return self.is_late and not self.ready.is_set()

    def begin(self, token: int | None) -> None:
        """Take the last token, before the computation of the mask behind it is started."""
        self.is_begun, self.is_late, self._token = True, False, token
        self.ready.clear()

    def compute(self) -> None:
        """Compute the mask. What goes wrong is kept: it ends this sequence alone."""
        begin_s = time.perf_counter()
        try:
            if self._guide is None:
                self._guide = self._grammar.start()
            self.mask = self._guide.next_mask(self._token)
            self.is_complete = self.mask is None
        except LlmosError as error:
            self.error = error
        except Exception as error:  # of the library: not the engine's
            self.error = InputError(f"structured_outputs: the grammar can't be followed ({error!r:.200})")
        self.run_s = time.perf_counter() - begin_s
        self.ready.set()


class GuideWorkers:
    """Threads that compute masks. on_ready: called from them when a mask is there that a step has missed."""

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self._on_ready = on_ready
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "llmos-guide")

    def start(self, guidances: Iterable[Guidance]) -> None:
        """Compute the masks of guidances that have begun."""
        fast = []
        for guidance in guidances:
            if guidance.run_s < _FAST_S:
                fast.append(guidance)
            else:
                self._pool.submit(self._compute, [guidance])
        if fast:
            self._pool.submit(self._compute, fast)

    def close(self) -> None:
        """Compute no more masks."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compute(self, guidances: list[Guidance]) -> None:
        for guidance in guidances:
            guidance.compute()
            if guidance.is_late:
                self._on_ready()
