"""Cells of several chips: the physical model that takes them for one, beside the one that tells them apart.

    python benchmarks/several_chips.py

For each engine and GPU of the shipped tables, over pairs of standard deviations of what sets a chip apart: the log
likelihood of joules and seconds of all cells, how far cells lie from what the others tell of them, and by how many
standard deviations 90 % of them do (docs/physics.md, "Several chips"). Some seconds.
"""

from __future__ import annotations

import numpy as np

from infergy.energy import posterior
from infergy.energy.load import load_table
from infergy.energy.posterior import Posterior
from infergy.energy.values import server_of

MODEL = "llama-3.1-8b"
PAIRS = ((0.0, 0.0), (0.01, 0.01), (0.01, 0.02), (0.02, 0.02), (0.02, 0.03), (0.03, 0.02), (0.03, 0.03), (0.02, 0.05))


def main() -> None:
    """Print a table for each set-up."""
    table = load_table(with_shipped=True)
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


if __name__ == "__main__":
    main()
