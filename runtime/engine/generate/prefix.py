"""The tree of cached prefixes: which block holds the keys and values of a block of tokens behind a given prefix.

A node stands for one full block of tokens behind those of its ancestors. Children are found by a hash of their tokens and confirmed by
comparing these, as a dictionary does, so a hit is exact: no other prefix has this node. Each principal has a tree of its own, so nobody
can tell from the time of an answer what others have asked.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from llmos.runtime.engine.errors import IntegrityError

TOKEN_BYTES = 4  # of an int32 token id


class PrefixNode:
    """tokens: of this block alone, as bytes (of a root: its key). block: where their keys and values are, None where evicted.

    num_refs: children, pins, and 1 for a block; a node without any is removed. A node outlives its block as long as longer prefixes are
    cached, because with a window these can be used without it.
    """

    __slots__ = ("block", "children", "num_refs", "parent", "tokens")

    def __init__(self, parent: PrefixNode | None, tokens: Hashable) -> None:
        self.parent = parent
        self.tokens = tokens
        self.block: int | None = None
        self.children: dict[Hashable, PrefixNode] = {}
        self.num_refs = 0


@dataclass(frozen=True)
class PrefixHit:
    """The longest usable prefix: `num_blocks` blocks, of which those from `first` on are in `blocks`; nothing reads the ones before."""

    node: PrefixNode
    num_blocks: int
    first: int
    blocks: tuple[int, ...]


class PrefixTree:
    """The prefixes of all principals. window: as in GenerationSpec."""

    def __init__(self, block_size: int, window: int | None = None) -> None:
        self._block_bytes = block_size * TOKEN_BYTES
        self._block_size = block_size
        self._window = window
        self._roots: dict[Hashable, PrefixNode] = {}

    def first_needed(self, position: int) -> int:
        """Return the index of the first block that a token at this position, or a later one, attends to."""
        return 0 if self._window is None else max(0, position - self._window + 1) // self._block_size

    def pin_root(self, key: Hashable) -> PrefixNode:
        """Return the root of a principal's tree, pinned."""
        node = self._roots.get(key)
        if node is None:
            node = self._roots[key] = PrefixNode(None, key)
        node.num_refs += 1
        return node

    def unpin(self, node: PrefixNode) -> None:
        """Drop a reference to a node, and remove those that nothing refers to any more."""
        node.num_refs -= 1
        while node.num_refs == 0:
            parent = node.parent
            if parent is None:
                del self._roots[node.tokens]
                return
            del parent.children[node.tokens]
            parent.num_refs -= 1
            node = parent

    def find(self, key: Hashable, tokens: bytes, max_blocks: int) -> PrefixHit | None:
        """Return the longest usable prefix of int32 tokens, of at most `max_blocks` blocks; None if there is none."""
        node = self._roots.get(key)
        hit: PrefixHit | None = None
        path: list[PrefixNode] = []
        num_present = 0  # blocks in a row up to here that are not evicted
        best = 0
        for begin in range(0, max_blocks * self._block_bytes, self._block_bytes):
            node = None if node is None else node.children.get(tokens[begin : begin + self._block_bytes])
            if node is None:
                break
            path.append(node)
            num_present = 0 if node.block is None else num_present + 1
            if num_present and len(path) - num_present <= self.first_needed(len(path) * self._block_size):
                best = len(path)
        if best:
            first = self.first_needed(best * self._block_size)
            blocks = tuple(node.block for node in path[first:best] if node.block is not None)
            hit = PrefixHit(path[best - 1], best, first, blocks)
        return hit

    def child(self, parent: PrefixNode, tokens: bytes) -> PrefixNode:
        """Return the child of a node with these tokens, to be pinned; it is made where there is none."""
        node = parent.children.get(tokens)
        if node is None:
            node = parent.children[tokens] = PrefixNode(parent, tokens)
            parent.num_refs += 1
        return node

    def set_block(self, node: PrefixNode, block: int) -> None:
        """Say where the keys and values of a node are."""
        node.block = block
        node.num_refs += 1

    def drop_block(self, node: PrefixNode) -> None:
        """Forget the block of a node, since it is evicted."""
        node.block = None
        self.unpin(node)

    def nodes(self) -> Iterator[PrefixNode]:
        """Yield all nodes, roots included."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check_integrity(self, pins: dict[PrefixNode, int]) -> dict[PrefixNode, int]:
        """Check the references of all nodes, with the pins that each should have; return the blocks of nodes. Raises IntegrityError."""
        blocks = {}
        for node in self.nodes():
            expected = len(node.children) + pins.get(node, 0) + (node.block is not None)
            if node.num_refs != expected or node.num_refs < 1:
                raise IntegrityError(f"a cached prefix has {node.num_refs} references, {expected} are known")
            if node.block is not None:
                blocks[node] = node.block
        return blocks
