"""Token ids for a load: the same for every engine, from a seed. Standard library only."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence

from infergy.records import Load


def make_prompts(
    load: Load, vocabulary: int, seed: int, lengths: Sequence[tuple[int, int]] = ()
) -> tuple[tuple[int, ...], ...]:
    """Uniformly drawn token ids, `load.batch` prompts of `load.input_tokens` each, in [0, `vocabulary`).

    Prompts of one length are the same sequence in every cell: a larger batch only takes more of them. In a replay each
    prompt has the input tokens of its own of `lengths`.
    """
    wanted = [tokens for tokens, _ in lengths] or [load.input_tokens] * load.batch
    drawn = {tokens: iter(_draw(tokens, count, vocabulary, seed)) for tokens, count in Counter(wanted).items()}
    return tuple(next(drawn[tokens]) for tokens in wanted)


def _draw(width: int, count: int, vocabulary: int, seed: int) -> Iterator[tuple[int, ...]]:
    source = random.Random(f"{seed}:{width}")
    ids = [value % vocabulary for value in array("I", source.randbytes(4 * width * count))]
    return (tuple(ids[i * width : (i + 1) * width]) for i in range(count))


def hash_prompts(prompts: tuple[tuple[int, ...], ...]) -> str:
    """SHA-256 over lengths and token ids, in hexadecimal: equal if and only if the prompts are."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(len(prompt).to_bytes(4, "little"))
        digest.update(array("I", prompt).tobytes())
    return digest.hexdigest()
