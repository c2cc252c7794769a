"""Runs of blocks that prompts share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.records import Load
from infergy.records.cell import Links
from infergy.serving.blocks import blocks_of_prefixes, blocks_of_prompts, shared_paths, shared_prefixes
from infergy.workload.load_generator import make_prompts
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


HASHES = st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=6)
"""Few hashes, so that many are shared, also after different beginnings."""


@given(rows=HASHES)
def test_kept_prefixes_are_served_as_the_hashes_of_the_log(rows: list[list[int]]) -> None:
    prefixes = shared_prefixes(hashes(rows, 512))
    assert sorted({run for path in prefixes for run, _ in path}) == list(
        range(len({r for p in prefixes for r, _ in p}))
    )
    tokens = lengths(*(512 * len(row) + 7 for row in rows))
    wanted, kept = (
        shared_paths(blocks, tokens, 16) for blocks in (hashes(rows, 512), blocks_of_prefixes(prefixes, 512))
    )
    assert wanted.keys() == kept.keys()
    names: dict[int, int] = {}
    for request, path in wanted.items():
        assert [end for _, end in path] == [end for _, end in kept[request]]
        assert all(
            names.setdefault(run, other) == other for (run, _), (other, _) in zip(path, kept[request], strict=True)
        )
    assert len(set(names.values())) == len(names)


@given(rows=HASHES, more=st.integers(1, 40))
def test_prompts_share_the_blocks_of_the_log_and_nothing_else(rows: list[list[int]], more: int) -> None:
    pairs = tuple((32 * len(row) + more, 1) for row in rows)
    prefixes = shared_prefixes(hashes(rows, 32))
    load = Load(input_tokens=1, output_tokens=1, batch=len(rows))
    prompts = make_prompts(load, 1000, 7, pairs, Links(block_tokens=32, prefixes=prefixes))
    assert [len(prompt) for prompt in prompts] == [tokens for tokens, _ in pairs]
    assert prompts == make_prompts(load, 1000, 7, pairs, Links(block_tokens=32, prefixes=prefixes))
    tokens = lengths(*(tokens for tokens, _ in pairs))
    wanted, found = (shared_paths(blocks, tokens, 16) for blocks in (hashes(rows, 32), blocks_of_prompts(prompts)))
    ends = [{request: path[-1][1] for request, path in paths.items() if path[-1][1]} for paths in (wanted, found)]
    assert ends[0] == ends[1]


def test_a_last_block_that_is_shorter_is_shared_as_far_as_it_goes() -> None:
    links = Links(block_tokens=512, prefixes=shared_prefixes(hashes([[1, 2], [1, 2]], 512)))
    load = Load(input_tokens=1, output_tokens=1, batch=2)
    long, short = make_prompts(load, 1000, 7, ((700, 1), (600, 1)), links)
    assert (len(long), short) == (700, long[:600])
