"""The scoreboard: rows, splits, published estimators against figures of their authors, and scores."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from infergy.errors import DataError, UsageError
from scoreboard.board import ESTIMATORS, Score, group_errors, score_all, score_new
from scoreboard.command import main, parse
from scoreboard.figure import points
from scoreboard.fit import fit_served, own_entries
from scoreboard.ours import Infergy, InfergyDatasheet, InfergyPhysics
from scoreboard.residual import Residual
from scoreboard.rivals import RIVALS, ecologits, flops_at_tdp, request_terms, vidur_power_w, wilkins_terms
from scoreboard.rows import Rows, backbone_of, find_shape, read_rows
from scoreboard.splits import SPLITS
from scoreboard.steps import stand_in

ROWS, ENERGY_J = read_rows()


@pytest.fixture(autouse=True)
def few_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit of all our rows takes ten seconds and more."""
    monkeypatch.setattr("scoreboard.fit.own_entries", lambda engine: tuple(own_entries(engine)[::16]))


CSV = Path(__file__).parents[2] / "benchmarks/scoreboard/mlenergy_v3.csv"
FEW = np.flatnonzero((ROWS.backbone == "llama-3-8b") | (ROWS.backbone == "qwen3-32b"))


def rows_where(**wanted: object) -> Rows:
    keep = np.ones(len(ROWS), dtype=bool)
    for name, value in wanted.items():
        keep &= getattr(ROWS, name) == value
    return ROWS.take(np.flatnonzero(keep))


def test_the_shipped_rows_have_shapes_and_hold_nothing_that_was_measured() -> None:
    assert len(ROWS) == 690
    assert all(shape is not None for shape in ROWS.shapes)
    assert not {"power", "throughput", "latency", "energy"} & {
        word for name in Rows.__dataclass_fields__ for word in name.split("_")
    }
    for shape, active, total in zip(ROWS.shapes, ROWS.active_parameters, ROWS.total_parameters, strict=True):
        assert shape is not None
        assert shape.parameters - shape.checkpoint.encoder_parameters == pytest.approx(total, rel=0.05)
        assert shape.active_parameters == pytest.approx(active, rel=0.16)


