"""Sampling against float64 and the definition: which tokens are kept, and which of them the random number of (seed, position) takes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.runtime.errors import ExecutionError, InputError
from llmos.runtime.native.binding import num_threads, set_num_threads
from llmos.runtime.native.sampling import RowSampler, RowSampling, SampledRow, sample_rows

from .handwritten import NATIVE, compile_c
from .test_native import has_sanitizer, run

Array = np.ndarray[Any, Any]
NO_TOKENS = np.zeros(0, np.int32)


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 as in Salmon et al., SC 2011."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(second >> 32) ^ c[1] ^ k[0], second & 0xFFFFFFFF, (first >> 32) ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return tuple(c)


def uniform(seed: int, position: int) -> float:
    low, high, *_ = philox((position & 0xFFFFFFFF, position >> 32, 0, 0), (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    return ((high << 32 | low) >> 11) * 2.0**-53


def changed(logits: Array, row: RowSampling, prompt: Array, generated: Array, allowed: Array | None) -> Array:
    """Bias, penalties and mask."""
    x = logits.astype(np.float64)
    for token, bias in row.logit_bias:
        x[token] += bias
    seen = np.union1d(prompt, generated)
    x[seen] = np.where(x[seen] > 0, x[seen] / row.repetition_penalty, x[seen] * row.repetition_penalty)
    counts = np.bincount(generated, minlength=len(x))
    x -= row.frequency_penalty * counts + row.presence_penalty * (counts > 0)
    if allowed is not None:
        x[~np.unpackbits(allowed.view(np.uint8), bitorder="little", count=len(x)).astype(bool)] = -np.inf
    return x


class Reference:
    """The tokens that are kept, ascending, and their probabilities. close: a rounding in float32 could have decided otherwise."""

    def __init__(self, x: Array, row: RowSampling) -> None:
        self.close = False
        x = x.astype(np.float64)
        if row.temperature == 0:
            self.ids, self.probabilities = np.array([np.argmax(x)]), np.ones(1)
            return
        x = (x - x.max()) / row.temperature
        ids = np.flatnonzero(x > -87)
        if 0 < row.top_k < len(ids):
            ids = ids[np.argsort(-x[ids], kind="stable")][: row.top_k]
        ids = self._prefix(ids, -x[ids], np.exp(x[ids]), row.top_p)
        weights = np.exp(x[ids])
        if row.min_p > 0:
            self.close |= bool(np.any(np.abs(weights / row.min_p - 1) < 1e-5))
            ids = ids[weights >= row.min_p]
        p = np.exp(x[ids]) / np.exp(x[ids]).sum()
        information = -np.log(p)
        ids = self._prefix(ids, np.abs(information - (p * information).sum()), p, row.typical_p)
        self.ids = np.sort(ids)
        self.probabilities = np.exp(x[self.ids]) / np.exp(x[self.ids]).sum()

    def _prefix(self, ids: Array, keys: Array, weights: Array, mass: float) -> Array:
        """The fewest ids, by ascending key and then id, that have the mass."""
        if mass >= 1:
            return ids
        order = np.lexsort((ids, keys))
        sums = np.cumsum(weights[order]) / weights.sum()
        count = int(np.searchsorted(sums, mass)) + 1
        around = keys[order][count - 1 : count + 1]
        self.close |= bool(np.any(np.abs(sums - mass) < 1e-5)) or (len(around) == 2 and 0 < around[1] - around[0] < 1e-5)
        return ids[order[:count]]

    def token(self, number: float) -> int | None:
        """Where the cumulative probability exceeds the number; None where that is too close to tell."""
        sums = np.cumsum(self.probabilities)
        if self.close or np.any(np.abs(sums - number) < 1e-5):
            return None
        return int(self.ids[np.searchsorted(sums, number, side="right")])


def sample_one(
    logits: Array, row: RowSampling, position: int = 0, history: tuple[Array, Array] | None = None, allowed: Array | None = None
) -> SampledRow:
    (result,) = sample_rows(logits[None], [row], [position], [history], [allowed])
    assert isinstance(result, SampledRow), result
    return result


def assert_as_reference(
    logits: Array, row: RowSampling, history: tuple[Array, Array] = (NO_TOKENS, NO_TOKENS), allowed: Array | None = None, draws: int = 40
) -> int:
    """Compare draws of a row with the reference's; returns how many could be compared."""
    reference = Reference(changed(logits, row, *history, allowed), row)
    positions = list(range(draws))
    results = sample_rows(np.repeat(logits[None], draws, 0), [row] * draws, positions, [history] * draws, [allowed] * draws)
    compared = 0
    for position, result in zip(positions, results, strict=True):
        assert isinstance(result, SampledRow), result
        expected = reference.token(uniform(row.seed, position))
        if expected is not None:
            assert result.token == expected, (row, position)
            compared += 1
        assert reference.close or result.token in reference.ids
    return compared


