"""llama.cpp for benchmarks/llm.py: `python llm_peer_llama_cpp.py MODEL.gguf THREADS`.

Its own C API, so that the tokens of all requests are one batch in each step, as its server has them; the likeliest token is taken.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial

import llama_cpp as lc
import numpy as np
from llm_peer import answer_points

BATCH = 512  # tokens of one call, llama.cpp's default


class Context:
    """Sequences of a model, from nothing."""

    def __init__(self, model: lc.llama_model_p, threads: int, sequences: int, length: int) -> None:
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * length, sequences
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        self._handle = lc.llama_init_from_model(model, params)
        self._num_tokens = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
        self._batch = lc.llama_batch_init(BATCH, 0, 1)

    def step(self, parts: Sequence[tuple[int, int, Sequence[int], bool]]) -> dict[int, int]:
        """Runs (sequence, first position, tokens, whether it ends the prompt) and gives the next token of each that ends."""
        batch, count, ends = self._batch, 0, {}
        for sequence, first, tokens, is_last in parts:
            for offset, token in enumerate(tokens):
                batch.token[count], batch.pos[count] = token, first + offset
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, sequence
                batch.logits[count] = is_last and offset == len(tokens) - 1
                count += 1
            if is_last:
                ends[sequence] = count - 1
        batch.n_tokens = count
        if lc.llama_decode(self._handle, batch):
            raise RuntimeError("llama_decode failed")
        return {sequence: self._likeliest(place) for sequence, place in ends.items()}

    def _likeliest(self, place: int) -> int:
        logits = np.ctypeslib.as_array(lc.llama_get_logits_ith(self._handle, place), (self._num_tokens,))
        return int(logits.argmax())

    def close(self) -> None:
        lc.llama_batch_free(self._batch)
        lc.llama_free(self._handle)


def chunks(prompts: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, int, Sequence[int], bool]]]:
    """The prompts in calls of at most BATCH tokens."""
    parts: list[tuple[int, int, Sequence[int], bool]] = []
    room = BATCH
    for sequence, prompt in enumerate(prompts):
        start = 0
        while start < len(prompt):
            taken = prompt[start : start + room]
            parts.append((sequence, start, taken, start + len(taken) == len(prompt)))
            start, room = start + len(taken), room - len(taken)
            if room == 0:
                yield parts
                parts, room = [], BATCH
    if parts:
        yield parts


def run(model: lc.llama_model_p, threads: int, prompt: int, generated: int, batch: int) -> dict[str, float]:
    """Seconds from the start to the first token of the last request, and to the last token."""
    rng = np.random.default_rng(0)
    vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    prompts = rng.integers(10, vocabulary, (batch, prompt)).tolist()
    context = Context(model, threads, batch, prompt + generated + 16)
    start = time.perf_counter()
    following: dict[int, int] = {}
    for parts in chunks(prompts):
        following |= context.step(parts)
    first = time.perf_counter() - start
    for position in range(prompt, prompt + generated - 1):
        following = context.step([(sequence, position, [token], True) for sequence, token in following.items()])
    last = time.perf_counter() - start
    context.close()
    return {"first_s": first, "last_s": last}


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp can't load {path}")
    print(lc.llama_print_system_info().decode(), file=sys.stderr)
    answer_points(partial(run, model, threads))


if __name__ == "__main__":
    main()
