"""Constants from windows of plain work: against simulated GPUs that obey known ones, drawn at random."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.catalog.gpus import IDLE_SHARE, get_gpu
from infergy.catalog.models import get_model
from infergy.cost.calibration import (
    Calibration,
    find_calibration,
    fit_calibration,
    load_calibration,
    narrow,
    shipped_calibrations,
)
from infergy.cost.calibration_fit import BEARS, is_used
from infergy.cost.constants import BY_NAME, Column, Fit, prior_fit
from infergy.cost.rates import Rates, rates_of, server_work
from infergy.cost.step import StepSums, added_j, free_s, stretched_s
from infergy.measure.calibrate import calibrate
from infergy.measure.calibration_work import SimulatedBench, draw_truth
from infergy.meters.simulated import SimulatedMeter, pretend_node
from infergy.records import GpuState
from infergy.records.calibration import LAUNCH, REDUCE, CalibrationWindow, Workload, read_calibration_file
from raising import raises

SEEDS = range(8)
IDLE_W = IDLE_SHARE * 700
NOT_APART = ("fp8_flops", "fp8_flop_energy")
"""At the power limit seconds follow from joules: what fp8 products take tells energy × time^slowing of a FLOP."""
LEFT_OPEN = (*NOT_APART, "compute_efficiency")
"""And matmuls are at the limit, so that how fast they would be without it is not to be seen."""


@cache
def windows(seed: int, scatter: float = 0.01, gpu: str = "h200") -> tuple[CalibrationWindow, ...]:
    device = get_gpu(gpu)
    node = pretend_node(device, 1)
    bench = SimulatedBench(node, device, draw_truth(seed) | {"scatter": scatter}, seed)
    path = Path(f"/proc/self/fd/{_memory_file()}")
    events = list(calibrate(SimulatedMeter(node), lambda: bench, path, budget_s=600))
    found = [event.window for event in events if event.window is not None]
    draw = random.Random(f"{seed} all-reduce")
    reduced = (_all_reduce(found[0], seed, size, draw.lognormvariate(0.0, scatter)) for size in (2**14, 2**28))
    return (*found, *reduced)


def _all_reduce(window: CalibrationWindow, seed: int, size: int, scatter: float) -> CalibrationWindow:
    """A window of all-reduces over two GPUs, as older files hold them."""
    work = Workload(name=f"sum of {size} B", kind=REDUCE, sizes=(size,), gpus=2, link_bytes=float(size))
    call_s = (reduce_s(seed) + size / get_gpu("h200").link.bandwidth) * scatter
    return replace(window, workload=work, calls=round(3.0 / call_s), duration_s=round(3.0 / call_s) * call_s)


def reduce_s(seed: int) -> float:
    return random.Random(seed).uniform(5e-6, 25e-6)


def _memory_file() -> int:
    import os

    return os.memfd_create("windows")


def truth_of(seed: int) -> dict[str, float]:
    truth = draw_truth(seed) | {"reduce_s": reduce_s(seed)}
    return {name: 12 * truth["launch_s"] if name == "layer_s" else truth[name] for name in BEARS}


def off(found: Calibration, seed: int) -> dict[str, float]:
    """By how much each constant is off, in logarithm."""
    truth = truth_of(seed)
    return {one.name: math.log(one.value / truth[one.name]) for one in found.constants}


def rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BEARS) - set(LEFT_OPEN)))
def test_each_constant_that_a_gpu_obeys_is_found_again(name: str) -> None:
    prior = rms([math.log(BY_NAME[name].value / truth_of(seed)[name]) for seed in SEEDS])
    found = rms([off(fit_calibration(windows(seed)), seed)[name] for seed in SEEDS])
    assert found < prior / 2.5
    # What a busy GPU takes beside idle power and work is the least part of its power.
    assert found < (0.16 if name == "busy_share" else 0.12)


def test_a_product_too_small_for_all_multiprocessors_tells_nothing_of_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An H100's window of 1024 × 1024 × 1024 would else pass for slow launches: docs/calibration.md."""
    shipped = read_calibration_file(find_calibration("h100-sxm"))
    (small,) = (one for one in shipped if one.workload.sizes == (1024, 1024, 1024))
    assert not is_used(small)
    assert all(is_used(one) for one in shipped if one.workload.sizes == (2048, 2048, 2048))
    slower = replace(small, duration_s=3 * small.duration_s)
    assert fit_calibration((*shipped, slower)).constants == fit_calibration(shipped).constants
    layer_s = {one.name: one.value for one in fit_calibration(shipped).constants}["layer_s"]
    assert layer_s == pytest.approx(15.9e-6, rel=0.01)
    (launch,) = (one for one in shipped if one.workload.kind == LAUNCH and one.workload.in_graph)
    assert 12 * launch.call_s == pytest.approx(15.5e-6, rel=0.01)
    monkeypatch.setattr("infergy.cost.calibration_fit.FEWEST_TILES", 0)
    with_it = {one.name: one.value for one in fit_calibration(shipped).constants}["layer_s"]
    assert with_it == pytest.approx(17.7e-6, rel=0.01)


