"""Token ids for a load: the same for every engine, from a seed. Standard library only."""

from __future__ import annotations

import hashlib
import random
from array import array

from infergy.records import Load


def make_prompts(load: Load, vocabulary: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Uniformly drawn token ids, `load.batch` prompts of `load.input_tokens` each, in [0, `vocabulary`).

    Prompts of one length are the same sequence in every cell: a larger batch only takes more of them.
    """
    source = random.Random(f"{seed}:{load.input_tokens}")
    drawn = array("I", source.randbytes(4 * load.input_tokens * load.batch))
    ids = [value % vocabulary for value in drawn]
    width = load.input_tokens
    return tuple(tuple(ids[i * width : (i + 1) * width]) for i in range(load.batch))


def hash_prompts(prompts: tuple[tuple[int, ...], ...]) -> str:
    """SHA-256 over lengths and token ids, in hexadecimal: equal if and only if the prompts are."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(len(prompt).to_bytes(4, "little"))
        digest.update(array("I", prompt).tobytes())
    return digest.hexdigest()
