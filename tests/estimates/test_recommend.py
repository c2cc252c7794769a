"""Recommendations: the least energy within limits, and savings that are more than what is uncertain about them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.estimates.latency import Limits
from infergy.estimates.recommend import recommend
from infergy.estimates.servers import ServerSpec, open_server, shipped_table
from infergy.estimates.vllm_command import command_of, label_of
from infergy.serving.config import EngineOptions
from raising import raises
from served import some_requests

REQUESTS = some_requests(40)
FEW = [
    ServerSpec(),
    ServerSpec(engine="vllm-fp8"),
    ServerSpec(engine="vllm-eager"),
    ServerSpec(options=EngineOptions(max_num_seqs=2)),
    ServerSpec(options=EngineOptions(tensor_parallel_size=2)),
    ServerSpec(engine="transformers"),
]


@settings(max_examples=20)
@given(
    present=st.sampled_from(FEW),
    tpot=st.one_of(st.none(), st.floats(1e-4, 1.0)),
    ttft=st.one_of(st.none(), st.floats(1e-3, 100.0)),
)
def test_what_is_recommended_keeps_limits_and_saves_unless_the_present_breaks_one(
    present: ServerSpec, tpot: float | None, ttft: float | None
) -> None:
    limits = Limits(tpot_p99_s=tpot, ttft_p99_s=ttft)
    found = recommend(REQUESTS, FEW, shipped_table(), present=present, limits=limits)
    assert len(found.configurations) == len(FEW)
    kept = [one for one in found.configurations if not one.breaks]
    assert list(found.configurations[: len(kept)]) == sorted(kept, key=lambda one: one.energy_j)
    now = found.of(found.present)
    assert (now.saving.share, now.saving.low, now.saving.high, now.saving.is_significant) == (0, 0, 0, False)
    if found.recommended is None:
        assert not kept
        return
    chosen = found.of(found.recommended)
    assert not chosen.breaks
    if now.breaks:
        assert found.reason == "present_breaks_limits"
        assert chosen is kept[0]
    elif chosen is now:
        assert found.reason == "present_is_best"
        assert not any(one.saving.is_significant and one.saving.share > 0 for one in kept)
    else:
        assert found.reason == "saves"
        assert chosen.energy_j < now.energy_j
        assert chosen.saving.low > 0


def test_limits_are_on_the_estimated_percentiles() -> None:
    free = recommend(REQUESTS, FEW, shipped_table())
    for one in free.configurations:
        latency = one.estimate.run.latency
        assert latency.tpot_s is not None
        assert latency.e2e_s is not None
        for over, name in ((0.99, ("tpot_p50_s",)), (1.01, ())):
            limits = Limits(tpot_p50_s=latency.tpot_s.p50 * over, e2e_p99_s=latency.e2e_s.p99 * 1.01)
            assert tuple(limits.excess(one.estimate.run.latency)) == name


def test_a_saving_is_significant_where_its_interval_leaves_out_0() -> None:
    found = recommend(REQUESTS, FEW, shipped_table())
    for one in found.configurations:
        saving, run = one.saving, one.estimate.run
        assert saving.low <= saving.share <= saving.high
        assert saving.is_significant == (not saving.low <= 0 <= saving.high)
        # What is common to both is left out, so a ratio is known better than its two energies are.
        now = found.of(found.present).estimate.run
        half = (run.high_j / run.low_j) ** 0.5
        assert (1 - saving.low) / (1 - saving.share) <= half * now.high_j / now.energy_j


def test_one_server_in_two_spellings_is_one_configuration() -> None:
    found = recommend(REQUESTS, [ServerSpec(engine="vllm-bfloat16-tp1")], shipped_table())
    assert [one.label for one in found.configurations] == ["vllm"]
    assert found.reason == "present_is_best"


def test_what_changes_outputs_is_labelled_or_left_out() -> None:
    wanted = {one.label: one.changes_outputs for one in recommend(REQUESTS, FEW, shipped_table()).configurations}
    assert wanted.pop("vllm-fp8") == "fp8 instead of bfloat16"
    assert set(wanted.values()) == {None}
    kept = recommend(REQUESTS, FEW, shipped_table(), keep_outputs=True)
    assert {one.label for one in kept.configurations} == set(wanted)


def test_servers_that_differ_in_one_option_have_different_labels() -> None:
    specs = [
        ServerSpec(),
        ServerSpec(usage_context="llm"),
        ServerSpec(replicas=2),
        ServerSpec(replicas=2, router="least_loaded"),
        ServerSpec(options=EngineOptions(block_size=32)),
        ServerSpec(options=EngineOptions(async_scheduling=False)),
        ServerSpec(options=EngineOptions(cudagraph_capture_sizes=(1, 2))),
    ]
    assert len({label_of(open_server(spec, shipped_table())) for spec in specs}) == len(specs)


def test_a_configuration_that_cannot_serve_is_left_out_with_its_reason() -> None:
    # 14 attention heads: two GPUs share them, four cannot.
    present = ServerSpec(model="qwen2.5-0.5b", options=EngineOptions(tensor_parallel_size=2))
    found = recommend(REQUESTS, None, shipped_table(), present=present, keep_outputs=True)
    assert {label for label in found.searched.reasons if "-tp 4" in label}
    assert not any("tp4" in one.label for one in found.configurations)


@pytest.mark.parametrize(
    ("spec", "command"),
    [
        (ServerSpec(), "vllm serve MODEL"),
        (ServerSpec(engine="vllm-fp8-s16"), "vllm serve MODEL --quantization fp8_per_tensor --max-num-seqs 16"),
        (
            ServerSpec(
                engine="vllm-eager-tp2",
                options=EngineOptions(max_num_batched_tokens=2048, enable_prefix_caching=False, max_model_len=9000),
            ),
            "vllm serve MODEL --tensor-parallel-size 2 --enforce-eager --max-num-batched-tokens 2048 "
            "--max-model-len 9000 --no-enable-prefix-caching",
        ),
    ],
)
def test_what_to_type(spec: ServerSpec, command: str) -> None:
    assert " ".join(command_of(open_server(spec, shipped_table()))) == command


def test_an_overloaded_configuration_is_not_recommended() -> None:
    busy = some_requests(300, rate_per_s=8.0)
    slow = ServerSpec(options=EngineOptions(max_num_seqs=4))
    found = recommend(busy, [ServerSpec()], shipped_table(), present=slow)
    assert found.of("vllm max-num-seqs=4").breaks == ("overload",)
    assert (found.recommended, found.reason) == ("vllm", "present_breaks_limits")


def test_who_rejects_more_is_not_recommended() -> None:
    short = ServerSpec(options=EngineOptions(max_model_len=1000))
    found = recommend(REQUESTS, [short], shipped_table())
    assert found.of("vllm max-model-len=1000").breaks == ("rejected_requests",)
    assert found.recommended == "vllm"


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_a_limit_must_be_a_time(limit: float) -> None:
    with raises("bad-value", option="--tpot-p99"):
        Limits(tpot_p99_s=limit)


def test_configurations_are_of_one_model() -> None:
    with raises("several-models"):
        recommend(REQUESTS, [ServerSpec(model="llama-3.2-1b")], shipped_table())


def test_kinds_of_gpu_are_compared() -> None:
    found = recommend(REQUESTS, [ServerSpec(gpu="h100-sxm")], shipped_table())
    assert {one.label for one in found.configurations} == {"vllm", "vllm gpu=h100-sxm"}
    with raises("unknown-gpu"):
        recommend(REQUESTS, [ServerSpec(gpu="nonesuch")], shipped_table())


def test_a_search_never_leads_to_what_takes_more() -> None:
    """Answers of which one would regret to have followed them."""
    limits = Limits(ttft_p99_s=2.0, tpot_p99_s=0.05)
    found = recommend(REQUESTS, present=ServerSpec(), limits=limits)
    assert found.recommended is not None
    chosen, present = found.of(found.recommended), found.of(found.present)
    assert chosen.estimate.engine.startswith("vllm")
    assert chosen.energy_j < present.energy_j
    # What the search looked at: another precision, several GPUs, static batches, each with the time between requests.
    assert {one.estimate.precision for one in found.configurations} >= {"bfloat16", "fp8"}
    assert max(one.estimate.gpus for one in found.configurations) == 2
    assert any(one.estimate.engine == "transformers" and one.saving.share < 0 for one in found.configurations)
    assert all(one.estimate.run.energy.idle_j > 0 for one in found.configurations if not one.breaks)


@pytest.mark.parametrize("model", ["qwen3-30b-a3b", "llama-3.1-70b", "qwen2.5-0.5b"])
def test_any_model_is_searched(model: str) -> None:
    size = 2 if model == "llama-3.1-70b" else 1
    present = ServerSpec(model=model, options=EngineOptions(tensor_parallel_size=size))
    found = recommend(REQUESTS, present=present)
    assert found.recommended is not None
    assert found.of(found.recommended).energy_j <= found.of(found.present).energy_j


def test_layouts_far_over_a_limit_of_ttft_are_not_varied() -> None:
    # Smaller batches and steps shorten no wait: a tenth of what the fastest layout needs.
    best = recommend(REQUESTS, FEW, shipped_table()).configurations[0].estimate.run.latency.ttft_s
    assert best is not None
    free, strict = (
        recommend(REQUESTS, None, shipped_table(), present=ServerSpec(), limits=Limits(ttft_p99_s=limit_s))
        for limit_s in (10 * best.p99, best.p99 / 10)
    )
    assert strict.recommended is None
    assert strict.searched.windows < free.searched.windows