def test_a_string_names_what_ships_and_a_path_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_calibrations() == ("h100-sxm",)
    assert find_calibration("h100-sxm").parent.name == "calibrations"
    assert find_calibration(Path("h100-sxm")) == Path("h100-sxm")
    assert find_calibration("mine.jsonl") == Path("mine.jsonl")
    (tmp_path / "mine").write_text("")
    assert find_calibration("mine") == Path("mine")
    with raises("unknown-calibration", name="h200", known=["h100-sxm"]):
        find_calibration("h200")
    for name in shipped_calibrations():
        found = load_calibration(name)
        assert found.gpu == name
        assert not found.simulated


def test_where_fp8_throttles_its_flops_times_their_joules_are_found() -> None:
    powers = dict(zip(NOT_APART, (BY_NAME["slowing"].value, 1.0), strict=True))
    both = [
        sum(power * off(fit_calibration(windows(seed)), seed)[name] for name, power in powers.items()) for seed in SEEDS
    ]
    assert rms(both) < 0.06


@pytest.mark.slow
def test_the_sds_hold_where_windows_scatter_as_they_are_taken_to() -> None:
    scores = []
    for seed in SEEDS:
        found = fit_calibration(windows(seed, scatter=0.07))
        sds = {one.name: one.sd for one in found.constants}
        scores += [value / sds[name] for name, value in off(found, seed).items() if name not in NOT_APART]
    assert 0.4 < rms(scores) < 1.4


def test_a_calibrated_step_is_nearer_to_the_gpu_than_the_datasheets() -> None:
    gpu, work = get_gpu("h200"), server_work(get_model("llama-3.1-8b"))
    steps = (
        decode_sums(batch=np.array([1.0, 8.0, 64.0]), context=2048.0),
        prefill_sums(prompts=np.array([1.0, 8.0, 16.0]), tokens=512.0),
    )
    for seed in SEEDS:
        found = {one.name: one.value for one in fit_calibration(windows(seed)).constants}
        # How much a prefill saves at the power limit rests on `compute_efficiency`, which windows leave open.
        for sums, nearest in zip(steps, (0.03, 0.06), strict=True):
            (true_s, true_j), prior, mine = (
                costs(rates_of(work, gpu, {**prior_fit("vllm").constants("h200"), **values}, idle_w=IDLE_W), sums)
                for values in (truth_of(seed), {}, found)
            )
            for true, wrong, right in zip((true_s, true_j), prior, mine, strict=True):
                assert np.abs(right / true - 1).max() < max(nearest, np.abs(wrong / true - 1).max() / 3)


def decode_sums(batch: Column, context: float) -> StepSums:
    none = 0 * batch
    return StepSums(
        decodes=batch,
        context=batch * context,
        prefill_tokens=none,
        prefill_pairs=none,
        prefills=none,
        sampled=batch,
        padded=batch,
    )


def prefill_sums(prompts: Column, tokens: float) -> StepSums:
    none = 0 * prompts
    return StepSums(
        decodes=none,
        context=none,
        prefill_tokens=prompts * tokens,
        prefill_pairs=prompts * tokens * (tokens + 1) / 2,
        prefills=prompts,
        sampled=prompts,
        padded=prompts * tokens,
    )


def costs(rates: Rates, sums: StepSums) -> tuple[Column, Column]:
    added, power = added_j(rates, sums), rates.power
    seconds = stretched_s(power, added, free_s(rates, sums), power.limit_w, np.exp, np.maximum)
    return seconds, added + power.base_w * seconds


NAMES = tuple(BY_NAME)
FINDINGS = st.lists(
    st.tuples(st.sampled_from((*NAMES, "a constant of another model")), st.floats(0.3, 3.0), st.floats(0.01, 1.0)),
    min_size=1,
    max_size=5,
    unique_by=lambda finding: finding[0],
).map(
    lambda findings: [
        (name, BY_NAME[name].value * factor if name in BY_NAME else factor, sd) for name, factor, sd in findings
    ]
)


