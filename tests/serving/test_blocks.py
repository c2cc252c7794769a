"""The pool by extents does what a list of single blocks does."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infergy.serving.blocks import BlockPool, Hit

BLOCKS = 40


@dataclass(eq=False)
class Block:
    content: tuple[int, int] | None = None
    users: int = 0


@dataclass
class PlainPool:
    """vLLM's block pool, block by block."""

    queue: list[Block] = field(default_factory=lambda: [Block() for _ in range(BLOCKS)])
    known: dict[tuple[int, int], list[Block]] = field(default_factory=dict)

    def take(self, count: int) -> list[Block]:
        taken, self.queue = self.queue[:count], self.queue[count:]
        for block in taken:
            if block.content is not None:
                self.known[block.content].remove(block)
                block.content = None
            block.users = 1
        return taken

    def find(self, run: int, limit: int) -> list[Block]:
        found = []
        for k in range(limit):
            copies = self.known.get((run, k))
            if not copies:
                break
            found.append(copies[0])
        return found

    def use(self, blocks: list[Block]) -> None:
        for block in blocks:
            if block.users == 0:
                self.queue.remove(block)
            block.users += 1

    def name(self, block: Block, content: tuple[int, int]) -> None:
        block.content = content
        self.known.setdefault(content, []).append(block)

    def release(self, blocks: list[Block]) -> None:
        named: list[Block] = []
        blank: list[Block] = []
        for block in reversed(blocks):
            block.users -= 1
            if block.users == 0:
                (blank if block.content is None else named).append(block)
        self.queue = blank + self.queue + named


@dataclass
class User:
    run: int
    blocks: list[Block]
    held: list[Hit]
    named: int


class Pools(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.pool = PlainPool(), BlockPool(BLOCKS)
        self.users: list[User] = []

    @rule(run=st.integers(0, 2), length=st.integers(1, 15), named=st.integers(0, 15))
    def begin(self, run: int, length: int, named: int) -> None:
        found = self.plain.find(run, length)
        hits = self.pool.find(((run, 1000),), length)
        assert sum(hit.end - hit.first for hit in hits) == len(found)
        idle = sum(block.users == 0 for block in found)
        assert sum(hit.end - hit.first for hit in hits if not hit.extent.users) == idle
        if length - len(found) + idle > len(self.plain.queue):
            return
        self.plain.use(found)
        held = self.pool.use(hits)
        blocks = found + self.plain.take(length - len(found))
        self.pool.take(length - len(found))
        self.users.append(User(run, blocks, held, len(found)))
        self.commit(len(self.users) - 1, named)

    @precondition(lambda self: self.users)
    @rule(which=st.integers(0, 10), named=st.integers(0, 15))
    def commit(self, which: int, named: int) -> None:
        user = self.users[which % len(self.users)]
        end = min(named, len(user.blocks))
        if end > user.named:
            for k in range(user.named, end):
                self.plain.name(user.blocks[k], (user.run, k))
            self.pool.commit(user.held, user.run, user.named, end)
            user.named = end

    @precondition(lambda self: self.users)
    @rule(which=st.integers(0, 10))
    def finish(self, which: int) -> None:
        user = self.users.pop(which % len(self.users))
        self.plain.release(user.blocks)
        self.pool.release(user.held)
        self.pool.discard(0, len(user.blocks) - user.named)

    @rule(count=st.integers(1, 12))
    def churn(self, count: int) -> None:
        """Blocks that nobody can find again pass through the queue."""
        if count <= len(self.plain.queue):
            blocks = self.plain.take(count)
            self.pool.take(count)
            for k, block in enumerate(blocks):
                self.plain.name(block, (-1, k))
            self.plain.release(blocks)
            self.pool.discard(count, 0)

    @invariant()
    def same(self) -> None:
        assert self.pool.free == len(self.plain.queue)
        for run in range(3):
            hits = self.pool.find(((run, 1000),), 1000)
            assert sum(hit.end - hit.first for hit in hits) == len(self.plain.find(run, 1000))


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
