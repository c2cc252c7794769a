"""Which blocks prompts consist of, so that a cache of prefixes can be simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixBlocks:
    """Hashes of the blocks that prompts consist of: equal hashes are equal blocks after equal prefixes.

    Attributes:
        ids: Hashes of all requests, one after the other.
        offsets: Where the hashes of each request begin in `ids`, and at last their number; shape (requests + 1,).
        block_tokens: Tokens of a block; the last block of a prompt may be shorter. Tokens of a prompt past its blocks
            are shared with no other request.
    """

    ids: Integers
    offsets: Integers
    block_tokens: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, request: int) -> Integers:
        """The hashes of one request."""
        return self.ids[self.offsets[request] : self.offsets[request + 1]]

    def take(self, index: Integers) -> PrefixBlocks:
        """The hashes of the requests at `index`, in its order."""
        import numpy as np

        counts = self.offsets[index + 1] - self.offsets[index]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        # The k-th hash of a request lies k places after its first.
        shift = np.repeat(self.offsets[index] - offsets[:-1], counts)
        ids = self.ids[np.arange(offsets[-1]) + shift]
        return PrefixBlocks(ids=ids, offsets=offsets, block_tokens=self.block_tokens)