def a_fit(seed: int) -> Fit:
    """Of some constants, and of the differences of one kind of GPU, correlated."""
    draw = np.random.default_rng(seed)
    names = (*draw.choice(NAMES, 12, replace=False).tolist(), "byte_j@h100-sxm", "layer_s@h100-sxm")
    roots = draw.normal(scale=0.1, size=(len(names), len(names)))
    return Fit(
        engine="vllm",
        names=names,
        mean=draw.normal(scale=0.2, size=len(names)),
        covariance=roots @ roots.T + 1e-4 * np.eye(len(names)),
        energy_sd=0.02,
        time_sd=0.02,
    )


@given(st.integers(0, 50), FINDINGS, st.sampled_from(["h100-sxm", "b200"]))
@settings(deadline=None)
def test_a_calibration_narrows_a_fit(seed: int, findings: list[tuple[str, float, float]], gpu: str) -> None:
    fit = a_fit(seed)
    narrowed = narrow(fit, gpu, findings)
    eigenvalues = np.linalg.eigvalsh(narrowed.covariance)
    assert eigenvalues.min() > 0
    for kind in (gpu, "h200"):
        before, after = (np.diag(one.logs(kind)[2]) for one in (fit, narrowed))
        assert (after <= before + 1e-9).all()
    # Its findings pull the constants they are of towards them, none of them further.
    if len(findings) == 1 and findings[0][0] in BY_NAME:
        name, value, _ = findings[0]
        low, high = sorted((fit.constants(gpu)[name], value))
        assert low * (1 - 1e-9) <= narrowed.constants(gpu)[name] <= high * (1 + 1e-9)


@given(st.integers(0, 50), FINDINGS)
@settings(deadline=None)
def test_findings_one_after_the_other_say_what_all_say_at_once(
    seed: int, findings: list[tuple[str, float, float]]
) -> None:
    at_once = narrow(a_fit(seed), "b200", findings)
    in_turn = a_fit(seed)
    for finding in reversed(findings):
        in_turn = narrow(in_turn, "b200", [finding])
    for kind in ("b200", "h200"):
        (_, mean, covariance), (_, other, others) = (one.logs(kind) for one in (at_once, in_turn))
        assert mean == pytest.approx(other, abs=1e-8)
        assert covariance == pytest.approx(others, abs=1e-8)


def test_a_certain_finding_stands_within_what_engines_differ_by() -> None:
    fit = prior_fit("vllm")
    narrowed = narrow(fit, "h200", [("eager_layer_s", 1e-3, 1e-6), ("unheard_of", 1.0, 0.1)])
    names, logs, covariance = narrowed.logs("h200")
    place = names.index("eager_layer_s")
    c = BY_NAME["eager_layer_s"]
    prior = c.sd**2 + c.gpu_sd**2
    assert logs[place] == pytest.approx(math.log(1e-3 / c.value) * prior / (prior + 0.01), rel=1e-6)
    assert covariance[place, place] == pytest.approx(prior * 0.01 / (prior + 0.01), rel=1e-6)
    assert narrow(fit, "h200", [("unheard_of", 1.0, 0.1)]) is fit


@pytest.mark.parametrize("name", sorted(set(BEARS) - {"busy_share"}))
def test_without_a_window_that_bears_on_it_a_constant_keeps_its_prior(name: str) -> None:
    found = fit_calibration([one for one in windows(1) if not BEARS[name](one)])
    (constant,) = (one for one in found.constants if one.name == name)
    assert constant.windows == 0
    assert constant.value == pytest.approx(constant.prior, rel=1e-3)
    assert constant.sd == pytest.approx(constant.prior_sd, rel=1e-3)


def test_more_windows_leave_less_open() -> None:
    few, all_of_them = fit_calibration(windows(2)[:8]), fit_calibration(windows(2))
    sds = [{one.name: one.sd for one in found.constants} for found in (few, all_of_them)]
    assert all(sds[1][name] <= sds[0][name] * 1.05 for name in BEARS)
    assert sds[1]["weight_efficiency"] < sds[0]["weight_efficiency"] / 1.2


def test_the_order_of_windows_does_not_matter() -> None:
    shuffled = random.Random(0).sample(windows(3), len(windows(3)))
    for one, other in zip(fit_calibration(windows(3)).constants, fit_calibration(shuffled).constants, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-5)


