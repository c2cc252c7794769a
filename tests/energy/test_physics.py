"""The physical model: what follows from bytes, FLOPs and datasheets alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infergy.energy.demand import decode_demand, join, prefill_demand
from infergy.energy.physics import BY_NAME, CONSTANTS, Chips, Physics
from infergy.hardware.gpus import get_gpu
from infergy.hardware.models import get_model, shape_of_id
from infergy.measure.calibration_plan import sum_works

LLAMA, MIXTURE, HYBRID = get_model("llama-3.1-8b"), get_model("qwen3-30b-a3b"), get_model("nemotron-nano-12b-v2")
BATCHES = np.array([1.0, 8.0, 64.0, 512.0])


def chips(name: str, dtype: str = "bfloat16") -> Chips:
    return Chips.of([get_gpu(name)], [dtype])


def test_a_decode_step_asks_for_what_the_shape_tells() -> None:
    demand = decode_demand(LLAMA, np.array([4.0]), np.array([1000.0]))
    assert demand.weight_bytes + demand.expert_bytes == pytest.approx(
        LLAMA.step_weight_bytes(4) - 4 * 2 * LLAMA.hidden, rel=1e-9
    )
    assert demand.cache_bytes == pytest.approx(4 * (LLAMA.kv_bytes(1000) + LLAMA.kv_bytes_per_token()))
    assert demand.linear_flops + demand.attention_flops == pytest.approx(4 * LLAMA.decode_flops(1000))
    assert demand.attention_flops == pytest.approx(4 * LLAMA.layers * 1000 * LLAMA.attention.pair_flops())
    assert demand.expert_row_flops == 0


def test_experts_are_read_as_far_as_they_are_visited() -> None:
    demand = decode_demand(MIXTURE, np.array([1.0, 1e6]), np.array([10.0, 10.0]))
    assert MIXTURE.experts is not None
    assert demand.experts_visited == pytest.approx([8, 128])
    assert demand.expert_bytes / MIXTURE.routed_bytes() == pytest.approx([8 / 128, 1])
    one, divided = (
        decode_demand(MIXTURE, np.array([8.0]), np.array([10.0]), gpus=4.0, is_dispatched=d) for d in (True, False)
    )
    assert one.expert_size_bytes == pytest.approx(4 * divided.expert_size_bytes)


def test_a_state_is_read_and_written_at_any_length() -> None:
    short, long = (decode_demand(HYBRID, np.array([1.0]), np.array([c])) for c in (10.0, 20.0))
    grown = long.cache_bytes - short.cache_bytes
    assert short.cache_bytes - grown - HYBRID.kv_bytes_per_token() == pytest.approx(2 * HYBRID.state_bytes)


def test_a_prefill_writes_its_cache_and_computes_its_prompt() -> None:
    demand = prefill_demand(LLAMA, np.array([2.0]), np.array([512.0]))
    assert demand.linear_flops + demand.attention_flops == pytest.approx(2 * LLAMA.prefill_flops(512))
    assert demand.attention_flops == pytest.approx(2 * LLAMA.attention_flops(1, 512))
    assert demand.cache_bytes == pytest.approx(2 * LLAMA.kv_bytes(512))


def test_heads_of_keys_and_values_lie_on_several_gpus_where_there_are_more_of_these() -> None:
    """Llama-3.1-8B has 8 such heads, Qwen3-30B-A3B has 4; of MLA's latents every GPU has its own."""
    one, eight, sixteen = (decode_demand(LLAMA, BATCHES, np.full(4, 2000.0), gpus=g) for g in (1.0, 8.0, 16.0))
    assert (eight.cache_bytes == one.cache_bytes).all()
    assert sixteen.cache_bytes == pytest.approx(2 * one.cache_bytes)
    latent = get_model("deepseek-v3")
    alone, shared = (decode_demand(latent, BATCHES, np.full(4, 2000.0), gpus=gpus) for gpus in (1.0, 8.0))
    assert shared.cache_bytes == pytest.approx(8 * alone.cache_bytes)
    apart = decode_demand(latent, BATCHES, np.full(4, 2000.0), gpus=8.0, is_replicated=True)
    assert (apart.cache_bytes == alone.cache_bytes).all()


def test_what_gpus_exchange_is_counted_as_a_calibration_counts_it() -> None:
    """A sum of one token's values, twice a layer: as many bytes as the same sums of `infergy calibrate`."""
    demand = decode_demand(LLAMA, np.array([64.0]), np.array([100.0]), gpus=2.0)
    _, large = sum_works()
    a_byte = large.link_bytes / large.sizes[0]
    assert demand.reduced_bytes == pytest.approx(2 * LLAMA.layers * 64 * LLAMA.hidden * 2 * a_byte)


def test_each_gpu_reads_all_that_is_not_divided_where_it_serves_requests_of_its_own() -> None:
    one, eight = (decode_demand(MIXTURE, BATCHES, BATCHES, gpus=8.0, is_replicated=r) for r in (False, True))
    assert eight.weight_bytes == pytest.approx(8 * one.weight_bytes)
    assert eight.expert_bytes == pytest.approx(one.expert_bytes)


def test_experts_compute_rows_in_vain_which_large_batches_fill() -> None:
    demand = decode_demand(MIXTURE, np.array([1.0, 4096.0]), np.full(2, 10.0))
    rows = BY_NAME["expert_rows"].value
    vain = demand.expert_row_flops * rows / demand.linear_flops
    assert vain[0] > 1
    assert vain[1] < 0.2
    assert MIXTURE.experts is not None
    one_row = 2 * MIXTURE.experts.expert_matmul(MIXTURE.hidden) * MIXTURE.experts.layers
    assert demand.expert_row_flops == pytest.approx(one_row * demand.experts_visited)


