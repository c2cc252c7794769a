"""The study's method: bins, batches of equal requests, ideals and savings."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.cli.paper_table import print_paper
from infergy.estimates.estimate import sample_of
from infergy.estimates.paper import PaperEstimate, PaperServer, estimate_paper
from infergy.estimates.paper_bins import BinEnergy, batch_limit, histogram_of, paper_reference
from infergy.estimates.servers import OpenServer, ServerSpec, open_server, shipped_table
from infergy.records.codec import to_json
from infergy.serving.config import EngineConfig, EngineOptions
from infergy.workload import open_trace
from infergy.workload.bins import BinCount, Bins, Histogram
from infergy.workload.requests import Requests, Window
from raising import raises

TRANSFORMERS, VLLM = ServerSpec(engine="transformers"), ServerSpec()
TRACE = "azure-code-2023"
INPUTS, OUTPUTS = (32, 256, 1024), (8, 64)
GRID = Bins(name="custom", input_edges=INPUTS, output_edges=OUTPUTS)
PLACES = [(i, o) for i in range(len(INPUTS)) for o in range(len(OUTPUTS))]
COUNTS = st.dictionaries(st.sampled_from(PLACES), st.integers(1, 5_000), min_size=1)


def histogram(requests: dict[tuple[int, int], int]) -> Histogram:
    counts = [
        BinCount(bin=GRID.at(i, o), requests=number, input_tokens=number * INPUTS[i], output_tokens=number * OUTPUTS[o])
        for (i, o), number in sorted(requests.items())
    ]
    return Histogram(source="test", bins=GRID, counts=tuple(counts))


def batch_of(size: int, inputs: int, outputs: int) -> Requests:
    columns = np.full(size, inputs), np.full(size, outputs)
    return Requests(source="batch", input_tokens=columns[0], output_tokens=columns[1], order_reason="a batch")


def opened(spec: ServerSpec) -> OpenServer:
    return open_server(spec, shipped_table())


def paper(source: object, *specs: ServerSpec, **options: str) -> PaperEstimate:
    return estimate_paper(source, specs or (TRANSFORMERS, VLLM), shipped_table(), **options)


def only(source: object, spec: ServerSpec, **options: str) -> PaperServer:
    (server,) = paper(source, spec, **options).servers
    return server


@pytest.fixture(scope="module")
def code() -> PaperEstimate:
    return paper(TRACE)


@pytest.mark.parametrize("spec", [TRANSFORMERS, VLLM])
def test_a_bin_costs_n_over_b_batches_of_its_corner_served_at_once(spec: ServerSpec) -> None:
    server = opened(spec)
    size = batch_limit(server, 256, 64)
    config = server.config if isinstance(server.config, EngineConfig) else replace(server.config, max_num_seqs=size)
    run = replace(server, config=config).serve(batch_of(size, 256, 64))
    (entry,) = only(histogram({(1, 1): 700}), spec).bins
    assert (entry.batch, entry.requests) == (size, 700)
    assert entry.energy_j == pytest.approx(700 / size * run.energy_j)
    assert entry.duration_s == pytest.approx(700 / size * run.duration_s)


@given(a=COUNTS, b=COUNTS)
@settings(max_examples=10, deadline=None)
def test_disjoint_traces_add_up(a: dict[tuple[int, int], int], b: dict[tuple[int, int], int]) -> None:
    both = {place: a.get(place, 0) + b.get(place, 0) for place in {*a, *b}}
    parts = [only(histogram(requests), VLLM).energy_j or 0.0 for requests in (a, b)]
    assert only(histogram(both), VLLM).energy_j == pytest.approx(sum(parts))


@given(requests=COUNTS)
@settings(max_examples=10, deadline=None)
def test_floors_lie_below_and_whole_batches_above(requests: dict[tuple[int, int], int]) -> None:
    for server in paper(histogram(requests)).servers:
        entries: tuple[PaperServer | BinEnergy, ...] = (server, *server.bins)
        for entry in entries:
            assert entry.low_j is not None
            assert entry.energy_j is not None
            assert entry.high_j is not None
            assert 0 < entry.low_j <= entry.energy_j <= entry.high_j * (1 + 1e-12)
    rounded = only(histogram(requests), VLLM, rare="whole")
    assert rounded.energy_j == rounded.high_j


@given(inputs=st.integers(1, 20_000), outputs=st.integers(1, 600))
@settings(max_examples=15, deadline=None)
def test_a_batch_of_vllm_is_as_large_as_fits_without_preemption(inputs: int, outputs: int) -> None:
    server = opened(replace(VLLM, options=EngineOptions(num_gpu_blocks=2_000)))
    size = batch_limit(server, inputs, outputs)
    assert isinstance(server.config, EngineConfig)
    limits = server.config.limits
    blocks = math.ceil((inputs + outputs - 1) / limits.block_size)
    assert size == limits.max_num_seqs or (size + 1) * blocks > limits.num_gpu_blocks - 1
    if size:
        run = server.serve(batch_of(size, inputs, outputs))
        assert run.counts.preemptions == run.counts.rejected_requests == 0


@pytest.mark.parametrize("bins", ["powers-of-two", "paper"])
@pytest.mark.parametrize("trace", ["azure-code-2023", "azure-conv-2023"])
def test_requests_are_counted_as_the_trace_counts_them(trace: str, bins: str) -> None:
    assert histogram_of(sample_of(trace), bins) == histogram_of(open_trace(trace), bins)


def test_windows_of_a_long_trace_are_counted_by_their_weight() -> None:
    sample = sample_of(TRACE)
    (window,) = sample.windows
    twice = replace(sample, windows=(Window(requests=window.requests, start_s=0, duration_s=1, weight=2.0),))
    found, single = histogram_of(twice, "paper"), histogram_of(sample, "paper")
    assert [entry.requests for entry in found.counts] == [2 * entry.requests for entry in single.counts]
    assert found.left_out is not None
    assert single.left_out is not None
    assert found.left_out.requests == 2 * single.left_out.requests


def test_a_histogram_brings_its_own_bins_and_has_no_order(code: PaperEstimate) -> None:
    counted = histogram_of(open_trace(TRACE), "powers-of-two")
    assert paper(counted, bins="paper") == code


def test_requests_past_the_papers_bins_are_left_out_and_counted(code: PaperEstimate) -> None:
    found = paper(TRACE, bins="paper")
    assert (found.left_out_requests, code.left_out_requests) == (27, 0)
    assert found.requests == code.requests == 8819
    for server in found.servers:
        assert sum(entry.requests for entry in server.bins) == found.requests - found.left_out_requests


def test_gap_and_saving_are_the_studys(code: PaperEstimate) -> None:
    base, vllm = code.servers
    for server in code.servers:
        assert server.energy_j is not None
        assert server.compared.ideal_energy_j is not None
        ideal_j = server.compared.ideal_energy_j
        assert server.compared.gap_to_ideal == pytest.approx((server.energy_j - ideal_j) / ideal_j)
    assert base.compared.saving_vs_baseline is None
    assert base.energy_j is not None
    assert vllm.energy_j is not None
    found = vllm.compared
    assert found.saving_vs_baseline == pytest.approx(1 - vllm.energy_j / base.energy_j)
    assert found.saving_low is not None
    assert found.saving_high is not None
    assert found.saving_low < (found.saving_vs_baseline or 0) < found.saving_high


def test_a_saving_needs_no_baseline_among_the_servers(code: PaperEstimate) -> None:
    alone = only(TRACE, VLLM)
    assert alone == code.servers[1]


def test_ideals_differ_and_a_roofline_is_never_below_the_flops() -> None:
    energies = {ideal: only(TRACE, VLLM, ideal=ideal).compared.ideal_energy_j or 0.0 for ideal in ("dense", "roofline")}
    assert 0 < energies["dense"] < energies["roofline"]
    headline = only(TRACE, replace(VLLM, gpu="rtx-a6000"), ideal="paper").compared
    assert "headline" in (headline.ideal_basis or "")


def test_a_bin_beyond_the_context_is_in_no_sum() -> None:
    spec = replace(VLLM, options=EngineOptions(max_model_len=1024))
    found = only(histogram({(1, 1): 10, (2, 1): 5}), spec)
    assert found.unserved_requests == 5
    assert [entry.batch > 0 for entry in found.bins] == [True, False]
    served = only(histogram({(1, 1): 10}), spec)
    assert (found.energy_j, found.compared.ideal_energy_j) == (served.energy_j, served.compared.ideal_energy_j)
    # The baseline serves both bins, so the two sums are of different requests.
    assert found.compared.saving_vs_baseline is None
    assert found.compared.saving_reason is not None
    nothing = only(histogram({(2, 1): 5}), spec)
    assert nothing.energy_j is nothing.compared.gap_to_ideal is nothing.low_j is None


def test_asked_batches() -> None:
    requests = histogram({(1, 1): 700})
    (entry,) = only(requests, replace(TRANSFORMERS, options=EngineOptions(max_num_seqs=16))).bins
    assert entry.batch == 16


def test_the_reference_of_an_estimate_is_the_same_estimate(code: PaperEstimate) -> None:
    reference = paper_reference(sample_of(TRACE), opened(VLLM))
    vllm = code.servers[1]
    assert reference.energy_j == vllm.energy_j
    assert reference.ideal_energy_j == vllm.compared.ideal_energy_j
    assert reference.gap_to_ideal == vllm.compared.gap_to_ideal
    assert (reference.requests, reference.left_out_requests, reference.bins) == (8819, 0, "powers-of-two")


@pytest.mark.parametrize("option", ["bins", "ideal", "rare"])
def test_unknown_names_are_rejected(option: str) -> None:
    with raises("unknown-name", option=f"--{option}", name="papre"):
        paper(TRACE, VLLM, **{option: "papre"})


def test_it_is_json_and_a_table(code: PaperEstimate, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(json.dumps(to_json(code)))
    assert told["schema"] == "infergy.ceiling/1"
    assert told["servers"][1]["compared"]["gap_to_ideal"] == code.servers[1].compared.gap_to_ideal
    print_paper([code, paper("azure-conv-2023", bins="paper")])
    printed = capsys.readouterr().out
    gap = code.servers[1].compared.gap_to_ideal or 0.0
    assert f"{gap * 100:+.1f} %" in printed
    assert "563 of 19,366 requests lie past the last bin" in printed