def random_logits(seed: int, size: int, scale: float) -> Array:
    return (np.random.default_rng(seed).normal(size=size) * scale).astype(np.float32)


def test_the_random_numbers_are_philox() -> None:
    # The known answers of Random123.
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox((ones,) * 4, (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    # Equal logits: the token is the number of the interval that the random number lies in.
    size = 1 << 14
    for seed, position in [(0, 0), (1, 0), (2**64 - 1, 2**40 + 3), (12345678901234, 7)]:
        token = sample_one(np.zeros(size, np.float32), RowSampling(temperature=1, seed=seed), position).token
        assert token == int(uniform(seed, position) * size)


FILTERS = {
    "temperature": {},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "typical": {"typical_p": 0.6},
    "all": {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1000, 5003])
def test_each_filter_keeps_and_draws_as_in_float64(name: str, size: int) -> None:
    compared = 0
    for seed in range(4):
        row = RowSampling(temperature=0.8, seed=seed, **FILTERS[name])
        compared += assert_as_reference(random_logits(seed, size, 2.5), row)
    assert compared >= 80


@given(
    st.integers(0, 10**6),
    st.integers(1, 300),
    st.sampled_from([0.2, 3.0, 30.0]),
    st.builds(
        RowSampling,
        temperature=st.sampled_from([0.0, 1e-40, 0.01, 0.7, 1.0, 5.0, 50.0]),
        top_k=st.sampled_from([0, 1, 3, 50, 1000]),
        top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-9]),
        min_p=st.sampled_from([0.0, 0.1, 1.0]),
        typical_p=st.sampled_from([1.0, 0.9, 0.2]),
        repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
        presence_penalty=st.sampled_from([0.0, 1.5, -0.5]),
        frequency_penalty=st.sampled_from([0.0, 0.4, -0.3]),
        logit_bias=st.sampled_from([(), ((0, 4.0),), ((0, -100.0), (0, 3.0))]),
        seed=st.integers(0, 2**64 - 1),
    ),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_all_together_as_in_float64(seed: int, size: int, scale: float, row: RowSampling, masked: bool, integral: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = random_logits(seed, size, scale)
    if integral:
        logits = np.round(logits)  # with many equal ones, which rounded penalties would tell apart
        row = replace(row, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
    if row.temperature < 0.01 and not integral:
        row = replace(row, temperature=0.0)  # differences of float32 at such a scale are no longer those of float64
    history = (rng.integers(0, size, 12).astype(np.int32), rng.integers(0, size, 12).astype(np.int32))
    allowed = rng.integers(0, 2**32, -(-size // 32), dtype=np.uint32) | np.uint32(1) if masked else None
    if row.temperature == 0:
        x = np.sort(changed(logits, row, *history, allowed))
        if size > 1 and 0 < x[-1] - x[-2] < 1e-4:
            return
    assert_as_reference(logits, row, history, allowed, draws=8)


@pytest.mark.parametrize("kind", ["normal", "peaked", "equal", "equal in parts"])
def test_large_vocabularies(kind: str) -> None:
    size = 50257
    logits = random_logits(1, size, 2)
    if kind == "peaked":
        logits[::1000] += 12
    elif kind == "equal":
        logits[:] = 3
    elif kind == "equal in parts":
        logits = np.round(logits)
    for filters in ({"top_k": 50}, {"top_k": 5000}, {"top_p": 0.9}, {"min_p": 0.05}, {"typical_p": 0.8}, {"top_k": 50, "top_p": 0.9}):
        row = RowSampling(temperature=0.9, seed=5, **filters)
        reference = Reference(logits, row)
        for position in range(4):
            token = sample_one(logits, row, position).token
            assert token in reference.ids
            expected = reference.token(uniform(5, position))
            assert expected is None or token == expected, filters


def test_equal_logits_rank_by_id() -> None:
    logits = np.array([1, 5, 5, 0, 5, 5], np.float32)
    assert sample_one(logits, RowSampling()).token == 1
    drawn = {sample_one(logits, RowSampling(temperature=1, top_k=2), position).token for position in range(50)}
    assert drawn == {1, 2}
    drawn = {sample_one(logits, RowSampling(temperature=1, top_p=0.6), position).token for position in range(50)}
    assert drawn == {1, 2, 4}
    assert sample_one(np.array([-0.0, 0.0], np.float32), RowSampling()).token == 0
    assert {sample_one(np.array([0.0, -0.0], np.float32), RowSampling(temperature=1, top_k=1), i).token for i in range(9)} == {0}


def test_impossible_tokens_are_never_sampled() -> None:
    logits = np.full(200, -np.inf, np.float32)
    logits[[3, 130]] = [0, 1]
    for filters in ({}, {"top_k": 100}, {"top_p": 0.999}, {"min_p": 1e-9}, {"typical_p": 0.99}, {"temperature": 1e300}):
        row = replace(RowSampling(temperature=9, seed=2), **filters)
        assert {sample_one(logits, row, position).token for position in range(60)} == {3, 130}, row


def test_a_row_that_fails_leaves_the_others() -> None:
    size = 70
    logits = random_logits(0, 6 * size, 1).reshape(6, size)
    logits[1, 69] = np.nan
    logits[2, 0] = np.inf
    logits[3] = -np.inf
    masks = [None, None, None, None, np.zeros(3, np.uint32), None]
    greedy = RowSampling()
    history = [None] * 5 + [(np.array([70], np.int32), NO_TOKENS)]
    results = sample_rows(logits, [greedy] * 5 + [RowSampling(repetition_penalty=2)], [0] * 6, history, masks)
    assert isinstance(results[0], SampledRow) and results[0].token == int(np.argmax(logits[0]))
    messages = [str(result) for result in results[1:]]
    assert all(isinstance(result, ExecutionError) for result in results[1:])
    assert messages[:2] == ["the model computed logits that are NaN or infinite"] * 2
    assert messages[2:4] == ["no token can be sampled: all are forbidden or impossible"] * 2
    assert messages[4] == "a token id is outside of the vocabulary of 70 tokens"


def test_a_mask_wins_over_a_bias() -> None:
    logits = np.zeros(40, np.float32)
    allowed = np.array([0, 1 << 4], np.uint32)  # token 36
    for temperature in (0.0, 1.0):
        row = RowSampling(temperature=temperature, logit_bias=((2, 100.0),))
        assert sample_one(logits, row, allowed=allowed).token == 36
        assert sample_one(logits, row).token == 2


def test_penalties() -> None:
    logits = np.array([2.0, -1.0, 1.0, 0.5], np.float32)
    prompt, generated = np.array([1, 1], np.int32), np.array([0, 0, 2], np.int32)
    history = (prompt, generated)
    assert sample_one(logits, RowSampling(repetition_penalty=4), history=history).token == 0  # 0.5, -4, 0.25, 0.5
    assert sample_one(logits, RowSampling(repetition_penalty=5), history=history).token == 3
    assert sample_one(logits, RowSampling(frequency_penalty=0.6), history=history).token == 0  # 0.8, -1, 0.4, 0.5
    assert sample_one(logits, RowSampling(frequency_penalty=0.8), history=history).token == 3
    assert sample_one(logits, RowSampling(presence_penalty=1.6), history=history).token == 3
    assert sample_one(logits, RowSampling(presence_penalty=-2), history=history).token == 0  # of generated tokens alone
    assert sample_one(logits, RowSampling(presence_penalty=9), history=(prompt, NO_TOKENS)).token == 0


def test_a_result_depends_on_its_row_alone() -> None:
    size, count = 4099, 9  # rows that start at any alignment
    logits = random_logits(3, size * count, 3).reshape(count, size)
    rows = [
        RowSampling(temperature=0.1 * i, top_k=i * 7, top_p=0.9, seed=i, num_logprobs=i % 4 - 1, repetition_penalty=1.2)
        for i in range(count)
    ]
    history = [(np.arange(i, dtype=np.int32), np.arange(5, dtype=np.int32)) for i in range(count)]
    before, threads = logits.copy(), num_threads()
    try:
        results = []
        for threads_used in (1, 2, 4):
            set_num_threads(threads_used)
            results.append(sample_rows(logits, rows, range(count), history))
    finally:
        set_num_threads(threads)
    alone = [sample_rows(logits[i][None].copy(), [rows[i]], [i], [history[i]])[0] for i in range(count)]
    assert results == [alone] * 3
    np.testing.assert_array_equal(logits, before)
    again = sample_rows(logits[::-1].copy(), rows[::-1], range(count)[::-1], history[::-1])
    assert again[::-1] == alone


def test_logprobs_are_those_of_the_models_own_distribution() -> None:
    logits = random_logits(8, 3001, 4)
    expected = logits - logits.max().astype(np.float64)
    expected = expected - np.log(np.exp(expected).sum())
    for row in (RowSampling(num_logprobs=4), RowSampling(temperature=2.5, top_k=20, logit_bias=((7, 30.0),), num_logprobs=4)):
        result = sample_one(logits, row)
        assert result.logprob == pytest.approx(expected[result.token], abs=2e-6)
        assert [token for token, _ in result.top] == list(np.argsort(-logits, kind="stable")[:4])
        assert [logprob for _, logprob in result.top] == pytest.approx(expected[[token for token, _ in result.top]], abs=2e-6)
    assert sample_one(logits, RowSampling(num_logprobs=0)).top == ()
    assert sample_one(logits, RowSampling()).logprob is None


def test_logprobs_of_equal_and_impossible_tokens() -> None:
    result = sample_one(np.array([0, 2, -np.inf, 2, 0], np.float32), RowSampling(num_logprobs=99))
    assert [token for token, _ in result.top] == [1, 3, 0, 4]
    assert sample_one(np.zeros(1, np.float32), RowSampling(num_logprobs=5)) == SampledRow(0, 0.0, ((0, 0.0),))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": np.zeros((1, 4))}, r"logits must be contiguous float32 \[1, vocabulary\], not float64 \[1, 4\]"),
        ({"logits": np.zeros((2, 4), np.float32)}, "logits must be contiguous"),
        ({"logits": np.zeros((1, 0), np.float32)}, "logits must be contiguous"),
        ({"logits": np.zeros((1, 8), np.float32)[:, ::2]}, "logits must be contiguous"),
        ({"positions": []}, "1 rows, but 0 positions"),
        ({"history": [(NO_TOKENS, np.zeros(2, np.int64))]}, r"history must be contiguous int32 \[tokens\], not int64 \[2\]"),
        ({"allowed": [np.zeros(2, np.uint32)]}, r"a mask must be contiguous uint32 \[1\], not uint32 \[2\]"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    given = {"logits": np.zeros((1, 4), np.float32), "rows": [RowSampling(presence_penalty=1)], "positions": [0], "history": [None]}
    with pytest.raises(InputError, match=message):
        sample_rows(**{**given, **arguments})


def test_no_rows_at_all() -> None:
    assert sample_rows(np.zeros((0, 4), np.float32), [], [], []) == []


def test_vectors_of_every_width_give_the_same_bits(tmp_path: Path) -> None:
    sources = [Path(__file__).parent / "softmax_test.c", *(NATIVE / name for name in ("error.c", "cpu.c"))]
    program = compile_c(tmp_path / "softmax", "-O1", "-Wno-psabi", "-I", NATIVE, *sources)
    done = run(program)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_random_settings_under_the_address_sanitizer(tmp_path: Path) -> None:
    if not has_sanitizer("address,undefined", tmp_path):
        pytest.skip("this compiler has no address sanitizer")
    sources = [NATIVE / name for name in ("sampling.c", "softmax.c", "pool.c", "error.c", "cpu.c")]
    options = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I", NATIVE)
    program = compile_c(tmp_path / "sampling", *options, Path(__file__).parent / "sampling_test.c", *sources, "-lpthread", "-ldl")
    done = run(program, os.environ.get("LLMOS_SAMPLING_CASES", "1000"), LLMOS_NUM_THREADS="2")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_a_sampler_that_is_used_again_gives_the_same() -> None:
    rng, sampler, kept = np.random.default_rng(3), RowSampler(), np.empty((3, 100), np.float32)
    settings = (
        [RowSampling(temperature=1, seed=4)] * 3,
        [RowSampling(temperature=0.5, top_k=7, num_logprobs=2), RowSampling(), RowSampling(repetition_penalty=2.0)],
    )
    past = np.arange(5, dtype=np.int32)
    mask = np.full(4, 0x0F0F0F0F, np.uint32)
    for turn in range(12):
        kept[:] = rng.standard_normal(kept.shape)
        rows, logits = settings[turn // 3 % 2], kept if turn % 3 else kept.copy()
        given = (rows, [turn, 5, 2 * turn], [(past, past[:turn])] * 3, [None, mask, None] if turn % 4 == 1 else None)
        assert sampler(logits, *given) == sample_rows(logits, *given)
