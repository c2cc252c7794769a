"""Traces simulated in windows: what they do not show is not reported, and the answer says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from infergy.cli.estimate import _print
from infergy.estimates.estimate import ServerEstimate, TraceEstimate, estimate, estimate_server
from infergy.estimates.latency import Limits
from infergy.estimates.recommend import recommend
from infergy.estimates.servers import ServerSpec, open_server
from infergy.serving.config import EngineOptions
from infergy.workload import Sample, open_trace
from raising import raises


def a_sample(**options: Any) -> Sample:
    draw = np.random.default_rng(0)
    count = 16_000
    frame = pl.DataFrame(
        {
            "input_tokens": draw.integers(100, 300, count),
            "output_tokens": draw.integers(50, 100, count),
            "arrival_s": np.sort(draw.uniform(0, 12_000, count)),
        }
    )
    if options.pop("at_once", False):
        frame = frame.drop("arrival_s")
    return open_trace(frame).sample(error=0.1, whole_requests=1000)


def answer(sample: Sample, spec: ServerSpec = ServerSpec()) -> tuple[TraceEstimate, ServerEstimate]:  # noqa: B008 - frozen
    asked = estimate(sample, spec)
    return asked, asked.estimates[0]


def test_a_sample_says_how_many_requests_were_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    sample = a_sample()
    assert not sample.is_whole
    asked, one = answer(sample)
    simulated = sum(len(window.requests) for window in sample.windows)
    words = f"{simulated:,} of 16,000 requests were simulated, in {len(sample.windows)} windows"
    assert any(note.startswith(words) for note in one.notes)
    _print([asked], explain=False)
    assert words in " ".join(capsys.readouterr().out.split())


def test_the_requests_of_a_sample_are_those_of_the_trace() -> None:
    one = estimate(a_sample(), timeline=10).estimates[0]
    assert one.served is not None
    assert one.served.load.timeline is None
    assert one.offline is not None
    assert one.served.requests == one.offline.requests == 16_000
    assert one.served.latency.ttft_s is not None
    assert one.served.latency.reason is None
    assert one.served.load.peak_waiting is not None


@pytest.mark.parametrize(("trace", "within"), [("azure-conv-2023", 0.02), ("azure-code-2023", 0.15)])
def test_windows_take_the_energy_of_the_trace(trace: str, within: float) -> None:
    # The code trace is idle for three quarters of its hour, which no window shows whose run ends with its last token.
    opened, server = open_trace(trace), open_server(ServerSpec())
    true = estimate_server(opened.sample(), server)
    assert true.served is not None
    assert true.offline is not None
    sampled = estimate_server(opened.sample(error=0.25, whole_requests=1000), server)
    assert sampled.served is not None
    assert sampled.offline is not None
    assert sampled.served.energy_j == pytest.approx(true.served.energy_j, rel=within)
    assert sampled.served.low_j <= true.served.energy_j <= sampled.served.high_j
    assert sampled.served.duration_s == pytest.approx(true.served.duration_s, rel=0.01)
    assert sampled.offline.energy_j == pytest.approx(true.offline.energy_j, rel=0.05)


def test_windows_all_at_once_or_with_a_queue_at_their_end_show_no_latency(capsys: pytest.CaptureFixture[str]) -> None:
    asked, slow = answer(a_sample(), ServerSpec(engine="transformers", options=EngineOptions(max_num_seqs=1)))
    assert slow.served is not None
    assert slow.served.overload is not None
    for run in (slow.served, slow.offline, answer(a_sample(at_once=True))[1].offline):
        assert run is not None
        latency, load = run.latency, run.load
        assert (latency.ttft_s, latency.tpot_s, latency.itl_s, latency.e2e_s) == (None, None, None, None)
        assert latency.reason is not None
        assert (load.peak_waiting, load.waiting_at_last_arrival) == (None, None)
    _print([asked], explain=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines if line.strip().startswith("TTFT")] == [["-", "-"]]


def test_a_whole_trace_has_no_such_line() -> None:
    _, one = answer(open_trace("azure-conv-2023").requests().slice(0, 50))  # type: ignore[arg-type]
    assert not any("were simulated" in note for note in one.notes)
    assert one.offline is not None
    assert one.offline.latency.ttft_s is not None


def test_a_limit_on_a_latency_that_is_not_known_is_named() -> None:
    limits = Limits(ttft_p99_s=1e-6)
    with raises("no-arrivals", option="--ttft-p99"):
        recommend(a_sample(at_once=True), [], limits=limits)
    sampled = recommend(a_sample().all_at_once(), [], limits=limits)
    assert any(note.startswith("limits on latency are not checked") for note in sampled.notes)
    assert not any(note.startswith("limits on") for note in recommend(a_sample(), [], limits=limits).notes)
