"""Next cells: what they narrow, what they cost, and that a fit to them is as certain as expected."""

from __future__ import annotations

import math

import numpy as np
import pytest

from infergy.cost.fit import fit
from infergy.cost.fit_rows import FitRow
from infergy.estimates.estimate import Z90, sample_of, serve_sample
from infergy.estimates.next_cells import (
    BATCHES,
    WINDOW_S,
    NextCells,
    cell_choices,
    choose_next,
    measuring_spec,
)
from infergy.estimates.servers import OpenServer, ServerSpec, open_server, shipped_table
from infergy.serving.config import EngineOptions
from infergy.serving.run import open_share, steps_of
from infergy.workload.requests import Requests
from raising import raises
from served import some_requests

REQUESTS = some_requests()
UNSEEN = ServerSpec(engine="vllm-tp2", model="qwen3-32b", gpu="a100-80gb-sxm")


def chosen(**changes: object) -> NextCells:
    asked: dict[str, object] = {"budget_s": 400.0, "target": 0.01, **changes}
    return choose_next(REQUESTS, UNSEEN, shipped_table(), **asked)  # type: ignore[arg-type]


def rows_of(found: NextCells, server: OpenServer) -> list[FitRow]:
    """The chosen cells, measured just as the model has them."""
    rows = []
    for cell in found.cells:
        equal = np.full(cell.batch, cell.input_tokens), np.full(cell.batch, cell.output_tokens)
        run = server.serve(Requests(source="cell", input_tokens=equal[0], output_tokens=equal[1], order_reason="batch"))
        steps = run.steps
        columns = (steps.count, steps.step_s, steps.decodes, steps.context, steps.prefill_tokens, steps.prefill_pairs)
        rows.append(
            FitRow(
                work=server.cost.server.work,
                gpu=server.gpu,
                server=False,
                steps=np.column_stack([*columns, steps.prefills, steps.sampled, steps.padded]),
                calls=0,
                idle_s=0.0,
                idle_w=server.cost.idle_w,
                energy_j=run.energy_j,
                energy_sd=0.004,
                seconds=run.duration_s,
                unit="GPU-1",
            )
        )
    return rows


def test_cells_narrow_the_interval_within_the_budget() -> None:
    found = chosen()
    (server,) = found.servers
    widths = [server.half_width, *(cell.half_width for cell in found.cells)]
    assert widths == sorted(widths, reverse=True)
    assert server.half_width_after == widths[-1] < server.half_width / 3
    assert server.half_width_after >= server.half_width_least
    assert found.cost_s == sum(cell.cost_s for cell in found.cells) <= found.budget_s
    assert all(cell.cost_s >= WINDOW_S for cell in found.cells)
    assert found.cells[0].cost_s > max(cell.cost_s for cell in found.cells[1:]) - 100
    assert server.measured == 0
    assert chosen(budget_s=4000.0).stopped == "nothing_helps"


def test_a_fit_to_the_cells_is_at_least_as_certain_as_expected() -> None:
    found = chosen()
    server = open_server(UNSEEN, shipped_table())
    rows = rows_of(found, open_server(measuring_spec(server), shipped_table()))
    prior = server.cost.fit
    after = fit(prior.engine, rows, prior)[0]
    runs = serve_sample(sample_of(REQUESTS), server)
    idle_j = found.servers[0].estimate.run.energy.idle_j
    slope = server.cost.log_slopes(steps_of(runs), idle_j, open_share(runs))[:, 0]

    def sd(covariance: np.ndarray) -> float:
        return math.sqrt(slope @ covariance @ slope)

    least = math.log1p(found.servers[0].half_width_least) / Z90
    expected = math.sqrt((math.log1p(found.servers[0].half_width_after) / Z90) ** 2 - least**2)
    before, refitted = sd(prior.logs(server.gpu.name)[2]), sd(after.logs(server.gpu.name)[2])
    # The fit takes the GPU that measured for the mean of its kind; what is expected leaves that open.
    assert refitted <= expected < before / 2


def test_a_small_budget_takes_fewer_cells() -> None:
    assert chosen(budget_s=90.0).cells == ()
    assert chosen(budget_s=90.0).stopped == "budget_spent"
    assert len(chosen(budget_s=120.0).cells) == 1


def test_it_ends_at_the_target() -> None:
    found = chosen(target=0.2)
    assert found.stopped == "target_reached"
    assert found.servers[0].half_width_after <= 0.2 < found.cells[-1].half_width + 0.2
    assert all(cell.half_width > 0.2 for cell in found.cells[:-1])


def test_where_much_is_measured_nothing_helps() -> None:
    found = choose_next(REQUESTS, ServerSpec(), shipped_table(), target=0.001)
    assert (found.cells, found.stopped) == ((), "nothing_helps")
    assert found.servers[0].measured > 50


def test_cells_of_one_server_help_others_of_its_engine() -> None:
    other = ServerSpec(engine="vllm-tp4", model="qwen3-32b", gpu="a100-80gb-sxm")
    found = choose_next(REQUESTS, [UNSEEN, other], shipped_table(), budget_s=140.0, target=0.01)
    assert {cell.server for cell in found.cells} == {found.cells[0].server}
    assert all(server.half_width_after < server.half_width for server in found.servers)


def test_choices_are_like_the_trace_and_fit_the_server() -> None:
    sample, table = sample_of(REQUESTS), shipped_table()
    choices = cell_choices(sample, open_server(ServerSpec(options=EngineOptions(max_num_seqs=40)), table))
    assert {choice.batch for choice in choices} == {size for size in BATCHES if size <= 40}
    assert max(choice.input_tokens for choice in choices) == 4096
    assert max(choice.output_tokens for choice in choices) == 512


def test_cells_are_measured_under_the_batch_interface() -> None:
    spec = ServerSpec(engine="vllm-server-eager-fp8-s16", options=EngineOptions(num_gpu_blocks=4000), replicas=3)
    measuring = measuring_spec(open_server(spec, shipped_table()))
    assert (measuring.engine, measuring.precision, measuring.usage_context) == ("vllm-eager", "fp8", "llm")
    assert (measuring.replicas, measuring.options.max_num_seqs, measuring.options.num_gpu_blocks) == (1, None, None)


@pytest.mark.parametrize("changes", [{"budget_s": 0.0}, {"target": 0.0}, {"target": 1.5}])
def test_values_out_of_range_are_rejected(changes: dict[str, float]) -> None:
    with raises("bad-value", option="--budget" if "budget_s" in changes else "--target"):
        chosen(**changes)


def test_cells_are_chosen_for_one_kind_of_gpu() -> None:
    with raises("several-gpus", option="--gpu"):
        choose_next(REQUESTS, [ServerSpec(), UNSEEN], shipped_table())
