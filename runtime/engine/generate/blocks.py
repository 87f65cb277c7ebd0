"""The block pool: which blocks of the cache are free, in use, or cached for the next request with the same prefix."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable

import numpy as np

from llmos.runtime.engine.errors import IntegrityError
from llmos.runtime.engine.generate.prefix import PrefixHit, PrefixNode, PrefixTree
from llmos.runtime.engine.model import Array


class BlockPool:
    """A block is in use (references > 0), cached (a node of the prefix tree knows it) or free; the cached one unused longest goes first."""

    def __init__(self, num_blocks: int, block_size: int, window: int | None = None) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.tree = PrefixTree(block_size, window)
        self.num_evictions = 0
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # unused longest first
        self._num_refs = [0] * num_blocks
        self._nodes: list[PrefixNode | None] = [None] * num_blocks

    @property
    def num_free(self) -> int:
        """Return how many blocks can be allocated, those of cached prefixes included."""
        return len(self._free) + len(self._cached)

    def num_unused(self, blocks: Iterable[int]) -> int:
        """Return how many of these blocks nobody uses."""
        return sum(self._num_refs[block] == 0 for block in blocks)

    def allocate(self) -> int:
        """Return a block for one user; there must be one."""
        block = self._free.pop() if self._free else self._evict()
        self._num_refs[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a user to a block."""
        if self._num_refs[block] == 0:
            del self._cached[block]
        self._num_refs[block] += 1

    def release(self, block: int) -> None:
        """Remove a user from a block; what a prefix knows remains until the room is needed."""
        self._num_refs[block] -= 1
        if self._num_refs[block]:
            return
        if self._nodes[block] is None:
            self._free.append(block)
        else:
            self._cached[block] = None

    def publish(self, node: PrefixNode, block: int) -> int:
        """Let a full block serve other requests. Return the block to use from now on: an equal one where the prefix already has one."""
        known = node.block
        if known is None:
            self.tree.set_block(node, block)
            self._nodes[block] = node
            return block
        if known != block:  # equal bit for bit, since a token's keys and values depend on its prefix alone
            self.share(known)
            self.release(block)
        return known

    def check_integrity(self, tables: Iterable[BlockTable] = ()) -> None:
        """Check that every block is accounted for, given all tables in use. Raises IntegrityError."""
        tables = list(tables)
        refs = Counter(block for table in tables for block in table.held)
        if [refs[block] for block in range(self.num_blocks)] != self._num_refs:
            lost = next(block for block in range(self.num_blocks) if refs[block] != self._num_refs[block])
            raise IntegrityError(f"block {lost} has {self._num_refs[lost]} users, {refs[lost]} are known")
        unused = sorted([*self._free, *self._cached])
        if unused != [block for block in range(self.num_blocks) if not refs[block]]:
            raise IntegrityError(f"{self.num_blocks - len(refs)} blocks are unused, {len(unused)} are listed")
        known = self.tree.check_integrity(Counter(table.node for table in tables if table.node is not None))
        if known != {node: block for block, node in enumerate(self._nodes) if node is not None}:
            raise IntegrityError("cached prefixes and blocks don't refer to each other")
        if any((self._nodes[block] is None) != (block not in self._cached) for block in unused):
            raise IntegrityError("an unused block is neither free nor cached")

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        node = self._nodes[block]
        assert node is not None
        self._nodes[block] = None
        self.tree.drop_block(node)
        self.num_evictions += 1
        return block


