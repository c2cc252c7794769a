"""Cells of several chips: the physical model that takes them for one, beside the one that tells them apart.

    python benchmarks/several_chips.py

For each engine and GPU of the shipped tables, over pairs of standard deviations of what sets a chip apart: the log
likelihood of joules and seconds of all cells, how far cells lie from what the others tell of them, and by how many
standard deviations 90 % of them do (docs/physics.md, "Several chips"). Then the two replays of an H100, foretold from the
cells of the first two hosts and of all, with chips taken for one and told apart (docs/replay.md). Some seconds.
"""

from __future__ import annotations

import numpy as np

from infergy.energy import posterior
from infergy.energy.load import SHIPPED, load_table
from infergy.energy.posterior import CHIP_AMPLITUDE, CHIP_OFFSET, Posterior
from infergy.energy.replay import predict_replay
from infergy.energy.table import EnergyTable
from infergy.energy.values import server_of
from infergy.records.store import read_store

MODEL = "llama-3.1-8b"
PAIRS = ((0.0, 0.0), (0.01, 0.01), (0.01, 0.02), (0.02, 0.02), (0.02, 0.03), (0.03, 0.02), (0.03, 0.03), (0.02, 0.05))
REPLAYED = "h100-sxm-llama-3.1-8b"
TWO_HOSTS = (REPLAYED, f"{REPLAYED}_third-host", f"replicates/{REPLAYED}-2", f"replicates/{REPLAYED}-3")


def main() -> None:
    """Print a table for each set-up, and the replays."""
    table = load_table(with_shipped=True)
    show_setups(table)
    print()
    show_replays("two hosts", load_table([SHIPPED / f"{name}.jsonl" for name in TWO_HOSTS]))
    show_replays("all", table)


def show_setups(table: EnergyTable) -> None:
    """Likelihoods and errors of cells left out."""
    for gpu in ("h100-sxm", "h200"):
        for label in ("vllm", "transformers"):
            setup = table.find(gpu, MODEL, label)
            server = server_of(setup)
            assert server is not None
            cells = Posterior(server, setup.cells).cells
            print(f"\n{label}, {gpu}: {len(cells)} cells of {len({cell.chips for cell in cells})} chips")
            print("  sets apart: throughout, fading   log likelihood   left out: median    p90   90 % within")
            for offset, amplitude in PAIRS:
                posterior.CHIP_OFFSET, posterior.CHIP_AMPLITUDE = offset, amplitude
                told = Posterior(server, setup.cells)
                median, high = np.quantile(np.expm1([abs(one.error) for one in told.left_out]), [0.5, 0.9])
                print(
                    f"  {offset:19.0%}{amplitude:12.0%}{told.log_likelihood:18.1f}"
                    f"{median:19.1%}{high:9.1%}{told.half_width:10.2f} σ"
                )


def show_replays(hosts: str, table: EnergyTable) -> None:
    """What the replays of the shipped rows took, and what they are foretold to take."""
    server = server_of(table.find("h100-sxm", MODEL, "vllm"))
    assert server is not None
    for row in read_store(SHIPPED / f"{REPLAYED}.jsonl").rows:
        if row.cell.setup.label != "vllm-s256" or row.result is None or row.cell.load.arrivals is None:
            continue
        for words, pair in (("taken for one", (0.0, 0.0)), ("told apart", (CHIP_OFFSET, CHIP_AMPLITUDE))):
            posterior.CHIP_OFFSET, posterior.CHIP_AMPLITUDE = pair
            name, setup = row.cell.load.arrivals.trace or "", row.cell.setup
            told = predict_replay(name, row.lengths, first=0, setup=setup, server=server, gpu="h100-sxm", table=table)
            ends = [end / told.energy_j - 1 for end in (told.low_j, told.high_j)]
            print(
                f"{name}, {hosts}, {told.measured_cells} cells, chips {words}: "
                f"{told.energy_j / row.result.energy_j - 1:+.1%}, 90 % within {ends[0]:+.1%} .. {ends[1]:+.1%}"
            )


if __name__ == "__main__":
    main()
