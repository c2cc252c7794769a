"""Pages of metrics of each kind of server, and what is no page."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.errors import DataError
from infergy.watch.metrics import COUNTERS, GAUGES, HISTOGRAMS, Page, read_page

pytest.importorskip("prometheus_client")
DATA = Path(__file__).parent / "data"


def text_of(name: str) -> str:
    return (DATA / f"{name}.txt").read_text(encoding="utf-8")


def page_of(name: str) -> Page:
    return read_page(text_of(name), "http://here/metrics")


def totals(page: Page) -> dict[str, float]:
    return {name: sum(series.values()) for name, series in page.counters.items()}


@pytest.mark.parametrize(
    ("name", "server", "counters", "gauges"),
    [
        (
            "vllm",
            "vLLM",
            {"input_tokens": 150000, "cached_tokens": 21000, "output_tokens": 45000, "preemptions": 2, "flops": 4e15},
            {"running": 21, "waiting": 3, "kv_share": 0.5},
        ),
        (
            "vllm_old",
            "vLLM",
            {"input_tokens": 400, "cached_tokens": 64, "output_tokens": 90},
            {"running": 1, "kv_share": 0.25},
        ),
        (
            "sglang",
            "SGLang",
            {"input_tokens": 8000, "cached_tokens": 1000, "computed_tokens": 7200, "output_tokens": 2100},
            {"running": 4, "waiting": 1, "kv_share": 0.28},
        ),
        (
            "sglang_underscore",
            "SGLang",
            {"input_tokens": 8000, "cached_tokens": 1000, "output_tokens": 2000},
            {"running": 4, "waiting": 1, "kv_share": 0.28},
        ),
        (
            "vllm_0_25",
            "vLLM",
            {"input_tokens": 411375, "cached_tokens": 0, "output_tokens": 60486, "preemptions": 0}
            | {"flops": 7.16615713292288e15, "read_bytes": 1.4260822409216e14, "write_bytes": 1.807955206144e12},
            {"running": 0, "waiting": 0, "kv_share": 0},
        ),
        ("tgi", "TGI", {"input_tokens": 20000, "output_tokens": 3600}, {"running": 3, "waiting": 0}),
        ("llama_cpp", "llama.cpp", {"computed_tokens": 200, "output_tokens": 96}, {"running": 1, "waiting": 0}),
    ],
)
def test_each_server_is_recognised(
    name: str, server: str, counters: dict[str, float], gauges: dict[str, float]
) -> None:
    page = page_of(name)
    assert page.server == server
    assert totals(page) == counters
    assert page.gauges == gauges
    missing = {*COUNTERS, *GAUGES, *HISTOGRAMS} - {*counters, *gauges, *page.histograms, "step_tokens"}
    assert page.blanks.keys() == missing
    assert all(reason for reason in page.blanks.values())


def test_histograms_models_and_the_begin_of_the_process() -> None:
    page = page_of("vllm")
    assert page.models == ("meta-llama/Llama-3.1-8B-Instruct",)
    assert page.started_s == 1.7959e9
    assert page.histograms["ttft_s"].counts == {0.01: 10, 0.1: 90, float("inf"): 100}
    assert page.histograms["output_lengths"].total == 29000
    assert page_of("tgi").histograms["input_lengths"].counts == {1000: 40, float("inf"): 40}


def test_which_counters_grow_at_the_end_of_a_request() -> None:
    assert page_of("vllm").at_end == frozenset()
    assert page_of("sglang").at_end == {"input_tokens", "cached_tokens"}
    assert page_of("sglang_underscore").at_end == {"input_tokens", "cached_tokens", "output_tokens"}
    assert page_of("tgi").at_end == {"input_tokens", "output_tokens"}


@pytest.mark.parametrize("value", ["NaN", "-5", "+Inf", "1e300"])
def test_a_value_that_cannot_be_meant_is_blank(value: str) -> None:
    page = read_page(text_of("vllm_old").replace("} 90.0\n# TYPE vllm:time", f"}} {value}\n# TYPE vllm:time"), "here")
    assert "output_tokens" not in page.counters
    assert "output_tokens" in page.blanks
    assert totals(page)["input_tokens"] == 400


def test_a_histogram_whose_counts_fall_is_blank() -> None:
    page = read_page(
        text_of("vllm_old").replace('le="0.01",model_name="facebook/opt-125m"} 60', 'le="0.01"} 99'), "here"
    )
    assert "itl_s" in page.blanks


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!doctype html><html><body>nginx</body></html>",
        '{"error": "not found"}\n',
        "# TYPE http_requests_total counter\nhttp_requests_total 5\n",
        text_of("vllm")[:-3],
        text_of("vllm") + text_of("tgi"),
        'vllm:generation_tokens_total{model_name="a" 5\n',
        "vllm:generation_tokens_total five\n",
    ],
    ids=["empty", "html", "json", "another program", "cut off", "two kinds", "broken labels", "no number"],
)
def test_what_is_no_page_is_rejected(text: str) -> None:
    with pytest.raises(DataError) as caught:
        read_page(text, "http://here/metrics")
    assert caught.value.code == "bad-metrics"
    assert caught.value.fields["place"] == "http://here/metrics"


@given(st.text(), st.integers(0, 3000), st.integers(0, 40))
def test_any_damage_is_a_blank_or_an_error(noise: str, place: int, length: int) -> None:
    text = text_of("vllm")
    try:
        page = read_page(text[:place] + noise + text[place + length :], "here")
    except DataError:
        return
    else:
        assert page.server in ("vLLM", "SGLang", "TGI", "llama.cpp")
