"""How long a search takes, and what it loses against serving every configuration whole.

Usage: python benchmarks/search.py [TRACE] [--exhaustive]

Prints the number of configurations, those simulated in windows and whole, seconds on all cores, and what is recommended.
With --exhaustive each configuration that is not known to be equal to another is also served whole on the same cores: the
peer, whose best shows what floors and windows cost.
"""

from __future__ import annotations

import os
import sys
import time

from infergy.estimates.candidates import Space, layouts, plain_spec, variations
from infergy.estimates.estimate import sample_of
from infergy.estimates.latency import Limits
from infergy.estimates.recommend import recommend
from infergy.estimates.search import Pool, Screened, Whole
from infergy.estimates.servers import ServerSpec, shipped_table

LIMITS = Limits(ttft_p99_s=1.0, tpot_p99_s=0.05)


def main() -> None:
    """Search, and with --exhaustive serve all."""
    names = [word for word in sys.argv[1:] if not word.startswith("--")]
    sample, table, cores = sample_of(names[0] if names else "azure-conv-2023"), shipped_table(), os.cpu_count() or 1
    present = ServerSpec()
    begin = time.perf_counter()
    found = recommend(sample, table=table, present=present, limits=LIMITS, processes=cores)
    took_s = time.perf_counter() - begin
    searched = found.searched
    print(
        f"{sample.source}: {searched.configurations} configurations on {cores} cores in {took_s:.1f} s "
        f"({searched.equal} equal to others, {searched.pruned} by floors or far from the best, {searched.windows} in "
        f"windows, {searched.whole} whole)"
    )
    chosen = found.recommended
    print(f"recommended: {chosen}" + ("" if chosen is None else f", {found.of(chosen).energy_j / 1e3:.1f} kJ"))
    if "--exhaustive" not in sys.argv:
        return
    begin = time.perf_counter()
    with Pool(sample, table, LIMITS, processes=cores) as pool:
        specs = list(layouts(plain_spec(present), Space.around(present), shares_prefixes=False))
        for own in pool.screen(specs):
            if isinstance(own, Screened):
                specs += variations(own.spec, own.peak_running, own.peak_tokens)
        whole = [own for own in pool.serve(specs) if isinstance(own, Whole)]
    kept = [own for own in whole if not LIMITS.excess(own.estimate.run.latency) and own.estimate.run.overload is None]
    best = min(kept, key=lambda own: own.estimate.run.energy_j)
    print(
        f"all {len(whole)} whole: {time.perf_counter() - begin:.1f} s; best {best.estimate.run.energy_j / 1e3:.1f} kJ"
    )
    if chosen is not None:
        print(f"the search takes {found.of(chosen).energy_j / best.estimate.run.energy_j - 1:+.2%} of it")


if __name__ == "__main__":
    main()
