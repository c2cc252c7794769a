"""Recommendations from tables whose best configuration is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.cli.recommend import _heading
from infergy.energy.estimate import PriceOptions, estimate
from infergy.energy.load import load_table
from infergy.energy.pace import BOUND, TOLD, TWO_CELLS, find_pace
from infergy.energy.recommend import Recommendation, engine_options, recommend
from infergy.errors import UsageError
from infergy.records import Cell, Decoding, EngineSetup, Measurement
from infergy.records.speculation import Speculation
from infergy.workload.bins import Bin, BinCount, Bins, Histogram
from known_tables import rows_of, under, write_store
from rows import build_row


def histogram(*bins: tuple[int, int, int]) -> Histogram:
    """Requests at the upper corners of bins: input, output, count."""
    return Histogram(
        source="test",
        bins=Bins.powers_of_two(4096, 512),
        counts=tuple(
            BinCount(
                bin=Bin(input_tokens=i, output_tokens=o, input_floor=i // 2, output_floor=o // 2),
                requests=n,
                input_tokens=i * n,
                output_tokens=o * n,
            )
            for i, o, n in bins
        ),
    )


WORK = histogram((512, 64, 1000), (2048, 8, 100))


def rank(tmp_path: Path, rows: Sequence[Measurement], work: Histogram = WORK, **options: Any) -> Recommendation:
    table = load_table(write_store(tmp_path / "rows.jsonl", rows))
    return recommend(work, PriceOptions(tables=table), **options)


def ladder() -> list[Measurement]:
    """Transformers at 400 %, vLLM without graphs at 150 %, with them at 100 %, in float16 at 90 %."""
    plain = rows_of(engine="vllm")
    return [
        *rows_of(engine="transformers", scale=4.0),
        *(under(row, cuda_graphs=False) for row in rows_of(engine="vllm", scale=1.5)),
        *plain,
        *(under(row, dtype="float16") for row in rows_of(engine="vllm", scale=0.9)),
    ]


def test_configurations_are_ranked_by_joules_and_saved_against_both_ends(tmp_path: Path) -> None:
    found = rank(tmp_path, ladder(), present="vllm-eager")
    assert [one.engine for one in found.configurations] == ["vllm-float16", "vllm", "vllm-eager", "transformers"]
    assert [one.saving for one in found.configurations] == pytest.approx([0.775, 0.75, 0.625, 0.0])
    assert [one.saving_vs_present for one in found.configurations] == pytest.approx([0.4, 1 / 3, 0.0, -5 / 3])
    assert not any(one.like_best for one in found.configurations[1:])
    assert all(one.priced_share == 1 for one in found.configurations)


def test_what_changes_outputs_is_labelled_and_can_be_left_out(tmp_path: Path) -> None:
    best = rank(tmp_path, ladder()).best
    assert best.changes_outputs == "float16 instead of bfloat16"
    kept = rank(tmp_path, ladder(), keep_outputs=True)
    assert kept.best.engine == "vllm"
    assert all(one.changes_outputs is None for one in kept.configurations)


def test_another_decoding_is_told_and_never_taken_for_the_same_answers(tmp_path: Path) -> None:
    rows = [*rows_of(engine="transformers"), *rows_of(engine="vllm", scale=0.5)]
    sampled = []
    for row in rows_of(engine="vllm", scale=0.4):
        cell = Cell(setup=row.cell.setup, load=replace(row.cell.load, decoding=Decoding(temperature=0.8)))
        sampled.append(replace(row, cell=cell, cell_id=cell.id))
    found = rank(tmp_path, [*rows, *sampled])
    assert found.best.engine == "vllm-t0.8"
    assert found.best.changes_outputs == "tokens are chosen otherwise: t0.8"
    assert rank(tmp_path, [*rows, *sampled], keep_outputs=True).best.engine == "vllm"


def test_each_step_changes_one_thing_where_both_ends_were_measured(tmp_path: Path) -> None:
    steps = rank(tmp_path, ladder()).steps
    assert [step.engine for step in steps] == ["vllm", "vllm-float16"]
    assert [step.change for step in steps] == ["engine vllm", "dtype float16"]
    from_eager = rank(tmp_path, ladder(), present="vllm-eager").steps
    assert [(step.change, step.engine) for step in from_eager] == [
        ("cuda graphs by default", "vllm"),
        ("dtype float16", "vllm-float16"),
    ]
    assert sum(step.change_j for step in from_eager) == pytest.approx(
        from_eager[-1].energy_j - from_eager[0].energy_j + from_eager[0].change_j
    )
    # Without the middle both changes are one step.
    without = [row for row in ladder() if row.cell.label != "vllm"]
    (step,) = rank(tmp_path, without, present="vllm-eager").steps
    assert step.change == "cuda graphs by default, dtype float16"


def test_configurations_that_differ_by_less_than_their_rows_tell_are_not_told_apart(tmp_path: Path) -> None:
    # What the idle tail took, at 10 to 100 W, leaves these rows uncertain.
    doubtful = [under(row, cuda_graphs=False) for row in rows_of(engine="vllm", scale=1.004, idle_w=10.0)]
    apart = [under(row, cuda_graphs=False) for row in rows_of(engine="vllm", scale=1.2, idle_w=10.0)]
    rows = rows_of(engine="vllm", idle_w=10.0)
    near = rank(tmp_path, [*rows, *doubtful])
    assert near.configurations[0].own_error > 0.004
    assert near.configurations[1].like_best
    assert not rank(tmp_path, [*rows, *apart]).configurations[1].like_best


def batches() -> list[Measurement]:
    """At each length a batch of 16 at 1 J a token and 0.1 s a step, and one of 4 at twice the joules and 0.02 s."""
    rows = []
    for i in (512, 2048):
        for o in (8, 64):
            for batch, scale, step_s in ((16, 1.0, 0.1), (4, 2.0, 0.02)):
                rows.append(
                    build_row(
                        input_tokens=i,
                        output_tokens=o,
                        batch=batch,
                        energy_j=scale * o * batch,
                        duration_s=0.5 + step_s * o,
                    )
                )
    return rows


def test_a_bound_on_the_time_per_token_takes_the_largest_batch_that_keeps_it(tmp_path: Path) -> None:
    work = histogram((512, 64, 10), (2048, 64, 10))
    free = rank(tmp_path, batches(), work)
    assert (free.best.largest_batch, free.best.within_bound) == (16, None)
    bound = rank(tmp_path, batches(), work, tpot_s=0.05)
    assert bound.best.within_bound == 1.0
    assert bound.best.energy_j == pytest.approx(2 * free.best.energy_j)
    assert bound.best.paces[TWO_CELLS] == 2
    never = rank(tmp_path, batches(), work, tpot_s=0.001)
    assert never.best.within_bound == 0.0
    assert any("no measured configuration keeps 0.001 s" in note for note in never.notes)


def test_those_that_keep_the_bound_come_before_those_that_take_less(tmp_path: Path) -> None:
    slow = [under(row, cuda_graphs=False) for row in batches() if row.cell.load.batch == 16]
    quick = [row for row in batches() if row.cell.load.batch == 4]
    found = rank(tmp_path, [*slow, *quick], histogram((512, 64, 10)), tpot_s=0.05)
    assert [one.engine for one in found.configurations] == ["vllm", "vllm-eager"]
    assert found.configurations[1].energy_j < found.best.energy_j


def test_where_nothing_keeps_the_bound_the_nearest_to_it_comes_first_and_what_is_typed_says_so(tmp_path: Path) -> None:
    slow = [row for row in batches() if row.cell.load.batch == 16]
    eager = [under(row, cuda_graphs=False) for row in slow]
    quick = [row for row in batches() if row.cell.load.batch == 4 and row.cell.load.input_tokens == 2048]
    mixed = [*quick, *(row for row in slow if row.cell.load.input_tokens == 512)]
    work = histogram((512, 64, 3), (2048, 64, 7))
    found = rank(tmp_path, [*eager, *mixed], work, tpot_s=0.05)
    assert [one.engine for one in found.configurations] == ["vllm", "vllm-eager"]
    assert found.configurations[1].energy_j < found.best.energy_j
    assert found.best.within_bound == pytest.approx(0.7)
    assert _heading(found) == "To type, though it keeps the bound for 70.0 % of the requests only"
    assert any("batches of 4 to 16, by length" in note for note in found.notes)
    assert _heading(rank(tmp_path, mixed, work, tpot_s=10.0)) == "To type"


def test_batches_are_those_of_the_lengths_that_the_trace_has(tmp_path: Path) -> None:
    found = rank(tmp_path, batches(), work=histogram((512, 8, 10)))
    assert found.best.largest_batch == 16
    assert found.best.longest_batch_s == pytest.approx(0.5 + 0.1 * 8, rel=0.1)


def test_the_pace_is_what_the_engine_told_else_two_cells_else_a_bound(tmp_path: Path) -> None:
    table = load_table(write_store(tmp_path / "rows.jsonl", batches()))
    cells = table.setups[0].cells
    long = next(cell for cell in cells if (cell.output_tokens, cell.batch) == (64, 16))
    short = next(cell for cell in cells if (cell.output_tokens, cell.batch) == (8, 16))
    two = find_pace(long, cells)
    assert two.basis == TWO_CELLS
    assert two.seconds == pytest.approx(0.1)
    bound = find_pace(short, cells)
    assert bound.basis == BOUND
    assert bound.seconds == pytest.approx((0.5 + 0.8) / 8)
    assert find_pace(replace(long, time_per_output_token_s=0.07), cells).basis == TOLD


def test_a_draft_model_is_a_step_of_its_own_and_keeps_the_answers(tmp_path: Path) -> None:
    speculation = Speculation(draft="llama-3.2-1b", look_ahead=4, acceptance=0.8)
    drafted = [under(row, speculation=speculation) for row in rows_of(engine="vllm", scale=0.5)]
    rows = [*rows_of(engine="transformers", scale=4.0), *rows_of(engine="vllm"), *drafted]
    found = rank(tmp_path, rows, keep_outputs=True)
    assert [one.engine for one in found.configurations] == [f"vllm-{speculation.label}", "vllm", "transformers"]
    assert [step.change for step in found.steps] == ["engine vllm", f"speculation {speculation.label}"]
    assert any("whose acceptance was set" in note for note in found.notes)
    option = found.best.options[-1].removeprefix("--speculative-config ").strip("'")
    assert json.loads(option) == {"method": "draft_model", "model": "DRAFT", "num_speculative_tokens": 4}
    back = rank(tmp_path, rows_of(engine="vllm", scale=0.4) + drafted, present=f"vllm-{speculation.label}")
    assert [step.change for step in back.steps] == ["speculation off"]
    plain = rank(tmp_path, rows_of(engine="vllm"))
    assert not any("acceptance" in note for note in plain.notes)


def test_what_to_type_is_the_engines_own() -> None:
    setup = EngineSetup(engine="vllm", model="m", cuda_graphs=False, tensor_parallel=2, dtype="float16")
    assert engine_options(setup, 96) == (
        "vllm serve MODEL",
        "--dtype float16",
        "--max-num-seqs 96",
        "--tensor-parallel-size 2",
        "--enforce-eager",
    )
    compiled = EngineSetup(engine="transformers", model="m", compiled=True)
    assert 'cache_implementation="static"' in engine_options(compiled, 8)[0]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["recommend", *arguments], catch_exceptions=False)


def test_of_what_ships_vllm_takes_fewest_and_the_saving_is_that_of_the_estimate() -> None:
    found = json.loads(invoke("azure-conv-2023", "--json").stdout)
    assert found["schema"] == "infergy.recommendation/1"
    assert found["configurations"][0]["engine"] == "vllm"
    (in_time,) = [one for one in found["configurations"] if (one["engine"], one["max_batch_s"]) == ("vllm", 20.0)]
    estimate = json.loads(CliRunner().invoke(app, ["estimate", "azure-conv-2023", "--json"]).stdout)
    (vllm,) = [one for one in estimate["estimates"] if one["engine"] == "vllm"]
    assert in_time["energy_j"] == pytest.approx(vllm["energy_j"])
    assert in_time["saving"] == pytest.approx(vllm["saving_vs_baseline"])


def test_what_was_measured_in_a_few_cells_is_named_and_not_ranked() -> None:
    """vllm-fp8 ships as one cell, which would price 1 % of the requests and so take the fewest joules of all."""
    found = recommend("azure-code-2023", PriceOptions())
    assert "vllm-fp8" not in {one.engine for one in found.configurations}
    assert all(one.priced_share > 0.99 for one in found.configurations)
    (note,) = (note for note in found.notes if "too few cells" in note)
    assert "vllm-fp8 0.9%" in note
    told = estimate("azure-code-2023")
    assert [one.engine for one in told.estimates] == ["transformers", "vllm"]
    assert any("vllm-fp8 0.9%" in note for note in told.notes)
    (asked,) = estimate("azure-code-2023", engines=["vllm-fp8"]).estimates
    assert asked.engine == "vllm-fp8"


def test_a_users_own_few_cells_are_told_beside_the_shipped_ones(tmp_path: Path) -> None:
    mine = write_store(tmp_path / "mine.jsonl", [build_row()])
    assert "vllm" in {one.engine for one in estimate("azure-code-2023", tables=mine).estimates}


def test_in_words_it_says_what_to_type() -> None:
    text = invoke("azure-code-2023").stdout
    assert "vllm serve MODEL --dtype bfloat16 --max-num-seqs 336" in text
    assert "engine vllm: 475 kJ (-28.1 %)" in text
    assert "batches of any duration: 472 kJ (-0.6 %, no significant difference)" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ttft", "1s"], "mostly queueing, and no bound for a server"),
        (["--tpot", "soon"], "--tpot soon: expected a time, as 50ms"),
        (["--tpot", "0ms"], "give more than 0"),
        (["--present", "vlm"], "unknown measured configuration 'vlm'; did you mean vllm"),
        (["--present", "vllm-fp8"], r"its measured cells price 0\.9% of the requests, too few"),
    ],
)
def test_what_cannot_be_asked_is_told(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        invoke("azure-code-2023", *arguments)
