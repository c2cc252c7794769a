"""Recommendations: the least energy within limits, and savings that are more than what is uncertain about them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.estimates.recommend import Limits, command_of, default_candidates, label_of, recommend
from infergy.estimates.servers import ServerSpec, open_server, shipped_table
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
    assert (now.saving, now.saving_low, now.saving_high, now.is_significant) == (0, 0, 0, False)
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
        assert not any(one.is_significant and one.saving > 0 for one in kept)
    else:
        assert found.reason == "saves"
        assert chosen.energy_j < now.energy_j
        assert chosen.saving_low > 0


def test_limits_are_on_the_estimated_percentiles() -> None:
    free = recommend(REQUESTS, FEW, shipped_table())
    for one in free.configurations:
        latency = one.estimate.run.latency
        assert latency.tpot_s is not None
        assert latency.e2e_s is not None
        for over, name in ((0.99, ("tpot_p50_s",)), (1.01, ())):
            limits = Limits(tpot_p50_s=latency.tpot_s.p50 * over, e2e_p99_s=latency.e2e_s.p99 * 1.01)
            assert tuple(limits.excess(one.estimate)) == name


def test_a_saving_is_significant_where_its_interval_leaves_out_0() -> None:
    found = recommend(REQUESTS, FEW, shipped_table())
    for one in found.configurations:
        assert one.saving_low <= one.saving <= one.saving_high
        assert one.is_significant == (not one.saving_low <= 0 <= one.saving_high)
        # What is common to both is left out, so a ratio is known better than its two energies are.
        half = (one.high_j / one.low_j) ** 0.5
        assert (1 - one.saving_low) / (1 - one.saving) <= half * found.of(found.present).high_j / found.of(
            found.present
        ).energy_j


def test_equal_runs_differ_by_nothing() -> None:
    found = recommend(REQUESTS, [ServerSpec(options=EngineOptions(max_num_seqs=900))], shipped_table())
    other = next(one for one in found.configurations if one.label != found.present)
    assert [other.saving, other.saving_low, other.saving_high] == pytest.approx([0, 0, 0])
    assert not other.is_significant
    assert found.reason == "present_is_best"


def test_default_candidates_are_of_the_present_model_and_gpus() -> None:
    present = ServerSpec(model="qwen3-32b", options=EngineOptions(tensor_parallel_size=2, max_model_len=4096))
    labels = {label_of(open_server(spec, shipped_table())) for spec in default_candidates(present)}
    assert labels == {
        *(
            f"vllm-tp2 {words} max-model-len=4096"
            for words in ("max-num-seqs=256", "max-num-seqs=64", "max-num-seqs=16")
        ),
        *(
            f"vllm-fp8-tp2 {words} max-model-len=4096"
            for words in ("max-num-seqs=256", "max-num-seqs=64", "max-num-seqs=16")
        ),
        *(f"vllm{dtype}-tp2 max-num-batched-tokens=2048 max-model-len=4096" for dtype in ("", "-fp8")),
        *(f"vllm{setup} max-model-len=4096" for setup in ("-tp2", "-fp8-tp2", "-eager-tp2", "-tp4")),
    }


def test_a_gpu_without_fp8_gets_no_fp8() -> None:
    assert not any("fp8" in (spec.precision or "") for spec in default_candidates(ServerSpec(gpu="a100-80gb-sxm")))


def test_what_changes_outputs_is_labelled_or_left_out() -> None:
    wanted = {one.label: one.changes_outputs for one in recommend(REQUESTS, FEW, shipped_table()).configurations}
    assert wanted.pop("vllm-fp8") == "fp8 instead of bfloat16"
    assert set(wanted.values()) == {None}
    kept = recommend(REQUESTS, FEW, shipped_table(), keep_outputs=True)
    assert {one.label for one in kept.configurations} == set(wanted)


def test_servers_that_differ_in_router_or_context_alone_are_told_apart() -> None:
    specs = [
        ServerSpec(),
        ServerSpec(usage_context="llm"),
        ServerSpec(replicas=2),
        ServerSpec(replicas=2, router="least_loaded"),
    ]
    assert len({label_of(open_server(spec, shipped_table())) for spec in specs}) == 4


def test_a_candidate_that_cannot_serve_is_left_out_with_its_reason() -> None:
    # 14 attention heads: two GPUs share them, four cannot.
    present = ServerSpec(model="qwen2.5-0.5b", options=EngineOptions(tensor_parallel_size=2))
    found = recommend(REQUESTS, None, shipped_table(), present=present, keep_outputs=True)
    assert set(found.left_out) == {"vllm-tp4"}


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


def test_configurations_are_of_one_model_and_kind_of_gpu() -> None:
    with raises("several-gpus"):
        recommend(REQUESTS, [ServerSpec(gpu="h100-sxm")], shipped_table())
