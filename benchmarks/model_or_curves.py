"""How far values at unmeasured lengths lie from the truth: the physical model given cells, beside curves through them.

    python benchmarks/model_or_curves.py

Cells of the shipped tables are left out and told by the rest: by `infergy.energy.posterior`, and by
`infergy.energy.surface`, whose curves were the only way until the model. Then the model alone from few cells, drawn at
random, 16 times each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from infergy.energy.cell_model import Server
from infergy.energy.load import load_table
from infergy.energy.posterior import Posterior
from infergy.energy.surface import Surface
from infergy.energy.table import SetupTable, TableCell
from infergy.energy.values import server_of

Place = tuple[int, int]
GROUPS: tuple[tuple[str, Callable[[Place], object]], ...] = (
    ("each cell by itself", lambda place: place),
    ("outputs 16, 32, 128, 256", lambda place: "out" if place[1] in (16, 32, 128, 256) else None),
    ("each input", lambda place: place[0]),
    ("outputs from 512", lambda place: "out" if place[1] >= 512 else None),
    ("inputs from 2,048", lambda place: "out" if place[0] >= 2048 else None),
    ("inputs up to 128", lambda place: "out" if place[0] <= 128 else None),
)
FEW = (0, 1, 2, 3, 5, 8, 12, 20)
DRAWS = 16


def main() -> None:
    """Print both tables for each engine."""
    table = load_table(with_shipped=True)
    for label in ("vllm", "transformers"):
        setup = table.find("h200", "llama-3.1-8b", label)
        print(
            f"\n{label}: {len(setup.by_length())} lengths; error of joules a request: median / 90th percentile / most"
        )
        print(f"  {'left out':26s}{'lengths':>8s}   {'curves':>22s}   {'model':>22s}   within 90 %")
        for name, group in GROUPS:
            _leave_out(setup, name, group)
        print(f"  {'measured, at random':26s}")
        for count in FEW:
            _few(setup, count)


def _leave_out(setup: SetupTable, name: str, group: Callable[[Place], object]) -> None:
    counted = setup.by_length()
    curves, model, within = [], [], []
    for key in dict.fromkeys(group(place) for place in counted if group(place) is not None):
        left = {place for place in counted if group(place) == key}
        surface = Surface({place: cell for place, cell in counted.items() if place not in left})
        rest = [cell for cell in setup.cells if (cell.input_tokens, cell.output_tokens) not in left]
        errors, inside = _errors(setup, rest, [counted[place] for place in left])
        model += errors
        within += inside
        for place in left:
            value = surface.at(*place)
            if value is not None:
                curves.append(abs(np.log(value.energy_j / counted[place].energy_j)))
    told = f"{_told(curves):>22s}   {_told(model):>22s}   {np.mean(within):.0%}"
    print(f"  {name:26s}{len(model):8d}   {told}")


def _few(setup: SetupTable, count: int) -> None:
    cells = Posterior(_server(setup), setup.cells).cells
    errors: list[float] = []
    within: list[bool] = []
    for seed in range(DRAWS if count else 1):
        order = np.random.default_rng(seed).permutation(len(cells))
        known, rest = ([cells[place] for place in part] for part in (order[:count], order[count:]))
        off, inside = _errors(setup, known, rest)
        errors += off
        within += inside
    print(f"  {f'{count} cells':26s}{'':8s}   {'':22s}   {_told(errors):>22s}   {np.mean(within):.0%}")


def _errors(setup: SetupTable, known: Iterable[TableCell], rest: Iterable[TableCell]) -> tuple[list[float], list[bool]]:
    posterior, rest = Posterior(_server(setup), list(known)), list(rest)
    found = posterior.at(np.array([[c.input_tokens, c.output_tokens, c.batch] for c in rest], dtype=float))
    off = np.abs(np.log(found.energy_j / np.array([cell.energy_j for cell in rest])))
    measuring = np.array([max(0.004, cell.doubt / 1.96) for cell in rest])
    return off.tolist(), (off <= posterior.half_width * np.hypot(found.spread, measuring)).tolist()


def _server(setup: SetupTable) -> Server:
    server = server_of(setup)
    if server is None:
        raise SystemExit(f"the physical model does not apply to {setup.label}")
    return server


def _told(errors: list[float]) -> str:
    median, high, most = np.quantile(np.expm1(errors), [0.5, 0.9, 1.0])
    return f"{median:.1%} / {high:.1%} / {most:.0%}"


if __name__ == "__main__":
    main()
