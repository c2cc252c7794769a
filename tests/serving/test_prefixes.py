"""Runs of blocks that prompts share."""

from __future__ import annotations

import numpy as np
import pytest

from infergy.serving.blocks import shared_paths
from serving.doubles import hashes


def lengths(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int64)


def test_requests_part_only_between_runs() -> None:
    paths = shared_paths(hashes([[1, 2, 3, 4], [1, 2, 3, 5], [1, 9]], 512), lengths(2048, 2048, 1024), 16)
    # 1 is common to all three, 2 and 3 to the first two; what one request alone has is not shared.
    assert [end for _, end in paths[0]] == [32, 96]
    assert paths[0] == paths[1]
    assert paths[2] == paths[0][:1]


def test_a_request_that_shares_nothing_has_no_path() -> None:
    assert shared_paths(hashes([[1], [2], []], 16), lengths(16, 16, 5), 16) == {}
    assert shared_paths(hashes([], 16), lengths(), 16) == {}


def test_only_full_blocks_of_the_prompt_count() -> None:
    paths = shared_paths(hashes([[1, 2], [1, 2]], 512), lengths(700, 600), 16)
    assert paths[0][-1][1] == 700 // 16
    assert paths[1][-1][1] == 600 // 16


@pytest.mark.parametrize(("hash_tokens", "block"), [(16, 16), (16, 32), (64, 16), (24, 16)])
def test_an_engines_block_belongs_to_the_hash_of_its_last_token(hash_tokens: int, block: int) -> None:
    paths = shared_paths(hashes([[1, 2, 3], [1, 2, 4]], hash_tokens), lengths(500, 500), block)
    assert paths[0] == paths[1]
    assert paths[0][-1][1] == 2 * hash_tokens // block


def test_hashes_of_text_alone_are_told_apart_by_what_precedes() -> None:
    paths = shared_paths(hashes([[7, 1], [8, 1], [7, 1]], 16), lengths(32, 32, 32), 16)
    assert 1 not in paths
    assert paths[0] == paths[2]
    assert paths[0][-1][1] == 2
