"""The fit of the step-cost model: known constants are found again, priors hold where nothing was measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infergy.catalog import get_gpu, get_model
from infergy.cost.constants import BY_NAME, Fit, constants_of, prior_fit, published_fit
from infergy.cost.fit import fit
from infergy.cost.fit_rows import FitRow, run_rows
from infergy.cost.rates import rates_of
from infergy.cost.work import server_work

TRUTH = {"weight_efficiency": 0.72, "flop_share": 0.95, "step_s": 0.9e-3, "byte_j": 1e-10}


def batch_steps(inputs: int, outputs: int, batch: int) -> np.ndarray:
    tokens = inputs * batch
    prefill = [1, 0, 0, 0, tokens, batch * inputs * (inputs + 1) / 2, batch, batch, 0 if tokens > 512 else tokens]
    decode = [outputs - 1, 0, batch, batch * (inputs + outputs / 2), 0, 0, 0, batch, batch]
    return np.array([prefill, decode], dtype=float)


def make_row(inputs: int, outputs: int, batch: int, *, unit: str = "GPU-a", offset: float = 0.0, gpu: str = "h200",
             constants: dict[str, float] | None = None) -> FitRow:  # fmt: skip
    work = server_work(get_model("llama-3.1-8b"))
    values = {**prior_fit("vllm").constants("h200"), **(constants or TRUTH)}
    found_s, found_j = 1.0, 1.0
    for _ in range(3):  # a row's limiter begins at its own mean power
        row = FitRow(
            work=work,
            gpu=get_gpu(gpu),
            server=False,
            calls=1,
            idle_s=0.0,
            idle_w=123.0,
            steps=batch_steps(inputs, outputs, batch),
            energy_j=found_j,
            energy_sd=0.004,
            seconds=found_s,
            unit=unit,
        )
        seconds, energy = run_rows([row], rates_of(work, get_gpu(gpu), values, idle_w=123.0), values["call_s"])
        found_s, found_j = float(np.ravel(seconds)[0]), float(np.ravel(energy)[0])
    return replace(row, energy_j=found_j * float(np.exp(offset)), seconds=found_s)


def grid(**given: object) -> list[FitRow]:
    return [
        make_row(inputs, outputs, batch, **given)  # type: ignore[arg-type]
        for inputs in (64, 512, 2048)
        for outputs in (64, 128, 512)
        for batch in (1, 8, 64)
    ]


def test_known_constants_are_found_again() -> None:
    found, left = fit("vllm", grid())
    values = found.constants("h200")
    for name, value in TRUTH.items():
        assert values[name] == pytest.approx(value, rel=0.12), name
    assert np.quantile(np.abs(left), 0.8) < 0.01


def test_a_unit_that_draws_more_does_not_move_the_constants() -> None:
    plain, _ = fit("vllm", grid())
    rows = grid() + grid(unit="GPU-b", offset=0.03)
    mixed, left = fit("vllm", rows)
    assert mixed.constants("h200")["weight_efficiency"] == pytest.approx(
        plain.constants("h200")["weight_efficiency"], rel=0.04
    )
    assert np.quantile(np.abs(left[:, 0]), 0.8) < 0.01


def test_what_no_row_concerns_keeps_its_prior() -> None:
    found, _ = fit("vllm", grid())
    assert found.constants("h200")["mxfp4_bytes"] == pytest.approx(BY_NAME["mxfp4_bytes"].value)
    names, _, covariance = found.logs("h200")
    place = names.index("mxfp4_bytes")
    assert covariance[place, place] == pytest.approx(BY_NAME["mxfp4_bytes"].sd ** 2, rel=1e-6)


def test_an_unmeasured_gpu_has_the_common_part_and_more_uncertainty() -> None:
    found, _ = fit("vllm", grid())
    names, here, known = found.logs("h200")
    _, there, unknown = found.logs("b200")
    place = names.index("weight_efficiency")
    assert unknown[place, place] > known[place, place]
    assert np.sign(here[place]) == np.sign(there[place])


def test_earlier_rows_count_as_a_prior() -> None:
    first, _ = fit("vllm", grid())
    second, _ = fit("vllm", [make_row(512, 64, 8)], first)
    assert second.constants("h200")["weight_efficiency"] == pytest.approx(
        first.constants("h200")["weight_efficiency"], rel=0.02
    )
    alone, _ = fit("vllm", [make_row(512, 64, 8)])
    place = first.names.index("flop_share")
    assert second.covariance[place, place] < alone.covariance[place, place]


def test_a_row_that_nothing_explains_pulls_little() -> None:
    rows = grid()
    rows.append(make_row(512, 128, 8, offset=0.7))
    plain, _ = fit("vllm", grid())
    found, _ = fit("vllm", rows)
    for name in TRUTH:
        assert found.constants("h200")[name] == pytest.approx(plain.constants("h200")[name], rel=0.1), name


def test_priors_alone_are_a_fit() -> None:
    found: Fit = prior_fit("transformers")
    assert found.constants("a100-80gb-sxm")["cache_traffic"] == pytest.approx(3.0)
    assert not found.rows


def test_published_rows_say_what_ours_cannot() -> None:
    known, datasheet = published_fit("vllm"), prior_fit("vllm")
    assert np.linalg.eigvalsh(known.covariance).min() > 0
    for name in ("padded_rows", "expert_energy", "cache_energy", "mxfp4_flops"):
        place, plain = known.names.index(name), datasheet.names.index(name)
        assert known.covariance[place, place] < datasheet.covariance[plain, plain]
    assert published_fit("transformers").names == prior_fit("transformers").names
    assert not known.rows


def test_a_prior_keeps_its_kinds_of_gpu_and_its_rows() -> None:
    known = published_fit("vllm")
    found, _ = fit("vllm", grid(), known)
    assert {name for name in known.names if name.endswith("@b200")} <= set(found.names)
    again, _ = fit("vllm", [make_row(512, 64, 8)], found)
    assert again.rows["h200"] == found.rows["h200"] + 1


def test_hosts_differ_in_the_time_of_launches_and_are_forgotten() -> None:
    host_sd = constants_of("transformers")["eager_layer_s"].host_sd
    own, _ = fit("transformers", grid())
    found, _ = fit("transformers", [*grid(), *grid(unit="GPU-b")])
    assert not [name for name in found.names if "#" in name]
    names, _, covariance = found.logs("h200")
    place = names.index("eager_layer_s")
    assert covariance[place, place] > host_sd**2
    assert own.logs("h200")[2][place, place] < covariance[place, place]