@pytest.mark.parametrize(
    ("models", "backbone"),
    [
        (["Qwen/Qwen3-8B", "Qwen/Qwen3-VL-8B-Instruct"], "qwen3-8b"),
        (["Qwen/Qwen3-Coder-30B-A3B-Instruct", "Qwen/Qwen3-Omni-30B-A3B-Instruct"], "qwen3-30b-a3b"),
        (["Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", "Qwen/Qwen3-VL-235B-A22B-Instruct"], "qwen3-235b-a22b"),
        (["Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"], "qwen3-480b-a35b"),
        (["meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"], "llama-3-70b"),
        (["deepseek-ai/DeepSeek-R1-0528", "deepseek-ai/DeepSeek-V3.1"], "deepseek-v3"),
        (["nvidia/NVIDIA-Nemotron-Nano-12B-v2", "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16"], "nemotron-nano-12b-v2"),
        (["google/gemma-3-27b-it"], "gemma-3-27b"),
        (["openai/gpt-oss-20b"], "gpt-oss-20b"),
        (["Qwen/Qwen2.5-32B-Instruct-AWQ", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"], "qwen2.5-32b"),
        (["deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "meta-llama/Meta-Llama-3-8B"], "llama-3-8b"),
        (["deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"], "qwen3-8b"),
        (["nvidia/DeepSeek-R1-0528-NVFP4"], "deepseek-v3"),
    ],
)
def test_variants_of_one_network_have_one_name(models: list[str], backbone: str) -> None:
    assert {backbone_of(model) for model in models} == {backbone}


def test_no_row_is_predicted_by_what_has_seen_it() -> None:
    for name, split in SPLITS.items():
        folds = list(split(ROWS))
        tested = np.concatenate([test for _, test in folds])
        assert len(tested) == len(set(tested))
        for train, test in folds:
            assert not set(train) & set(test)
            column = {"backbone": ROWS.backbone, "gpu": ROWS.gpu}.get(name)
            if column is not None:
                assert not set(column[train]) & set(column[test])
    series = np.array(ROWS.series())
    tested = np.concatenate([test for _, test in SPLITS["batch"](ROWS)])
    for one in np.unique(series):
        places = np.flatnonzero(series == one)
        ends = places[np.argsort(ROWS.batch[places], kind="stable")][[0, -1]]
        assert not set(ends) & set(tested)


def test_a_held_out_batch_keeps_both_its_neighbours() -> None:
    series = np.array(ROWS.series())
    tested = 0
    for train, test in SPLITS["batch"](ROWS):
        for one in np.unique(series[test]):
            places = np.flatnonzero(series == one)
            places = places[np.argsort(ROWS.batch[places], kind="stable")]
            for at in np.flatnonzero(np.isin(places, test)):
                assert {places[at - 1], places[at + 1]} <= set(train)
                tested += 1
    assert tested == 498


@pytest.mark.parametrize(
    ("active", "tokens", "kwh"), [(7.3, 200, 8.93720056859519e-06), (12.9, 200, 9.574944122117412e-06)]
)
def test_ecologits_gives_what_its_release_computes(active: float, tokens: int, kwh: float) -> None:
    """`gpu_energy` of ecologits 0.11.3, for the two models of its own tests (Mistral 7B, Mixtral 8x7B), batch 64."""
    row = rows_where(gpus=2).take([0])
    row.batch[:], row.active_parameters[:] = 64.0, active * 1e9
    assert ecologits(row) * tokens == pytest.approx(2 * kwh * 3.6e6, rel=1e-9)


@pytest.mark.parametrize(
    ("alphas", "joules"),
    [
        # Llama-2 7B, 13B and 70B on A100: alpha_0, alpha_1, alpha_2 of plots/routing/routing-offline.py.
        ((-3.894991, 31.522735, 0.042712), 31.522735 * 256 - 3.894991 * 500 + 0.042712 * 500 * 256),
        ((-6.794323, 56.008311, 0.072861), 56.008311 * 256 - 6.794323 * 500 + 0.072861 * 500 * 256),
        ((-12.0294, 414.8197, 0.3145), 414.8197 * 256 - 12.0294 * 500 + 0.3145 * 500 * 256),
    ],
)
def test_wilkins_coefficients_give_their_joules(alphas: tuple[float, float, float], joules: float) -> None:
    row = rows_where(task="lm-arena-chat").take([0])
    row.output_tokens[:] = 256.0
    assert wilkins_terms(row) @ np.array(alphas) * 256 == pytest.approx(joules)


def test_lengths_alone_are_told_again_from_joules_made_by_the_form() -> None:
    """No batch term, one GPU: the constants of a bilinear law come back where its signs allow it."""
    (rival,) = (one for one in RIVALS if one.name == "wilkins")
    some = rows_where(gpu="h100-sxm")
    energy_j = wilkins_terms(some) @ np.array([0.002, 0.03, 0.00001]) * some.active_parameters / 1e9
    assert rival.fit(some, energy_j).predict(some).energy_j == pytest.approx(energy_j, rel=0.02)


def test_the_request_form_has_the_terms_of_a_requests_work() -> None:
    """E / n_out = (a n_in^2 + b n_in + k) / n_out + c + d n_in + e n_out / 2, at n_in = 500, n_out = 300."""
    row = rows_where(task="lm-arena-chat").take([0])
    row.output_tokens[:] = 300.0
    a, b, k, c, d, e = 2.0, 3.0, 5.0, 7.0, 11.0, 13.0
    told = (a * 500**2 + b * 500 + k) / 300 + c + d * 500 + e * 300 / 2
    assert request_terms(row) @ np.array([a, b, k, c, d, e]) == pytest.approx(told)


def test_one_network_has_no_interval_of_the_median() -> None:
    rivals = [one for one in RIVALS if one.name == "ecologits"]
    one, two = (rows_where(backbone="llama-3-8b"), ROWS.take(FEW))
    (alone,) = score_new(ROWS, ENERGY_J, one, np.ones(len(one)), estimators=rivals)
    assert alone.median_ape is not None
    assert (alone.median_low, alone.median_high) == (None, None)
    (both,) = score_new(ROWS, ENERGY_J, two, np.ones(len(two)), estimators=rivals)
    assert both.median_low is not None
    assert both.median_high is not None
    assert both.median_low <= (both.median_ape or 0.0) <= both.median_high


def test_ecologits_gives_what_its_published_regression_gives() -> None:
    """Its batch of 64, 8 billion parameters, one GPU: 1e-3 kWh x (alpha exp(64 beta) 8 + gamma)."""
    row = rows_where(backbone="llama-3-8b", gpus=1).take([0])
    row.batch[:] = 64.0
    assert ecologits(row) == pytest.approx(3600 * (1.1665273e-6 * np.exp(-0.0112059 * 64) * 8.0 + 4.0529e-5), rel=1e-5)


def test_the_power_curve_of_vidur_goes_from_idle_to_full() -> None:
    assert vidur_power_w(np.array([0.0, 0.45, 0.9]), 60.0, 700.0) == pytest.approx([60.0, 700.0, 700.0])
    assert vidur_power_w(np.array([0.1]), 60.0, 700.0) == pytest.approx(60 + 640 * (0.1 / 0.45) ** 0.7)


def test_the_ideal_is_flops_over_peak_times_tdp() -> None:
    row = rows_where(backbone="llama-3-8b", gpu="h100-sxm").take([0])
    assert flops_at_tdp(row) == pytest.approx(2 * 8e9 / 989.4e12 * 700, rel=1e-3)


def test_interpolation_says_nothing_of_what_was_not_measured() -> None:
    (rival,) = (one for one in RIVALS if one.name == "interpolation")
    row = rows_where(backbone="llama-3-8b", gpu="h100-sxm")
    order = np.argsort(row.batch)
    energy_j = 10.0 / row.batch**0.5
    fitted = rival.fit(row.take(order[[0, -1]]), energy_j[order[[0, -1]]])
    assert fitted.predict(row.take(order[1:-1])).energy_j == pytest.approx(energy_j[order[1:-1]])
    assert np.isnan(fitted.predict(rows_where(backbone="qwen3-32b")).energy_j).all()


def test_constants_are_recovered_from_joules_made_by_them() -> None:
    some = ROWS.take(FEW)
    truth = fit_served(some, ENERGY_J[FEW])
    again = fit_served(some, truth.energy_j(some))
    off = np.abs(again.energy_j(some) / truth.energy_j(some) - 1)
    # Priors pull a little where rows tell little.
    assert np.median(off) < 0.03
    assert off.max() < 0.15


def test_the_same_rows_are_fitted_once_and_others_anew() -> None:
    some, energy_j = ROWS.take(FEW[:12]), ENERGY_J[FEW[:12]]
    first = fit_served(some, energy_j)
    assert fit_served(ROWS.take(FEW[:12]), energy_j.copy()) is first
    dearer = fit_served(some, energy_j * 1.5)
    assert (dearer.energy_j(some) > first.energy_j(some)).all()


def test_one_measurement_helps_and_none_hurts() -> None:
    """The process follows a measured row half way, and its neighbours, another GPU's rows most of all, less."""
    some = ROWS.take(FEW)
    one = some.take([3])
    residual = Residual(one, np.array([0.3]))
    at, half = residual.at(one)
    assert 0.15 < at[0] < 0.3
    near, wider = residual.at(some)
    assert (np.abs(near) <= at + 1e-9).all()
    assert (wider >= half - 1e-9).all()
    other = some.gpu != one.gpu[0]
    assert (near[other] < at / 2).all()
    assert wider[other].min() > half[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "mine.csv", "--split", "batch"], "leave them out with --rows"),
        (["--by", "backbone", "-o", "board.svg"], "leave out -o"),
        (["--by", "backbone,gpus,tasks"], "unknown column 'tasks'; did you mean task"),
        (["--configs", "no/such/folder"], "no such folder"),
        (["-o", "board.txt"], r"ends in one of .*\.svg"),
    ],
)
def test_options_that_cannot_be_meant_are_rejected(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=words):
        parse(arguments)
    assert main(arguments) == 2
    assert re.search(f"^error: .*{words}", capsys.readouterr().err)


def test_a_model_without_attention_has_joules_too() -> None:
    """A state alone: no cache to divide by its layers."""
    rows = rows_where(backbone="nemotron-nano-12b-v2").take([0])
    assert rows.shapes[0] is not None
    bare = replace(rows, shapes=(replace(rows.shapes[0], attention_layers=0),))
    energy_j = InfergyPhysics().fit(ROWS, ENERGY_J).predict(bare).energy_j
    assert 0 < energy_j[0] < 100


def test_a_model_known_by_its_parameters_alone_is_predicted_too() -> None:
    for name in ("llama-3-8b", "qwen3-30b-a3b"):
        row = rows_where(backbone=name).take([0])
        bare = Rows(**{n: getattr(row, n) for n in Rows.__dataclass_fields__ if n != "shapes"}, shapes=(None,))
        shape = stand_in(bare, 0)
        assert shape.parameters == pytest.approx(row.total_parameters[0], rel=0.25)
        known, guessed = (InfergyDatasheet().fit(one, ENERGY_J[:1]).predict(one).energy_j for one in (row, bare))
        assert guessed == pytest.approx(known, rel=0.5)


def test_ours_is_first_on_a_split_and_its_intervals_hold() -> None:
    names = ("infergy", "power-law", "roofline-tdp", "ecologits")
    scores = score_all(
        ROWS, ENERGY_J, splits=["gpu"], estimators=[one for one in ESTIMATORS if one.name in names], tasks="text"
    )
    assert {score.rows for score in scores} == {430}
    by_name = {score.estimator: score.median_ape for score in scores}
    assert min(by_name, key=lambda name: by_name[name] or 9.0) == "infergy"
    (ours,) = (score for score in scores if score.estimator == "infergy")
    assert ours.coverage_90 is not None
    assert 0.85 <= ours.coverage_90 <= 0.97


def test_nine_in_ten_rows_are_as_near_to_the_datasheet_as_its_range_says() -> None:
    found = InfergyDatasheet().fit(ROWS, ENERGY_J).predict(ROWS)
    assert found.low_j is not None
    assert found.high_j is not None
    inside = (found.low_j <= ENERGY_J) & (found.high_j >= ENERGY_J)
    assert 0.88 < np.mean(inside) < 0.92


def test_a_users_rows_are_scored_by_estimators_fitted_to_the_shipped_ones(tmp_path: Path) -> None:
    frame = pl.read_csv(CSV).head(6)
    mine = tmp_path / "mine.csv"
    frame.with_columns(pl.lit("me/unheard-of").alias("model_id")).write_csv(mine)
    rows, energy_j = read_rows(mine)
    assert rows.shapes == (None,) * 6
    (score,) = score_new(ROWS, ENERGY_J, rows, energy_j, estimators=[Infergy()])
    assert (score.split, score.rows) == ("rows", 6)
    assert score.median_ape is not None
    assert score.median_ape < 1.0
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "me__unheard-of.json").write_text(
        (Path(__file__).parents[2] / "src/infergy/data/models/qwen3-235b-a22b.json").read_text()
    )
    assert all(shape is not None for shape in read_rows(mine, tmp_path / "configs")[0].shapes)
    (tmp_path / "configs" / "me__unheard-of.json").write_text('{"model_type": "unknown"}')
    told: list[str] = []
    assert read_rows(mine, tmp_path / "configs", told.append)[0].shapes == (None,) * 6
    assert "skipped" in told[0]
    assert "a usual shape with as many parameters is assumed" in told[1]