def test_fp8_scaled_in_blocks_is_told_apart_where_the_checkpoint_says_so() -> None:
    qwen, llama = shape_of_id("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8"), shape_of_id("meta-llama/Llama-3.1-405B-FP8")
    assert qwen is not None
    assert llama is not None
    one = np.array([8.0])
    assert decode_demand(qwen, one, one, dtype="fp8").is_block_scaled == 1
    assert decode_demand(qwen, one, one).is_block_scaled == 0
    assert decode_demand(llama, one, one, dtype="fp8").is_block_scaled == 0
    assert decode_demand(get_model("deepseek-v3"), one, one, dtype="fp8").is_block_scaled == 1
    blocks = decode_demand(qwen, one, one, dtype="fp8")
    plain = replace(blocks, is_block_scaled=np.zeros(1))
    slower, faster = (Physics().passes(d, chips("h200", "fp8")) for d in (blocks, plain))
    assert slower.seconds > faster.seconds
    assert slower.energy_j > faster.energy_j


def test_large_batches_take_fewer_joules_a_token_and_more_seconds() -> None:
    found = Physics().passes(decode_demand(LLAMA, BATCHES, np.full(4, 512.0)), chips("h100-sxm"))
    assert (np.diff(found.energy_j / BATCHES) < 0).all()
    assert (np.diff(found.seconds) > 0).all()


@pytest.mark.parametrize("gpu", ["a100-80gb-sxm", "h100-sxm", "h200", "b200"])
@pytest.mark.parametrize("shape", [LLAMA, MIXTURE, HYBRID])
def test_power_lies_between_base_and_limit(gpu: str, shape: object) -> None:
    demand = join(
        [
            decode_demand(shape, BATCHES, np.full(4, 2000.0)),  # type: ignore[arg-type]
            prefill_demand(shape, BATCHES, np.full(4, 2000.0)),  # type: ignore[arg-type]
        ]
    )
    found = Physics().passes(demand, chips(gpu))
    power_w = found.energy_j / found.seconds
    tdp_w = get_gpu(gpu).tdp_w
    assert (power_w > BY_NAME["base_share"].value * tdp_w * 0.99).all()
    assert (power_w < tdp_w * 1.001).all()


def test_at_the_limit_time_is_stretched_and_its_base_power_paid() -> None:
    demand = prefill_demand(LLAMA, np.array([64.0]), np.array([2048.0]))
    mild = Physics()
    hot = Physics(values={"flop_share": 2 * BY_NAME["flop_share"].value})
    one, other = (physics.passes(demand, chips("h200")) for physics in (mild, hot))
    assert other.seconds > 1.2 * one.seconds
    assert other.energy_j / other.seconds <= 700.0 * 1.001


def test_gpus_that_share_a_step_save_time_and_not_joules() -> None:
    demand = [decode_demand(LLAMA, np.array([8.0]), np.array([512.0]), gpus=float(gpus)) for gpus in (1, 2, 4)]
    found = [Physics().passes(one, chips("h100-sxm")) for one in demand]
    assert [one.seconds[0] for one in found] == sorted((one.seconds[0] for one in found), reverse=True)
    assert [one.energy_j[0] for one in found] == sorted(one.energy_j[0] for one in found)


def test_fp8_reads_half_and_is_computed_with_at_its_own_width_only_where_the_gpu_can() -> None:
    wide, narrow = (decode_demand(LLAMA, np.array([1.0]), np.array([512.0]), dtype=d) for d in ("bfloat16", "fp8"))
    assert 0.5 < (narrow.weight_bytes / wide.weight_bytes)[0] < 0.55
    assert chips("h200", "fp8").peak == 2 * chips("h200").peak
    assert chips("a100-80gb-sxm", "fp8").peak == chips("a100-80gb-sxm").peak


def test_a_gpus_own_factor_moves_that_gpu_alone() -> None:
    both = Chips.of([get_gpu("h100-sxm"), get_gpu("b200")], ["bfloat16"] * 2)
    demand = decode_demand(LLAMA, np.array([8.0, 8.0]), np.array([512.0, 512.0]))
    plain = Physics().passes(demand, both)
    own = Physics(factors={"b200": {"base_share": 1.5}}).passes(demand, both)
    assert own.energy_j[0] == plain.energy_j[0]
    assert own.energy_j[1] > plain.energy_j[1]


def test_passes_told_together_are_those_told_alone() -> None:
    together = decode_demand(MIXTURE, BATCHES, np.full(4, 300.0), gpus=2.0)
    found = Physics().passes(together, chips("h100-sxm"))
    for place in range(4):
        alone = Physics().passes(together.take([place]), chips("h100-sxm"))
        assert alone.energy_j[0] == found.energy_j[place]


def test_every_constant_says_what_it_is_and_where_its_prior_is_from() -> None:
    assert len(BY_NAME) == len(CONSTANTS)
    for one in CONSTANTS:
        assert one.value > 0
        assert 0 < one.spread <= 1
        assert one.meaning
        assert one.source


def test_more_of_anything_never_takes_fewer_joules() -> None:
    demand = decode_demand(LLAMA, np.array([8.0]), np.array([512.0]))
    base = Physics().passes(demand, chips("h200")).energy_j
    for name in ("weight_bytes", "cache_bytes", "linear_flops", "attention_flops", "layers", "sequences"):
        more = replace(demand, **{name: getattr(demand, name) * 1.1 + 1.0})
        assert Physics().passes(more, chips("h200")).energy_j > base
