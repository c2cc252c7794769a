"""The measurements inside the package: complete, real, of one chip, and consistent with their raw facts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from infergy.measure.grid import make_plan, parse_grid, read_toml, shrink
from infergy.measure.studies import study_names, study_path
from infergy.records import RANDOM_WEIGHTS, Load, Measurement, Result, derive
from infergy.records.codec import to_json
from infergy.records.plan import GIVEN
from infergy.records.store import SHIPPED_ROWS as TABLES
from infergy.records.store import read_store, shipped_rows, shipped_store
from infergy.records.uncertainty import find_uncertainties
from infergy.records.visits import join_visits

EVERY = shipped_rows()


def table(name: str) -> Path:
    (path,) = (path for path in EVERY if path.relative_to(TABLES) == Path(f"{name}.jsonl"))
    return path


SHIPPED, AXES = table("h200-llama-3.1-8b"), table("h200-llama-3.1-8b_axes")
REPLICATES, SUPERSEDED = table("replicates/h200-llama-3.1-8b-2"), table("replicates/h200-llama-3.1-8b-3")
H100, OTHER_MODELS = table("h100-sxm-llama-3.1-8b"), table("h100-sxm-other-models")
THIRD_HOST, THIRD_HOSTS_MODELS = table("h100-sxm-llama-3.1-8b_third-host"), table("h100-sxm-other-models_third-host")
THIRD_HOSTS_REPLICATES = table("replicates/h100-sxm-llama-3.1-8b-3")
FOURTH_HOST, FOURTH_HOSTS_MODELS = (
    table("h100-sxm-llama-3.1-8b_fourth-host"),
    table("h100-sxm-other-models_fourth-host"),
)
FOURTH_HOSTS_REPLICATES = [table(f"replicates/h100-sxm-llama-3.1-8b-{number}") for number in (4, 5, 6, 7)]
FAILED = {FOURTH_HOST: [("transformers llama-3.1-8b 4096→64 × 64", "out_of_memory")]}
"""What was tried and did not fit, as docs/measurements.md says."""


@cache
def rows_in(path: Path) -> tuple[Measurement, ...]:
    return tuple(read_store(path).rows)


def finished(path: Path) -> list[Measurement]:
    return [row for row in rows_in(path) if row.is_ok]


def chip(row: Measurement) -> str:
    (gpu,) = row.environment.gpus
    return gpu.uuid


@pytest.mark.parametrize("path", EVERY)
def test_rows_are_real_and_each_says_random_weights(path: Path) -> None:
    rows = rows_in(path)
    assert not any(row.simulated for row in rows)
    failed = [row for row in rows if not row.is_ok]
    assert [(str(row.cell), row.failure.code) for row in failed if row.failure] == FAILED.get(path, [])
    name = "NVIDIA H200" if path.name.startswith("h200-") else "NVIDIA H100 80GB HBM3"
    assert {gpu.name for row in rows for gpu in row.environment.gpus} == {name}
    assert all(row.environment.weights.startswith("random weights: ") for row in rows)
    assert all(row.environment.driver and row.environment.packages and row.environment.engine for row in rows)


@pytest.mark.parametrize("path", EVERY)
def test_figures_follow_from_raw_facts(path: Path) -> None:
    for row in finished(path):
        assert row.loaded_idle is not None
        derived = derive(row.windows, row.loaded_idle, row.lengths)
        # Rows from before watts were told by GPU, or requests per second, lack them.
        older = replace(derived, requests_per_s=None)
        assert rounded(row.result) in map(rounded, (derived, older, replace(older, power_by_gpu_w={})))


def rounded(result: Result | None) -> Any:
    """As JSON, but for the last digits of sums, which differ between versions of Python."""
    return json.loads(json.dumps(to_json(result)), parse_float=lambda text: float(f"{float(text):.12g}"))


@pytest.mark.parametrize("path", EVERY)
def test_windows_are_long_enough(path: Path) -> None:
    for row in finished(path):
        busy_s = [batch.duration_s for window in row.windows for batch in window.batches]
        assert sum(busy_s) >= 3.0 - 0.001
        assert len(busy_s) >= 2 or busy_s[0] >= 5.0


def test_the_axes_are_of_one_chip_which_measured_four_cells_of_the_main_table_again() -> None:
    rows = rows_in(AXES)
    assert len({chip(row) for row in rows}) == 1
    assert len({row.cell_id for row in rows}) == len(rows) == 26
    main = {row.cell_id: row.result for row in rows_in(SHIPPED)}
    ratios = [row.result.energy_j / mine.energy_j for row in rows if row.result and (mine := main.get(row.cell_id))]
    # What docs/measurements.md says of them.
    assert [round(100 * (ratio - 1), 1) for ratio in ratios] == [2.1, 0.4, 1.0, 2.3]


def test_what_was_measured_again_is_the_least_certain_and_the_rest_of_one_chip() -> None:
    again = {row.cell_id for row in rows_in(SUPERSEDED)}
    rows = rows_in(SHIPPED)
    first = {chip(row) for row in rows if row.cell_id not in again}
    second = {chip(row) for row in rows if row.cell_id in again}
    assert len(first) == len(second) == 1
    assert first != second
    assert {chip(row) for row in rows_in(SUPERSEDED)} == first
    assert len(again) == 12
    assert {chip(row) for row in rows_in(REPLICATES)}.isdisjoint(first | second)
    before = [row for row in rows if row.cell_id not in again] + list(rows_in(SUPERSEDED))
    widths = {}
    for name, group in (("before", before), ("now", join_visits(rows))):
        group = [row for row in group if row.cell.setup.engine == "transformers"]
        widths[name] = {row.cell_id: found for row, found in zip(group, find_uncertainties(group), strict=True)}
    for cell_id in again:
        was, now = widths["before"][cell_id], widths["now"][cell_id]
        assert now is not None
        # What docs/measurements.md says of them.
        assert now.half_width < 0.035
        assert was is None or was.half_width > 0.02


@pytest.mark.parametrize("study", ["paper-bins", "weights-law"])
def test_every_cell_of_the_shipped_studies_is_measured(study: str) -> None:
    grid = parse_grid(read_toml(SHIPPED.parents[1] / "studies" / f"{study}.toml"), study)
    # Pairs of one output token joined paper-bins later; docs/measurements.md says that they wait for a GPU.
    planned = [one for one in make_plan(grid).cells if one.cell.load.output_tokens > 1]
    assert len({one.cell.id for one in planned}) >= 8
    rows = rows_in(SHIPPED)
    assert {one.cell.id for one in planned if one.batch_choice == GIVEN} <= {row.cell_id for row in rows}
    # Batches under a limit of time are those of the forecast when they were measured.
    measured = {(row.cell.setup, row.cell.load.lengths) for row in rows}
    assert {(one.cell.setup, one.cell.load.lengths) for one in planned} <= measured


def test_both_engines_were_given_the_same_tokens() -> None:
    hashes: dict[Any, set[str | None]] = {}
    for row in rows_in(SHIPPED):
        hashes.setdefault(row.cell.load, set()).add(row.prompt_sha256)
    assert all(len(each) == 1 for each in hashes.values())


def test_both_engines_cover_the_same_lengths() -> None:
    one, other = (
        {row.cell.load.lengths for row in rows_in(SHIPPED) if row.cell.label == label}
        for label in ("transformers", "vllm")
    )
    assert one == other
    assert len(one) == 38


def test_a_second_chip_says_how_far_chips_differ() -> None:
    superseded = {row.cell_id: row.result for row in rows_in(SUPERSEDED)}
    first = {row.cell_id: row.result for row in rows_in(SHIPPED)} | superseded
    second = {row.cell_id: row.result for row in rows_in(REPLICATES)}
    ratios = [theirs.energy_j / mine.energy_j for key, theirs in second.items() if theirs and (mine := first[key])]
    assert len(ratios) == 69
    # What docs/measurements.md says of it.
    assert median(ratios) == pytest.approx(1.018, abs=0.001)
    assert max(ratios) == pytest.approx(1.105, abs=0.001)


def test_the_law_of_random_weights_moves_vllms_joules_by_two_percent_at_most() -> None:
    joules: dict[tuple[int, str], float] = {}
    for row in rows_in(SHIPPED):
        load, setup = row.cell.load, row.cell.setup
        if setup.engine == "vllm" and (load.input_tokens, load.output_tokens) == (512, 64) and row.result:
            joules[load.batch, setup.weights] = row.result.energy_j
    for batch in (1, 8, 32, 128):
        assert joules[batch, "random-uniform"] / joules[batch, "random"] == pytest.approx(1.0, abs=0.02)


def of_h100(label: str, load: tuple[int, int, int], path: Path = H100, model: str = "llama-3.1-8b") -> Measurement:
    (row,) = (
        row
        for row in rows_in(path)
        if (row.cell.label, row.cell.setup.model, row.cell.setup.weights) == (label, model, RANDOM_WEIGHTS)
        and (row.cell.load.input_tokens, row.cell.load.output_tokens, row.cell.load.batch) == load
    )
    return row


def test_each_gpu_of_several_has_its_joules_and_all_have_the_total() -> None:
    for label, gpus in (("vllm", 1), ("vllm-tp2", 2), ("vllm-tp4", 4)):
        for batch in (1, 8, 32, 128, 512):
            row = of_h100(label, (512, 64, batch))
            assert row.result is not None
            told = row.result.energy_by_gpu_j
            assert set(told) == {gpu.uuid for gpu in row.environment.gpus}
            assert len(told) == gpus
            assert sum(told.values()) == pytest.approx(row.result.energy_j)
            # Equal halves or quarters of the same work.
            assert max(told.values()) / min(told.values()) < 1.03


def test_more_gpus_answer_sooner_and_take_more_joules_at_every_batch() -> None:
    for batch in (1, 8, 32, 128, 512):
        one, two, four = (of_h100(label, (512, 64, batch)).result for label in ("vllm", "vllm-tp2", "vllm-tp4"))
        assert one is not None
        assert two is not None
        assert four is not None
        assert one.energy_j < two.energy_j < four.energy_j
        assert one.duration_s > two.duration_s > four.duration_s


def test_a_mixture_of_experts_takes_more_than_a_dense_model_of_as_many_active_parameters() -> None:
    for batch, ratio in ((1, 1.08), (8, 2.61), (32, 2.22), (128, 1.52)):
        dense, sparse = (of_h100("vllm", (512, 64, batch), OTHER_MODELS, name) for name in ("olmo-1b", "olmoe-1b-7b"))
        assert dense.result is not None
        assert sparse.result is not None
        assert sparse.result.energy_j / dense.result.energy_j == pytest.approx(ratio, abs=0.006)


def change(after: Measurement, before: Measurement) -> tuple[int, int]:
    """Per cent of joules and of seconds."""
    assert after.result is not None
    assert before.result is not None
    joules, seconds = (
        getattr(after.result, name) / getattr(before.result, name) - 1 for name in ("energy_j", "duration_s")
    )
    return round(100 * joules), round(100 * seconds)


def test_the_tables_of_the_documentation_are_those_of_the_rows() -> None:
    page = (Path(__file__).parents[2] / "docs" / "measurements.md").read_text(encoding="utf-8")
    for label, gpus in (("vllm-tp2", 2), ("vllm-tp4", 4)):
        cells = []
        for batch in (1, 8, 32, 128, 512):
            joules, seconds = change(of_h100(label, (512, 64, batch)), of_h100("vllm", (512, 64, batch)))
            cells.append(f"+{joules} %, −{-seconds} %")
        assert f"| {gpus} GPUs | {' | '.join(cells)} |" in page
    eager = [change(of_h100("vllm-eager", load), of_h100("vllm", load)) for load in ((50, 64, 32), (137, 64, 32))]
    assert [joules for joules, _ in eager] == [35, 36]
    assert change(of_h100("vllm-eager", (838, 64, 32)), of_h100("vllm", (838, 64, 32)))[0] == 12
    assert change(of_h100("transformers-compiled", (512, 64, 1)), of_h100("transformers", (512, 64, 1))) == (-30, -58)
    fp8 = [change(of_h100("vllm-fp8", (512, 64, n)), of_h100("vllm", (512, 64, n)))[0] for n in (1, 8, 32)]
    assert fp8 == [-40, -35, -31]
    draft = [
        change(of_h100("vllm-spec4:llama-3.2-1b:0.8", (512, 64, n)), of_h100("vllm", (512, 64, n))) for n in (1, 128)
    ]
    assert [joules for joules, _ in draft] == [-3, 23]
    qwen = [of_h100(label, (512, 64, 8), OTHER_MODELS, "qwen-1.5-32b") for label in ("vllm-tp4", "vllm")]
    assert change(*qwen) == (26, -63)


def of_third(label: str, batch: int, model: str = "llama-3.1-8b") -> list[Result]:
    """512→64 under a label, of each chip of the third host."""
    paths = (THIRD_HOST, THIRD_HOSTS_MODELS, THIRD_HOSTS_REPLICATES)
    found = [
        row.result
        for path in paths
        for row in rows_in(path)
        if (row.cell.label, row.cell.setup.model) == (label, model)
        and (row.cell.load.input_tokens, row.cell.load.output_tokens, row.cell.load.batch) == (512, 64, batch)
    ]
    return [result for result in found if result is not None]


def test_the_page_tells_the_third_hosts_chips_and_its_32b_shape() -> None:
    page = (Path(__file__).parents[2] / "docs" / "measurements.md").read_text(encoding="utf-8")
    for batch, low, high in ((1, 3.3, 6.6), (32, 2.4, 4.8), (128, 2.1, 3.0)):
        before = of_h100("vllm", (512, 64, batch)).result
        assert before is not None
        more = [100 * (one.energy_j / before.energy_j - 1) for one in of_third("vllm", batch)]
        assert len(more) == 4
        assert (min(more), max(more)) == pytest.approx((low, high), abs=0.06)
    qwen = "qwen-1.5-32b"
    for gpus in (2, 4):
        cells = []
        for batch in (1, 8, 32):
            one = of_h100("vllm", (512, 64, batch), OTHER_MODELS, qwen).result
            (many,) = of_third(f"vllm-tp{gpus}", batch, qwen)
            assert one is not None
            joules, seconds = many.energy_j / one.energy_j - 1, many.duration_s / one.duration_s - 1
            cells.append(f"+{round(100 * joules)} %, −{round(-100 * seconds)} %")
        (most,) = of_third(f"vllm-tp{gpus}", 128, qwen)
        cells.append(f"{most.energy_j / 1e3:.2f} kJ, {most.duration_s:.2f} s")
        assert f"| Qwen-1.5-32B, {gpus} GPUs | {' | '.join(cells)} |" in page


def joules_of_fourth(
    label: str, batch: int, model: str = "llama-3.1-8b", weights: str = RANDOM_WEIGHTS
) -> dict[str, float]:
    """512→64 under a label, by chip, of the fourth host; of a chip measured twice the later process."""
    paths = (*reversed(FOURTH_HOSTS_REPLICATES), FOURTH_HOST, FOURTH_HOSTS_MODELS)
    return {
        ",".join(sorted(gpu.uuid[4:8] for gpu in row.environment.gpus)): row.result.energy_j
        for path in paths
        for row in finished(path)
        if (row.cell.setup.label, row.cell.setup.model, row.cell.setup.weights) == (label, model, weights)
        and row.cell.load == Load(input_tokens=512, output_tokens=64, batch=batch)
        and row.result is not None
    }


def test_the_page_tells_the_fourth_hosts_chips() -> None:
    for batch, low, high in ((1, -0.4, 4.1), (32, -0.2, 3.0), (128, 0.5, 2.8)):
        before = of_h100("vllm", (512, 64, batch)).result
        assert before is not None
        more = [100 * (one / before.energy_j - 1) for one in joules_of_fourth("vllm", batch).values()]
        assert len(more) == 4
        assert (min(more), max(more)) == pytest.approx((low, high), abs=0.06)
    first = {row.cell.load.batch: row.result for row in rows_in(FOURTH_HOSTS_REPLICATES[-1])}
    for batch, less in ((1, 0.6), (32, 0.8), (128, 0.4)):
        was = first[batch]
        assert was is not None
        assert 100 * (1 - joules_of_fourth("vllm", batch)["c009"] / was.energy_j) == pytest.approx(less, abs=0.06)


def test_compiling_pays_while_the_gpu_waits_for_its_host_and_costs_after() -> None:
    page = (Path(__file__).parents[2] / "docs" / "measurements.md").read_text(encoding="utf-8")
    cells = []
    for batch, path in ((1, H100), (8, THIRD_HOST), (32, FOURTH_HOST), (128, THIRD_HOST)):
        compiled = of_h100("transformers-compiled", (512, 64, batch), H100 if batch == 1 else FOURTH_HOST)
        joules, seconds = change(compiled, of_h100("transformers", (512, 64, batch), path))
        cells.append(f"{joules:+} %, {seconds:+} %".replace("-", "−"))
    assert f"| compiled | {' | '.join(cells)} |" in page


def test_what_else_the_page_tells_of_the_fourth_host() -> None:
    plain = {batch: joules_of_fourth("vllm", batch) for batch in (1, 32, 128)}
    draft = joules_of_fourth("vllm-spec4:llama-3.2-1b:0.6", 1)
    assert draft["89eb"] / plain[1]["89eb"] == pytest.approx(1.20, abs=0.005)
    fp8 = joules_of_fourth("vllm-fp8", 128)
    assert fp8["0160"] / plain[128]["0160"] == pytest.approx(0.68, abs=0.005)
    for batch, percent in ((1, -0.4), (32, 0.0), (128, -0.7)):
        other = joules_of_fourth("vllm", batch, weights="random-uniform")
        assert 100 * (other["0160"] / plain[batch]["0160"] - 1) == pytest.approx(percent, abs=0.06)
    assert joules_of_fourth("vllm", 128, "olmo-7b")["89eb"] / plain[128]["89eb"] == pytest.approx(1.21, abs=0.005)
    (qwen,) = joules_of_fourth("vllm-tp4", 512, "qwen-1.5-32b").values()
    assert qwen / 512 == pytest.approx(55.7, abs=0.05)
    small = [joules_of_fourth("vllm", batch, "llama-3.2-1b")["849a"] for batch in (1, 8, 32, 128)]
    assert [round(joules) for joules in small] == [41, 55, 105, 295]


LACKING = {
    "batches": {"transformers": 2},
    "decoding": {"transformers": 6},
    "input-lengths": {"transformers": 18},
    "models": {"vllm": 4},
    "output-lengths": {"transformers": 21},
    "paper-bins": {"transformers": 37, "vllm": 22},
    "tasks": {"transformers": 2, "vllm-eager": 11},
    "tasks-mixed": {"transformers-s32": 4},
}


def test_the_page_tells_which_cells_of_the_studies_no_h100_measured() -> None:
    """docs/measurements.md, What is missing, in words."""
    known = {row.cell_id for path in EVERY if path.name.startswith("h100-sxm-") for row in finished(path)}
    lacking: dict[str, dict[str, int]] = {}
    quick: dict[str, dict[str, int]] = {}
    for name in study_names():
        data = read_toml(study_path(name))
        if "quick" not in data:
            continue
        for found, tables in ((lacking, data), (quick, shrink(data, name))):
            plan = make_plan(parse_grid(tables, name).model_copy(update={"gpu": "h100-sxm"}))
            cells = {one.cell.id: one.cell for one in plan.cells if one.cell.id not in known}
            if cells:
                found[name] = dict(Counter(cell.setup.label for cell in cells.values()))
    assert lacking == LACKING
    assert quick == {"paper-bins": {"vllm": 3}}


def test_more_requests_of_mixed_lengths_cost_little_more_each() -> None:
    joules = {}
    for path in (H100, FOURTH_HOST):
        for row in finished(path):
            arrivals = row.cell.load.arrivals
            if row.cell.setup.label == "vllm-s32" and arrivals is not None and row.result is not None:
                joules[arrivals.trace, row.cell.load.batch] = row.result.energy_per_request_j
    for task, percent in (("translation", 4.6), ("generation", 2.8), ("summarisation", 1.5), ("classification", 0.6)):
        ratio = joules[f"task:{task}", 1024] / joules[f"task:{task}", 256]
        assert 100 * (ratio - 1) == pytest.approx(percent, abs=0.06)


def test_float16_takes_what_bfloat16_does() -> None:
    chips = {chip(row) for row in rows_in(THIRD_HOST) if row.cell.setup.dtype == "float16"}
    for batch, more in ((1, 1.7), (32, 2.3), (128, 2.4)):
        (half,) = of_third("vllm-float16", batch)
        (brain,) = (one for one in of_third("vllm", batch) if set(one.energy_by_gpu_j) == chips)
        assert 100 * (half.energy_j / brain.energy_j - 1) == pytest.approx(more, abs=0.06)


def test_random_experts_are_visited_nearly_uniformly_and_in_turn_cost_several_times_a_fused_kernel() -> None:
    seen = [row for row in rows_in(THIRD_HOSTS_MODELS) if row.experts_touched is not None]
    share = {row.cell.load.batch: row.experts_touched for row in seen}
    assert share == pytest.approx({1: 0.125, 8: 0.632, 32: 0.981, 128: 1.0}, abs=0.0006)
    for batch, times in ((1, 5.4), (8, 3.7), (32, 6.3), (128, 11.4)):
        (slow,) = of_third("transformers", batch, "olmoe-1b-7b")
        fused = of_h100("vllm", (512, 64, batch), OTHER_MODELS, "olmoe-1b-7b").result
        assert fused is not None
        assert slow.energy_j / fused.energy_j == pytest.approx(times, abs=0.06)


def test_padding_takes_several_times_the_joules() -> None:
    runs = {row.cell.label: row.result for row in rows_in(H100) if row.cell.load.is_replay}
    for task, ratio in (("translation", 2.4), ("generation", 3.3), ("summarisation", 5.3)):
        padded, packed = (runs[f"{engine}-s32-replay:task:{task}"] for engine in ("transformers", "vllm"))
        assert padded is not None
        assert packed is not None
        assert padded.energy_j / packed.energy_j == pytest.approx(ratio, abs=0.06)


def test_the_table_of_a_gpu_is_its_first_and_that_of_one_without_the_defaults() -> None:
    assert shipped_store() == shipped_store("h200") == shipped_store("l4") == SHIPPED
    assert shipped_store("h100-sxm") == H100