@pytest.mark.parametrize("place", ["me/Unheard-Of/config.json", "me--unheard-of.json", "Unheard_Of/config.json"])
def test_a_configuration_is_found_by_the_models_name(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    shipped = Path(__file__).parents[2] / "src/infergy/data/models/qwen3-8b.json"
    (tmp_path / place).write_text(shipped.read_text())
    found = find_shape("me/unheard-of", tmp_path)
    assert found is not None
    assert found.hidden == 4096
    assert find_shape("me/heard-of", tmp_path) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.drop("num_gpus"), "no column num_gpus"),
        (lambda frame: frame.with_columns(pl.lit("many").alias("avg_batch_size")), "row 1: avg_batch_size is 'many'"),
        (lambda frame: frame.with_columns(pl.lit(0).alias("energy_per_token_joules")), "expected a number above 0"),
        (lambda frame: frame.with_columns(pl.lit(float("inf")).alias("energy_per_token_joules")), "row 1: .* is inf"),
        (lambda frame: frame.with_columns(pl.lit(1.5).alias("num_gpus")), "num_gpus is 1.5; expected a whole number"),
        (
            lambda frame: frame.with_columns(pl.lit("int2").alias("weight_precision")),
            "is 'int2'; expected one of .*fp8",
        ),
        (lambda frame: frame.with_columns(pl.lit("Moe").alias("architecture")), "is 'Moe'; expected one of Dense"),
        (
            lambda frame: frame.with_columns(pl.lit(None, pl.String).alias("task")),
            "row 1: task is None; expected a name",
        ),
        (lambda frame: frame.head(0), "no rows; expected a measured configuration per line"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: object, words: str) -> None:
    frame = pl.read_csv(CSV).head(3)
    mine = tmp_path / "mine.csv"
    change(frame).write_csv(mine)  # type: ignore[operator]
    with pytest.raises(DataError, match=words):
        read_rows(mine)


