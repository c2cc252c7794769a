"""A replay foretold: requests of their own lengths, in the batch that their order leaves."""

from __future__ import annotations

import numpy as np
import pytest

from infergy.energy.cell_model import CellModel, Server
from infergy.energy.load import load_table
from infergy.energy.physics import Physics
from infergy.energy.posterior import Posterior
from infergy.energy.replay import Replay, mean_batch, places_of, predict_replay
from infergy.energy.table import EnergyTable
from infergy.errors import UsageError
from infergy.hardware.gpus import get_gpu
from infergy.hardware.models import get_model
from infergy.records import EngineSetup

SERVER = Server(shape=get_model("llama-3.1-8b"), gpu=get_gpu("h200"))
NOTHING = EnergyTable(setups=(), files=())


def predict(lengths: list[tuple[int, int]], table: EnergyTable = NOTHING, *, most: int = 256) -> Replay:
    setup = EngineSetup(engine="vllm", model="llama-3.1-8b", max_sequences=most)
    return predict_replay("test", lengths, first=0, setup=setup, server=SERVER, gpu="h200", table=table)


@pytest.mark.parametrize(
    ("outputs", "places", "batch"),
    [
        ([10] * 8, 4, 4.0),
        ([10] * 8, 100, 8.0),
        ([1, 1, 1, 97], 4, 100 / 97),
        # The second place takes 3, 3, 3 while the first is busy with 9.
        ([9, 3, 3, 3], 2, 2.0),
        ([9, 3, 3, 3, 9], 2, 27 / 18),
    ],
)
def test_the_mean_batch_is_tokens_over_steps_of_first_come_first_served(
    outputs: list[int], places: int, batch: float
) -> None:
    assert mean_batch([(100, tokens) for tokens in outputs], places) == pytest.approx(batch)


def test_equal_requests_in_full_batches_take_what_the_batch_takes() -> None:
    found = predict([(512, 64)] * 512)
    cell = CellModel(SERVER, np.array([[512.0, 64.0, 256.0]])).requests(Physics())
    assert found.mean_batch == 256
    assert found.energy_j == pytest.approx(512 * float(cell.energy_j[0]))
    assert found.duration_s == pytest.approx(512 * float(cell.seconds[0]))
    assert (found.trace.requests, found.trace.input_tokens, found.trace.output_tokens) == (512, 512 * 512, 512 * 64)
    assert found.measured_cells == 0


def test_fewer_places_take_more_joules_and_cells_make_it_more_certain() -> None:
    lengths = [(512, 64), (2048, 32), (128, 256)] * 100
    shipped = load_table(with_shipped=True)
    many, few, known = predict(lengths), predict(lengths, most=4), predict(lengths, shipped)
    assert few.energy_j > 1.5 * many.energy_j
    assert known.measured_cells > 40
    assert np.log(known.high_j / known.low_j) < np.log(many.high_j / many.low_j) / 3
    assert known.low_j < known.energy_j < known.high_j


def test_requests_of_one_length_are_counted_not_repeated() -> None:
    lengths = [(512, 64), (2048, 32)] * 50
    posterior = Posterior(SERVER)
    batch = mean_batch(lengths, 256)
    each = posterior.at(np.array([[i, o, batch] for i, o in lengths], dtype=float))
    assert predict(lengths).energy_j == pytest.approx(float(each.energy_j.sum()))


def test_the_memory_bounds_what_runs_together() -> None:
    assert places_of(SERVER, [(512, 64)] * 10, 256) == 256
    assert places_of(SERVER, [(16_384, 512)] * 10, 256) < 60
    with pytest.raises(UsageError, match="does not fit 1 × NVIDIA H200"):
        places_of(SERVER, [(512, 64), (3_000_000, 64)], 256)
