"""`infergy report`: one page, its figures, and the paper's claims beside ours."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.estimates.paper import estimate_paper
from infergy.estimates.servers import ServerSpec
from infergy.measure.grid import make_plan, parse_grid, read_toml, shrink
from infergy.measure.studies import study_names, study_path
from infergy.measure.sweep import sweep as sweep_plan
from infergy.records import ENGINES, Measurement, Plan
from infergy.records.store import create_store
from infergy.report.claims import Claim, Compared, find_ours, judge, load_claims
from infergy.report.evidence import Evidence
from infergy.report.html import escape
from infergy.report.our_values import OurValue
from infergy.report.page import Report, build_report, write_report
from infergy.report.points import Point, points_of
from infergy.report.studies import STUDIES
from infergy.units import format_number, format_percent
from measure.test_measure import SRC
from raising import raises
from rows import build_row

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><img src=x onerror=alert(1)>|`[x](javascript:1)"
OUTPUTS = (8, 64, 512)


def with_setup(row: Measurement, **fields: Any) -> Measurement:
    cell = dataclasses.replace(row.cell, setup=dataclasses.replace(row.cell.setup, **fields))
    return dataclasses.replace(row, cell=cell, cell_id=cell.id)


def sweep(**fields: Any) -> list[Measurement]:
    """Rows along output lengths."""
    return [with_setup(build_row(output_tokens=output), **fields) for output in OUTPUTS]


def store(tmp_path: Path, rows: Iterable[Measurement], name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    create_store(path, rows)
    return path


def points(*rows: Measurement, tmp_path: Path) -> list[Point]:
    return points_of({store(tmp_path, rows): rows})


def test_every_study_of_the_paper_is_in_the_page_and_what_is_not_measured_is_named(paper: Report) -> None:
    told = {section.study.paper for section in paper.sections if section.study.paper}
    assert told == {"Figure 1, Table 4", "Figures 2, 10, 11", *(f"Figure {number}" for number in (3, 4, 5, 6, 8, 9))}
    assert {study.name for study in STUDIES} == {section.study.name for section in paper.sections}
    _, claims = load_claims()
    assert {claim.study for claim in claims} <= {study.name for study in STUDIES}
    assert sum(len(section.claims) for section in paper.sections) == len(claims)
    drawn = {"traces", "sequences", "decoding", "engines", "tasks", "online", "precision", "weights", "advice"}
    assert drawn.isdisjoint(study.name for study in paper.missing)
    for study in paper.missing:
        for name in re.findall(r"infergy measure ([a-z-]+)", study.measure):
            assert name in study_names()


def test_along_a_line_of_largest_batches_no_batch_is_smaller_than_that_of_longer_requests(paper: Report) -> None:
    """A task that was measured at 32 requests would dent the line of those at 256."""
    for name, axis in (("sequences-input", 0), ("sequences-output", 1)):
        figure = next(one for one in paper.figures if one.name == name)
        for one in figure.points:
            line = [p for p in figure.points if (p.label, p.lengths[1 - axis]) == (one.label, one.lengths[1 - axis])]
            assert all(other.batch <= one.batch for other in line if other.lengths[axis] > one.lengths[axis])


def test_lines_of_one_batch_are_drawn_beside_those_of_the_largest(tmp_path: Path) -> None:
    rows = [with_setup(build_row(input_tokens=tokens, batch=1), engine="vllm") for tokens in (32, 128, 512)]
    rows += [with_setup(build_row(input_tokens=tokens, batch=64), engine="vllm") for tokens in (32, 128, 512)]
    found = {figure.name: figure for figure in build_report([store(tmp_path, rows)]).figures}
    assert {point.batch for point in found["sequences-input"].points} == {64}
    assert {point.batch for point in found["sequences-input-batch"].points} == {1, 64}


@pytest.mark.parametrize(
    "name", [name for name in study_names() if name not in ("paper-bins", "batches", "quick", "models")]
)
def test_the_quick_grid_of_each_study_draws_the_figure_of_that_study(name: str, tmp_path: Path) -> None:
    store = tmp_path / "rows.jsonl"
    list(sweep_plan(quick_plan(name), store, simulate=True))
    wanted = {
        "decoding-vllm": "decoding",
        "speculative": "decoding",
        "input-lengths": "sequences-input-batch",
        "output-lengths": "sequences-output-batch",
        "tensor-parallel-4": "tensor-parallel",
        "weights-law": "weights-vllm",
    }
    drawn = {figure.name for figure in build_report([store], allow_simulated=True).figures}
    assert wanted.get(name, name) in drawn


def test_tasks_of_mixed_lengths_tell_what_was_padded_and_that_it_costs(tmp_path: Path) -> None:
    store = tmp_path / "rows.jsonl"
    list(sweep_plan(quick_plan("tasks-mixed"), store, simulate=True))
    (figure,) = [one for one in build_report([store], allow_simulated=True).figures if one.name == "tasks-mixed"]
    padding = {
        (row[1], point.row.cell.load.arrivals): row[-1] for row, point in zip(figure.table, figure.points, strict=True)
    }
    assert len(padding) == 8
    assert all((told == "none") == (label == "vllm-s32") for (label, _), told in padding.items())
    shares = [float(told.removesuffix(" %")) for told in padding.values() if told != "none"]
    assert all(0 < share < 100 for share in shares)


def quick_plan(name: str) -> Plan:
    return make_plan(parse_grid(shrink(read_toml(study_path(name)), name), name))


def test_few_batches_stand_below_each_other_and_no_line_joins_two(tmp_path: Path) -> None:
    rows = [with_setup(build_row(batch=batch), engine=engine) for engine in ENGINES for batch in (1, 32)]
    (figure,) = [one for one in build_report([store(tmp_path, rows)]).figures if one.name == "engines"]
    places = [value["place"] for value in _inline(figure.spec)]
    assert list(dict.fromkeys(places)) == ["batch of 1", "batch of 32"]
    assert '"type": "line"' not in json.dumps(figure.spec)
    assert all(point.batch in (1, 32) for point in figure.points)


def test_the_page_ends_in_advice_for_each_trace_and_what_to_type(paper: Report) -> None:
    section = paper.sections[-1]
    assert section.study.name == "advice"
    ranked = [figure for figure in section.figures if re.fullmatch(r"advice-\d", figure.name)]
    assert [figure.title.split(":")[0] for figure in ranked] == ["azure-code-2023", "azure-conv-2023"]
    for figure in ranked:
        chosen = next(row for row in figure.table if figure.note.startswith(f"Recommended: {row[0]}."))
        assert chosen[-1] in figure.note
        assert "vllm serve MODEL" in chosen[-1]
        assert {"vllm", "transformers"} <= {row[0] for row in figure.table}


def test_advice_is_drawn_over_latency_rate_and_time(paper: Report) -> None:
    figures = {figure.name: figure for figure in paper.sections[-1].figures}
    latency, rate, time = (figures[f"advice-{kind}-2"] for kind in ("latency", "rate", "time"))
    best = [row for row in latency.table if row[-1] == "yes"]
    assert {row[1] for row in latency.table} == {"1", "2"}
    assert "transformers" not in {row[0] for row in latency.table}  # it cannot keep up
    energies = [value["value"] for value in _inline(latency.spec) if value.get("cell4") == "yes"]
    assert len(best) == len(energies) >= 3
    curves = {label: [row for row in rate.table if row[0] == label] for label in {row[0] for row in rate.table}}
    assert len(curves) == 2
    for rows in curves.values():
        assert float(rows[0][2]) > float(rows[-1][2])
        assert (rows[0][-1], rows[-1][-1]) == ("yes", "no")
    assert {row[0] for row in time.table} == set(curves)
    panels = time.spec["vconcat"]
    assert [panel["encoding"]["y"]["field"] for panel in panels] == ["power", "batch"]


def test_where_ours_goes_the_other_way_it_is_a_finding_and_no_ratio(paper: Report) -> None:
    by_claim = {one.claim.claim: one for section in paper.sections for one in section.claims}
    name = "online against offline serving at large batch: energy, best case"
    one = by_claim[name]
    assert one.ours.value is not None
    assert one.claim.paper is not None
    assert one.ours.value * one.claim.paper < 0
    assert one.cells[-1] == "reversed"
    assert one.claim.caveat in one.cells[4]
    assert any(text.startswith(name) for text in paper.findings)
    agreeing = by_claim["gap to ideal, eager PyTorch: Azure conversation"]
    assert agreeing.ours.finding is None
    assert len(paper.findings) == sum(one.ours.finding is not None for one in by_claim.values())


@pytest.mark.parametrize(
    ("ours", "words"), [((0.1, 0.2), "reversed"), ((-0.1, 0.3), "contains 0"), (None, "interval unknown")]
)
def test_a_reversal_says_how_sure_it_is(ours: tuple[float, float] | None, words: str) -> None:
    claim = Claim(study="s", claim="c", hardware="h", ours={"kind": "change"}, paper=-0.2)
    told = Compared(claim=claim, ours=judge(claim, OurValue(method="b", value=0.1, interval=ours, hardware="g")))
    assert words in told.cells[-1]


def test_prefill_is_told_by_requests_alone_where_short_and_long_ones_were_measured(tmp_path: Path) -> None:
    recipe = {"kind": "prefill", "label": "vllm", "model": "llama-3.1-8b"}
    claim = Claim(study="s", claim="c", hardware="h", ours=recipe)
    energy = {32: 1000.0, 128: 1050.0, 512: 2000.0, 2048: 8000.0}
    rows = [
        with_setup(build_row(input_tokens=tokens, batch=1, output_tokens=8, energy_j=joules), engine="vllm")
        for tokens, joules in energy.items()
    ]
    told = find_ours(claim, Evidence(points=points(*rows, tmp_path=tmp_path)))
    assert told.text is not None
    assert told.text == "+5.0 % from 32 to 128 tokens, then × 4.00 from 512 to 2,048 (× 4.00 tokens)"
    (tmp_path / "few").mkdir()
    few = find_ours(claim, Evidence(points=points(*rows[:2], tmp_path=tmp_path / "few")))
    assert not few.is_measured


@pytest.mark.slow
def test_the_paper_is_written_as_page_markdown_and_pictures(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", "paper", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    servers = estimate_paper("azure-conv-2023", [ServerSpec(engine=engine) for engine in ENGINES]).servers
    gaps = [format_percent(server.compared.gap_to_ideal or 0.0, signed=True) for server in servers]
    written = {Path(line).name: Path(line).read_bytes() for line in done.stdout.splitlines()}
    page, markdown = written["index.html"].decode(), written["report.md"].decode()
    names = re.findall(r'data-figure="([^"]+)"', page)
    assert {"traces", "sequences-input", "sequences-output", "phases", "engines"} <= set(names)
    for name in names:
        assert written[f"{name}.png"].startswith(b"\x89PNG")
        svg = written[f"{name}.svg"].decode()
        assert svg.startswith("<svg")
        assert "currentColor" not in svg
        assert f"]({name}.svg)" in markdown
    assert set(written) == {"index.html", "report.md", *(f"{name}{end}" for name in names for end in (".svg", ".png"))}
    for words in (
        "Environment",
        "580.159.04",
        "uncertain",
        *gaps,
        "+490.2 %",
        "4,096→64 × 64 (out of memory)",
    ):
        assert words in page, words
        assert words in markdown, words
    # Nothing comes from elsewhere: not by address, and by the page's own word not at all.
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert "default-src 'none'" in unescape(page)
    assert page.count('<noscript><img alt="') == len(names)


def test_figures_have_logarithmic_axes_units_intervals_and_tell_their_cell(paper: Report) -> None:
    figure = next(one for one in paper.figures if one.name == "sequences-input")
    text = json.dumps(figure.spec)
    assert '"type": "log"' in text
    assert '"base": 2' in text
    for words in ("energy, J per request", "input tokens per request", '"title": "Cell"', '"title": "95 % interval"'):
        assert words in text
    values = [value for data in figure.spec["datasets"].values() for value in data] if "datasets" in figure.spec else []
    values = values or _inline(figure.spec)
    assert len(values) >= len(figure.points) > 40
    assert all(value["low"] < value["value"] < value["high"] for value in values if value["low"] is not None)
    assert any(value["low"] is not None for value in values)


def _inline(spec: Any) -> list[dict[str, Any]]:
    if isinstance(spec, dict):
        own = spec["data"]["values"] if isinstance(spec.get("data"), dict) and "values" in spec["data"] else []
        return own + [value for key, item in spec.items() if key != "data" for value in _inline(item)]
    return [value for item in spec for value in _inline(item)] if isinstance(spec, list) else []


def test_a_point_without_an_interval_is_drawn_hollow(tmp_path: Path) -> None:
    # One batch in one window, and no like cell: nothing tells its spread.
    lonely = with_setup(build_row(output_tokens=8, batches=1, duration_s=20.0), engine="vllm")
    (figure,) = build_report([store(tmp_path, [lonely, *sweep()[1:]])]).figures
    hollow = {
        value["cell0"]: not layer["mark"]["filled"]
        for layer in figure.spec["layer"]
        if layer["mark"]["type"] == "point"
        for value in _inline(figure.spec)
        if layer["transform"][0]["filter"] == f"isValid(datum.low) == {str(value['low'] is not None).lower()}"
    }
    assert list(hollow.values()) == [True, False, False]


def test_a_file_for_itself_has_ink_of_its_own_and_rows_keep_their_words(tmp_path: Path) -> None:
    built = build_report([store(tmp_path, sweep(model="currentColor"))])
    assert built.figures[0].spec["config"]["axis"]["labelColor"] == "currentColor"
    write_report(built, tmp_path / "out")
    svg = (tmp_path / "out" / "sequences-output-currentcolor.svg").read_text(encoding="utf-8")
    assert not re.search('(fill|stroke)="currentColor"', svg)
    assert "currentColor: energy per request by output length" in svg


def claim(**recipe: Any) -> Claim:
    return Claim(study="engines", claim="test", hardware="theirs", paper=0.5, ours=recipe)


def test_a_change_is_of_the_same_load_and_its_interval_holds_both(tmp_path: Path) -> None:
    alone = build_row(batch=1, energy_j=100.0, duration_s=4.0)
    both = with_setup(build_row(batch=1, energy_j=130.0, duration_s=3.0), cuda_graphs=False)
    other = with_setup(build_row(batch=8, energy_j=999.0), cuda_graphs=False)
    evidence = Evidence(points=points(alone, both, other, tmp_path=tmp_path))
    ours = find_ours(claim(kind="change", label="vllm-eager", against="vllm"), evidence)
    assert ours.value == pytest.approx(0.3)
    assert ours.interval is not None
    assert ours.interval[0] < 0.3 < ours.interval[1]
    assert ours.hardware == "NVIDIA H200"
    later = find_ours(claim(kind="change", label="vllm-eager", against="vllm", quantity="latency"), evidence)
    assert later.value == pytest.approx(-0.25)
    assert later.interval is None
    nothing = find_ours(claim(kind="change", label="vllm-eager", against="vllm", least_batch=8), evidence)
    assert not nothing.is_measured
    assert "vllm-eager" in nothing.method


@pytest.mark.parametrize(("pick", "value"), [("least", 0.1), ("most", 0.6), ("mean", math.sqrt(1.1 * 1.6) - 1)])
def test_of_several_loads_the_one_that_the_claim_means_counts(pick: str, value: float, tmp_path: Path) -> None:
    rows = [build_row(batch=batch, energy_j=100.0) for batch in (1, 8)]
    rows += [
        with_setup(build_row(batch=batch, energy_j=joules), model="olmo-1b")
        for batch, joules in ((1, 110.0), (8, 160.0))
    ]
    evidence = Evidence(points=points(*rows, tmp_path=tmp_path))
    wanted = claim(
        kind="change", label="vllm", against="vllm", model="olmo-1b", against_model="llama-3.1-8b", pick=pick
    )
    assert find_ours(wanted, evidence).value == pytest.approx(value)


@pytest.mark.parametrize("other", [{"driver": "2"}, {"packages": {"vllm": "0.1"}}], ids=str)
def test_cells_of_different_environments_are_no_evidence_for_a_change(other: dict[str, Any], tmp_path: Path) -> None:
    eager = with_setup(build_row(), cuda_graphs=False)
    eager = dataclasses.replace(eager, environment=dataclasses.replace(eager.environment, **other))
    evidence = Evidence(points=points(build_row(), eager, tmp_path=tmp_path))
    assert not find_ours(claim(kind="change", label="vllm-eager", against="vllm"), evidence).is_measured


def test_mixed_environments_are_refused_with_the_reason_or_split_by_the_users_word(tmp_path: Path) -> None:
    rows = sweep()
    other = [dataclasses.replace(r, environment=dataclasses.replace(r.environment, driver="2")) for r in sweep()]
    files = [store(tmp_path, rows, "a.jsonl"), store(tmp_path, other, "b.jsonl")]
    with raises("environments-differ", fact="driver", was="1", now="2"):
        build_report(files)
    (figure,) = [one for one in build_report(files, mixed="split").figures if one.name == "sequences-output"]
    assert {row[1] for row in figure.table} == {"vllm; driver 1", "vllm; driver 2"}
    assert len(figure.table) == 2 * len(OUTPUTS)
    with raises("unknown-name", name="spilt", nearest=["split"]):
        build_report(files, mixed="spilt")


def test_boards_of_another_kind_beside_each_other_are_refused(tmp_path: Path) -> None:
    (gpu,) = build_row().environment.gpus
    other = [
        dataclasses.replace(
            row,
            environment=dataclasses.replace(row.environment, gpus=(dataclasses.replace(gpu, name="NVIDIA A100"),)),
        )
        for row in sweep(cuda_graphs=False)
    ]
    files = [store(tmp_path, sweep(), "a.jsonl"), store(tmp_path, other, "b.jsonl")]
    with raises("environments-differ", fact="GPU", was="NVIDIA H200", now="NVIDIA A100"):
        build_report(files)


def test_hostile_names_are_shown_not_run(tmp_path: Path) -> None:
    path = store(tmp_path, sweep(model=HOSTILE), "<b onload=1>.jsonl")
    write_report(build_report([path]), tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for text in (page, markdown):
        assert "<img src=x" not in text
        assert "<b onload" not in text
        assert "onerror=alert(1)" in text
    assert not re.search(r"(?<!\\)\]\(javascript", markdown)
    assert {file.parent for file in (tmp_path / "out").rglob("*")} == {tmp_path / "out"}


def test_markdown_shows_text_as_it_is() -> None:
    assert escape("a|b\n<i> *c* [d](e) `f` & _g_") == r"a\|b &lt;i&gt; \*c\* \[d\](e) \`f\` &amp; \_g\_"


def test_simulated_rows_are_refused_or_said_in_the_page(tmp_path: Path) -> None:
    path = store(tmp_path, [dataclasses.replace(row, simulated=True) for row in sweep()])
    with raises("simulated-rows", path=path):
        build_report([path])
    write_report(build_report([path], allow_simulated=True), tmp_path / "out")
    for name in ("index.html", "report.md"):
        assert "SIMULATED" in (tmp_path / "out" / name).read_text(encoding="utf-8")


def test_of_a_users_rows_a_trace_is_estimated(tmp_path: Path) -> None:
    rows = [
        with_setup(build_row(input_tokens=i, output_tokens=o, energy_j=200.0 + (i + o) / 10), engine=engine)
        for engine in ("transformers", "vllm")
        for i in (32, 512, 8192)
        for o in (8, 64, 512)
    ]
    mine = store(tmp_path, rows)
    built = build_report([mine], traces=["azure-code-2023"])
    (figure,) = [one for one in built.figures if one.name == "traces"]
    assert [row[:2] for row in figure.table] == [("azure-code-2023", "transformers"), ("azure-code-2023", "vllm")]
    # A histogram, which is all that leaves a lake, stands in for the trace.
    lake = tmp_path / "lake.json"
    lake.write_text(
        CliRunner().invoke(app, ["trace", "azure-code-2023", "--bins", "powers-of-two", "--json"]).stdout,
        encoding="utf-8",
    )
    again = build_report([mine], traces=[str(lake)])
    assert next(one for one in again.figures if one.name == "traces").table == figure.table


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["paper", "mine.jsonl"], "bad-usage"),
        (["nowhere.jsonl"], "file-not-found"),
    ],
)
def test_what_cannot_be_reported_is_told(arguments: list[str], code: str, tmp_path: Path) -> None:
    with raises(code):
        CliRunner().invoke(app, ["report", *arguments, "-o", str(tmp_path / "out")], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises("file-not-writable", path=tmp_path / "file"):
        write_report(build_report([store(tmp_path, [build_row()])]), tmp_path / "file")


def test_a_store_without_enough_for_a_figure_still_has_a_page(tmp_path: Path) -> None:
    built = build_report([store(tmp_path, [build_row()])])
    assert not list(built.figures)
    write_report(built, tmp_path / "out")
    assert (tmp_path / "out" / "index.html").read_text(encoding="utf-8").count("Not measured yet.") == len(STUDIES)


@pytest.mark.slow
def test_each_figure_is_of_the_schema_which_is_not_checked_while_a_page_is_made(paper: Report) -> None:
    import altair

    for figure in paper.figures:
        altair.Chart.from_dict(dict(figure.spec), validate=True)
        json.dumps(figure.spec, allow_nan=False)
    broken = {**figure.spec, "width": "wide and high"}
    with pytest.raises(Exception, match="'wide and high' is not"):
        altair.LayerChart.from_dict(broken, validate=True)


def test_without_altair_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "altair.py").write_text("raise ImportError('blocked')\n")
    done = subprocess.run(
        [sys.executable, "-m", "infergy", "report", str(store(tmp_path, sweep())), "-o", str(tmp_path / "out")],
        env={"PYTHONPATH": f"{tmp_path}:{SRC}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "pip install 'infergy[report]'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_ships_has_figures_of_its_own_for_each_kind_of_gpu(paper: Report) -> None:
    figures = {figure.name: figure for figure in paper.figures}
    assert figures["engines"].gpu == "NVIDIA H200 SXM 141GB"
    other = figures["engines-h100-sxm"]
    assert other.heading.endswith(", on NVIDIA H100 80GB SXM")
    for figure in figures.values():
        assert len({point.row.environment.gpus[0].name for point in figure.points}) <= 1, figure.name
    parallel = figures["tensor-parallel-h100-sxm"]
    assert {point.label for point in parallel.points} == {"vllm", "vllm-tp2", "vllm-tp4"}


def test_a_batch_that_was_asked_for_is_on_no_line_of_largest_batches(tmp_path: Path) -> None:
    batches = {128: 64, 512: 64, 1024: 8, 2048: 1, 8192: 1}
    rows = [with_setup(build_row(input_tokens=tokens, batch=batch), engine="vllm") for tokens, batch in batches.items()]
    assert "sequences-input" not in {figure.name for figure in build_report([store(tmp_path, rows)]).figures}
    chosen = [dataclasses.replace(row, batch_choice="largest that fits the memory") for row in rows]
    (tmp_path / "more").mkdir()
    found = {figure.name: figure for figure in build_report([store(tmp_path / "more", chosen)]).figures}
    assert len(found["sequences-input"].points) == len(rows)


def test_a_best_case_tells_each_kind_of_gpu_and_makes_no_ratio_of_noise(paper: Report) -> None:
    by_claim = {one.claim.claim: one for section in paper.sections for one in section.claims}
    draft = by_claim["speculative decoding, at batch ≤ 16: energy, best case"]
    assert draft.ours.interval is not None
    assert draft.ours.interval[0] < 0 < draft.ours.interval[1]
    assert draft.cells[-1] == "interval contains 0"
    assert "; +14.5 % (+5.1 % .. +23.8 %) on NVIDIA H200" in draft.ours.method
    gap = by_claim["gap to ideal, vLLM: Azure code"]
    assert gap.ours.value is not None
    assert gap.claim.paper is not None
    assert gap.cells[-1] == format_number(gap.ours.value / gap.claim.paper)
