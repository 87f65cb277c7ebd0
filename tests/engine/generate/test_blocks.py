"""The block pool and the tree of prefixes: who holds a block, what is found again, and what is evicted first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmos.runtime.engine.errors import IntegrityError
from llmos.runtime.engine.generate.blocks import BlockPool, BlockTable

Array = np.ndarray[Any, Any]
TOKENS = np.arange(40, dtype=np.int32)


def table_of(pool: BlockPool, tokens: Array, key: str = "a") -> BlockTable:
    """Hold and publish blocks for tokens, as a sequence that computed them all."""
    table = BlockTable(pool, key)
    table.open(table.find_prefix(tokens, len(tokens) - 1))
    table.reserve(len(tokens))
    table.publish(tokens, len(tokens))
    return table


def cached(pool: BlockPool, tokens: Array, key: str = "a") -> int:
    hit = BlockTable(pool, key).find_prefix(tokens, len(tokens))
    return 0 if hit is None else hit.num_blocks


def test_full_blocks_are_found_again_and_shared() -> None:
    pool = BlockPool(8, 4)
    first = table_of(pool, TOKENS[:10])
    second = table_of(pool, np.concatenate([TOKENS[:8], [90, 91, 92]]).astype(np.int32))
    assert second.held[:2] == first.held[:2]
    assert second.held[2] != first.held[2]
    pool.check_integrity([first, second])
    assert pool.num_free == 4
    for table in (first, second):
        table.close()
    assert pool.num_free == 8
    assert cached(pool, TOKENS[:10]) == 2
    pool.check_integrity()


def test_tokens_decide_not_their_place() -> None:
    pool = BlockPool(8, 4)
    table_of(pool, TOKENS[:8]).close()
    assert cached(pool, TOKENS[4:8]) == 0, "the same tokens behind another prefix"
    assert cached(pool, TOKENS[:8], "b") == 0, "the same tokens of another principal"
    assert cached(pool, np.concatenate([TOKENS[:4], TOKENS[:4]])) == 1


def test_tokens_of_equal_hashes_are_told_apart() -> None:
    class SameHash(bytes):
        def __hash__(self) -> int:
            return 7

    pool = BlockPool(8, 4)
    root = pool.tree.pin_root("a")
    nodes = [pool.tree.child(root, SameHash(TOKENS[begin : begin + 4].tobytes())) for begin in range(0, 16, 4)]
    assert len(set(nodes)) == 4
    assert pool.tree.child(root, SameHash(TOKENS[4:8].tobytes())) is nodes[1]


def test_the_end_of_the_prefix_unused_longest_is_evicted_first() -> None:
    pool = BlockPool(6, 4)
    table_of(pool, TOKENS[:12], "old").close()
    table_of(pool, TOKENS[:12], "new").close()
    holder = BlockTable(pool, "other")
    holder.open(None)
    holder.reserve(4)
    assert (cached(pool, TOKENS[:12], "old"), cached(pool, TOKENS[:12], "new")) == (2, 3)
    holder.reserve(16)
    assert (cached(pool, TOKENS[:12], "old"), cached(pool, TOKENS[:12], "new")) == (0, 2)
    assert pool.num_evictions == 4
    pool.check_integrity([holder])


def test_equal_blocks_become_one() -> None:
    pool = BlockPool(8, 4)
    tables = [BlockTable(pool, "a") for _ in range(3)]
    for table in tables:
        table.open(None)
        table.reserve(8)
    assert pool.num_free == 2
    for table in tables:
        table.publish(TOKENS, 8)
    assert pool.num_free == 6
    assert tables[0].held == tables[1].held == tables[2].held
    pool.check_integrity(tables)


def test_what_another_has_published_meanwhile_is_adopted() -> None:
    pool = BlockPool(16, 4)
    slow, fast = BlockTable(pool, "a"), BlockTable(pool, "a")
    for table in (slow, fast):
        table.open(None)
    slow.reserve(6)
    slow.publish(TOKENS, 6)
    assert slow.adopt(TOKENS, 40) == 0
    fast.reserve(18)
    fast.publish(TOKENS, 18)
    assert slow.adopt(TOKENS, 15) == 12
    assert slow.held == fast.held[:3]
    assert slow.adopt(TOKENS, 16) == 16
    assert slow.adopt(TOKENS, 40) == 0
    pool.check_integrity([slow, fast])
    assert pool.num_free == 16 - 5
    for table in (slow, fast):
        table.close()
    pool.check_integrity()


def test_blocks_behind_the_window_are_given_back_and_a_hit_does_without_them() -> None:
    pool = BlockPool(10, 4, window=6)
    table = BlockTable(pool, "a")
    table.open(None)
    for end in range(4, 33, 4):
        table.reserve(end)
        table.publish(TOKENS, end)
        table.free_behind(end)
    assert (table.first, table.num_blocks, table.num_held) == (6, 8, 2)
    assert table.row[:6].tolist() == [0] * 6
    other = BlockTable(pool, "b")
    other.open(None)
    other.reserve(8 * 4)
    pool.check_integrity([table, other])
    hit = BlockTable(pool, "a").find_prefix(TOKENS, 33)
    assert hit is not None
    assert (hit.num_blocks, hit.first, hit.blocks) == (8, 6, tuple(table.held))
    assert BlockTable(pool, "a").find_prefix(TOKENS, 31) is None, "a block of its window is evicted"
    for each in (table, other):
        each.close()
    pool.check_integrity()


def test_what_a_step_reserved_is_given_back() -> None:
    pool = BlockPool(8, 4)
    table = table_of(pool, TOKENS[:8])
    before = table.held
    table.reserve(23)
    table.truncate(2)
    assert table.held == before
    assert not table.row[2:].any()
    pool.check_integrity([table])


def test_nothing_is_left_of_prefixes_without_blocks() -> None:
    pool = BlockPool(4, 4)
    for key in "abcdef":
        table_of(pool, TOKENS[:16], key).close()
        pool.check_integrity()
    assert sum(1 for _ in pool.tree.nodes()) == 1 + 4


def test_a_lost_block_is_noticed() -> None:
    pool = BlockPool(8, 4)
    table = table_of(pool, TOKENS[:10])
    with pytest.raises(IntegrityError, match=r"block \d has 1 users, 0 are known"):
        pool.check_integrity()
    table.row[1] = table.row[0]
    with pytest.raises(IntegrityError, match="are known"):
        pool.check_integrity([table])