def test_a_flagged_window_counts_less_and_is_told() -> None:
    wrong = {"attention 128 x 2048", "attention 32 x 8192", "attention 32 x 2048"}
    hot = (GpuState(uuid="GPU-simulated-0", slowdowns=("hw_thermal_slowdown",)),)
    slow = [replace(one, duration_s=one.duration_s * 1.3) if one.workload.name in wrong else one for one in windows(4)]
    flagged = [replace(one, during=hot) if one.workload.name in wrong else one for one in slow]
    trusting, doubting = (abs(off(fit_calibration(one), 4)["cache_efficiency"]) for one in (slow, flagged))
    assert doubting < trusting / 2
    assert sum("clocks were lowered" in note for note in fit_calibration(flagged).notes) == len(wrong)
    assert not fit_calibration(slow).notes


def test_one_window_that_nothing_explains_pulls_no_constant_far() -> None:
    odd = [
        replace(one, duration_s=one.duration_s * 3) if one.workload.name.startswith("product 1 x 4096") else one
        for one in windows(5)
    ]
    assert abs(off(fit_calibration(odd), 5)["weight_efficiency"]) < 0.06


def test_failures_are_left_out_with_their_reason_until_a_window_replaces_them() -> None:
    (copy,) = (one for one in windows(6) if one.workload.name == "copy 1 GiB")
    failed = replace(copy, energy_j=None, reason="the counter stood still")
    found = fit_calibration([*windows(6)[:2], failed])
    assert found.notes == ("copy 1 GiB: left out: the counter stood still",)
    assert found == fit_calibration([*windows(6)[:2], failed])
    assert fit_calibration([failed, *windows(6)]).notes == ()


def test_only_windows_of_one_known_gpu_make_a_calibration() -> None:
    with raises("several-gpus"):
        fit_calibration([*windows(0), *windows(0, gpu="b200")])
    with raises("no-rows"):
        fit_calibration([])
    with raises("other-gpu", expected="b200"):
        fit_calibration(windows(0), get_gpu("b200"))
    with raises("other-gpu"):
        fit_calibration(windows(0)).constants_of(get_gpu("b200"))


def test_a_gpu_that_is_not_in_the_catalog_is_described_by_a_file(tmp_path: Path) -> None:
    def renamed(one: CalibrationWindow) -> CalibrationWindow:
        gpus = tuple(replace(gpu, name="NVIDIA Unheard") for gpu in one.environment.gpus)
        return replace(one, environment=replace(one.environment, gpus=gpus))

    mine = [renamed(one) for one in windows(0)]
    with raises("unknown-gpu", name="NVIDIA Unheard"):
        fit_calibration(mine)
    text = (
        "peak_flops = { bfloat16 = 989.5e12, fp8 = 1979e12 }\nmemory_bytes = 150_000_000_000\n"
        'memory_bandwidth = 4.8e12\ntdp_w = 700\nlink = { kind = "NVLink 4", bandwidth = 450e9 }\n'
    )
    (tmp_path / "mine.toml").write_text(f'title = "NVIDIA Unheard"\n{text}')
    found = fit_calibration(mine, get_gpu(str(tmp_path / "mine.toml")))
    assert [one.value for one in found.constants] == [one.value for one in fit_calibration(windows(0)).constants]
    (tmp_path / "other.toml").write_text(f'title = "Another"\n{text}')
    with raises("other-gpu"):
        fit_calibration(mine, get_gpu(str(tmp_path / "other.toml")))


def test_a_limit_below_the_datasheets_is_told() -> None:
    def capped(one: CalibrationWindow) -> CalibrationWindow:
        gpus = tuple(replace(gpu, power_limit_w=500.0) for gpu in one.environment.gpus)
        return replace(one, environment=replace(one.environment, gpus=gpus))

    found = fit_calibration([capped(one) for one in windows(0)])
    assert any("power limit of 500 W, not the 700 W" in note for note in found.notes)


def test_a_missing_or_foreign_file_says_what_to_type(tmp_path: Path) -> None:
    with raises("file-not-found", path=tmp_path / "none.jsonl"):
        load_calibration(tmp_path / "none.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"schema": "infergy.measurement/4"}\n')
    with raises("wrong-schema", line=1, found="infergy.measurement/4"):
        load_calibration(tmp_path / "rows.jsonl")


def test_how_kernels_of_old_windows_were_launched_is_read_from_their_words() -> None:
    found = {one.how: one.in_graph for one in read_calibration_file(find_calibration("h100-sxm"))}
    assert (found["idle"], found["mm, in a CUDA graph"], found["add, one by one"]) == (None, True, False)