class BlockTable:
    """The blocks of one sequence, in order: int32 `row`, of which the first `num_blocks` entries count and those before `first` are 0.

    node: the cached prefix of the `num_published` first blocks, pinned; None while the sequence holds nothing. version: changes with `row`.
    """

    def __init__(self, pool: BlockPool, key: Hashable) -> None:
        self._pool = pool
        self._key = key
        self.row: Array = np.zeros(8, np.int32)
        self.num_blocks = self.first = self.num_published = self.version = 0
        self.node: PrefixNode | None = None

    @property
    def held(self) -> list[int]:
        """Return the numbers of the blocks in use, in order."""
        blocks: list[int] = self.row[self.first : self.num_blocks].tolist()
        return blocks

    @property
    def num_tokens(self) -> int:
        """Return for how many tokens there are blocks."""
        return self.num_blocks * self._pool.block_size

    @property
    def next_full(self) -> int:
        """Return the number of computed tokens from which on there is a block to publish."""
        return (self.num_published + 1) * self._pool.block_size

    @property
    def num_held(self) -> int:
        """Return how many blocks are in use."""
        return self.num_blocks - self.first

    def find_prefix(self, tokens: Array, max_tokens: int) -> PrefixHit | None:
        """Return the longest cached prefix of int32 tokens, of at most `max_tokens`."""
        return self._pool.tree.find(self._key, tokens.tobytes(), max_tokens // self._pool.block_size)

    def open(self, hit: PrefixHit | None) -> None:
        """Begin to hold blocks: those of the prefix, if there is one."""
        assert self.node is None and self.num_blocks == 0
        self.node = self._pool.tree.pin_root(self._key)
        if hit is None:
            return
        for block in hit.blocks:
            self._pool.share(block)
        self._grow(hit.num_blocks)
        self.row[hit.first : hit.num_blocks] = hit.blocks
        self.first, self.num_blocks, self.num_published = hit.first, hit.num_blocks, hit.num_blocks
        self.num_published -= 1
        self._move_to(hit.node)

    def adopt(self, tokens: Array, max_tokens: int) -> int:
        """Share the next blocks where others have published them meanwhile, up to `max_tokens`. Return for how many tokens, 0 for none.

        A block that the sequence has filled in part is given back for the full one.
        """
        adopted = 0
        while self.next_full <= max_tokens:
            assert self.node is not None
            node = self.node.children.get(self.next_tokens(tokens))
            if node is None or node.block is None:
                break
            self.truncate(self.num_published)
            self._pool.share(node.block)
            self._grow(self.num_blocks + 1)
            self.row[self.num_blocks] = node.block
            self.num_blocks += 1
            self._move_to(node)
            adopted = self.num_tokens
        return adopted

    def next_tokens(self, tokens: Array) -> bytes:
        """Return those of a sequence's int32 tokens that the next block to publish holds, as PrefixNode has them."""
        begin = self.num_published * self._pool.block_size
        return tokens[begin : begin + self._pool.block_size].tobytes()

    def reserve(self, num_tokens: int) -> None:
        """Hold blocks for so many tokens; the pool must have them."""
        count = -(-num_tokens // self._pool.block_size)
        self._grow(count)
        while self.num_blocks < count:
            self.row[self.num_blocks] = self._pool.allocate()
            self.num_blocks += 1

    def truncate(self, num_blocks: int) -> None:
        """Give back the blocks behind the first `num_blocks`: what a step reserved that did not run."""
        while self.num_blocks > num_blocks:
            self.num_blocks -= 1
            self._pool.release(int(self.row[self.num_blocks]))
            self.row[self.num_blocks] = 0
            self.version += 1

    def publish(self, tokens: Array, num_computed: int) -> None:
        """Let other requests use the blocks that are full, given the sequence's int32 tokens and how many are computed."""
        while self.next_full <= num_computed:
            index = self.num_published
            assert self.node is not None and index >= self.first
            node = self._pool.tree.child(self.node, self.next_tokens(tokens))
            self._move_to(node)
            self.row[index] = self._pool.publish(node, int(self.row[index]))
            self.version += 1

    def free_behind(self, position: int) -> None:
        """Give back the blocks that a token at this position, and all later ones, don't attend to."""
        first = min(self._pool.tree.first_needed(position), self.num_published)
        while self.first < first:
            self._pool.release(int(self.row[self.first]))
            self.row[self.first] = 0
            self.first += 1
            self.version += 1

    def close(self) -> None:
        """Give back all blocks, the last first, so that of a cached prefix the end is evicted before the beginning."""
        for block in reversed(self.held):
            self._pool.release(block)
        self.row[: self.num_blocks] = 0
        self.num_blocks = self.first = self.num_published = 0
        self.version += 1
        if self.node is not None:
            self._pool.tree.unpin(self.node)
            self.node = None

    def _move_to(self, node: PrefixNode) -> None:
        """Hold the prefix of one block more."""
        assert self.node is not None
        node.num_refs += 1
        self._pool.tree.unpin(self.node)
        self.node = node
        self.num_published += 1

    def _grow(self, count: int) -> None:
        """Make room for so many blocks, since some will be added."""
        self.version += 1
        if count > len(self.row):
            row = np.zeros(max(count, 2 * len(self.row)), np.int32)
            row[: len(self.row)] = self.row
            self.row = row