def test_a_gpu_outside_the_catalog_is_named(tmp_path: Path) -> None:
    frame = pl.read_csv(CSV).head(3)
    mine = tmp_path / "mine.csv"
    frame.with_columns(pl.lit("H101").alias("gpu_model")).write_csv(mine)
    with pytest.raises(UsageError, match="H101"):
        read_rows(mine)


@pytest.mark.slow
def test_the_command_prints_a_list_for_programs_and_a_table_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.csv"
    pl.read_csv(CSV).filter(pl.col("model_id") == "google/gemma-3-27b-it").write_csv(mine)
    assert main(["--rows", str(mine), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"estimator", "split", "rows", "median_ape", "p90_ape", "coverage_90"} <= printed[0].keys()
    assert main(["--rows", str(mine)]) == 0
    assert "Your rows" in capsys.readouterr().out


def test_errors_of_groups_are_those_of_their_held_out_rows(capsys: pytest.CaptureFixture[str]) -> None:
    some, energy_j = ROWS.take(FEW), ENERGY_J[FEW]
    errors = group_errors(InfergyPhysics(), some, energy_j, split="backbone", columns=["backbone", "gpu"])
    assert [error.group for error in errors] == [
        (backbone, gpu) for backbone in ("llama-3-8b", "qwen3-32b") for gpu in ("b200", "h100-sxm")
    ]
    (score,) = score_all(some, energy_j, splits=["backbone"], estimators=[InfergyPhysics()])
    assert sum(error.rows for error in errors) == score.rows
    for error in errors:
        assert error.lowest_error <= error.median_error <= error.highest_error
    assert main(["--by", "gpu", "--split", "gpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(one["group"], one["rows"]) for one in printed] == [(["b200"], 228), (["h100-sxm"], 202)]


def few_scores() -> list[Score]:
    names = ("power-law", "ecologits", "interpolation")
    return score_all(ROWS, ENERGY_J, splits=["gpu"], estimators=[one for one in RIVALS if one.name in names])


def test_the_figure_shows_who_says_something_best_first() -> None:
    drawn = points(few_scores())
    assert [point["estimator"] for point in drawn[::2]] == [
        "power law of parameters, batch and GPUs",
        "EcoLogits, frozen",
    ]
    for median, tail in zip(drawn[::2], drawn[1::2], strict=True):
        assert median["low"] <= median["error"] <= median["high"]
        assert median["error"] < tail["error"]
        assert "low" not in tail


def test_the_figure_is_written_in_the_format_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scoreboard.command.score_all", lambda *_, **__: few_scores())
    for ending, begin in ((".svg", b"<svg"), (".png", b"\x89PNG")):
        file = tmp_path / f"board{ending}"
        assert main(["-o", str(file)]) == 0
        assert file.read_bytes().startswith(begin)
        assert capsys.readouterr().out == ""
    assert b"EcoLogits, frozen" in (tmp_path / "board.svg").read_bytes()


def test_rows_of_models_that_were_fitted_to_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scoreboard.command.score_new", lambda *_, **__: few_scores())
    assert main(["--rows", str(CSV), "--json"]) == 0
    printed = capsys.readouterr()
    assert "690 of 690 rows are of models in the benchmark" in printed.err
    assert {one["estimator"] for one in json.loads(printed.out)} == {"power-law", "ecologits", "interpolation"}
