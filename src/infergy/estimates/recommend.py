"""Which configuration serves a trace with the least energy within limits on latency, and what to type for it.

    present ─▶ layouts ─▶ variations ─▶ the best few, whole ─▶ within limits, by energy ─▶ what each change saves
                             ▲                           │ while windows say that another may take less
                             └───────────────────────────┘

A configuration is recommended in place of the present one only if it saves energy significantly, or if the present one
breaks a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from infergy.cost.model import log_ratio_sd
from infergy.cost.table import Table
from infergy.errors import UsageError
from infergy.estimates.candidates import (
    Space,
    layout_of,
    layouts,
    plain_spec,
    static_batches,
    steps_between,
    variations,
)
from infergy.estimates.capacity import Capacity, serve_rates
from infergy.estimates.estimate import facts_of, sample_of
from infergy.estimates.footprint import Site
from infergy.estimates.latency import OVERLOADED, REJECTS, Limits
from infergy.estimates.recommendation import (
    Configuration,
    Recommendation,
    Saving,
    Searched,
    Step,
    no_arrivals,
    notes_of,
    pareto_of,
)
from infergy.estimates.search import Pool, Screened, Whole, fewest_gpus, pareto_front
from infergy.estimates.servers import OpenServer, ServerSpec, loaded_setup, open_server, shipped_table
from infergy.estimates.vllm_command import command_of, label_of
from infergy.workload.requests import AT_ONCE

GROUPS, ROUNDS = 4, 4
"""Layouts that are simulated whole at a time, and how often at most."""
NEAR = 1.3
"""Windows err on percentiles: so far over a limit one may still keep it, unless another of its layout did not."""
WORTH_VARYING, HOPELESS = 1.25, 2.0
"""Of the least energy: a layout that takes more is not varied, and not simulated where its idle power alone does."""
WORTH_TYPING = 0.01
"""Changes that together save less of the present energy are left out."""


def recommend(
    source: Any,
    candidates: Sequence[ServerSpec] | None = None,
    table: Table | None = None,
    *,
    present: ServerSpec | None = None,
    limits: Limits | None = None,
    space: Space | None = None,
    keep_outputs: bool = False,
    site: Site | None = None,
    capacity: bool = False,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Recommendation:
    """Search for the configuration that serves a trace with the least energy within limits.

    Args:
        source: What `infergy.estimates.estimate.sample_of` takes.
        candidates: Compared with the present one as they are; None: a search of `space`.
        table: What was measured; None: the shipped table.
        present: What serves now; None: vLLM with its defaults on the fewest GPUs that keep up.
        limits: On latencies; None: no limits.
        space: What may be changed; None: `Space.around` the present configuration.
        keep_outputs: Leave out another precision, which changes answers.
        site: Where the GPUs stand, for money and carbon of each configuration.
        capacity: Also search for the highest rates that are served within the limits, and for replicas by hour.
        processes: That simulate (`Pool`).
        progress: Called with the number of simulations done and known so far.

    Raises:
        UsageError: A name is unknown, the present configuration cannot serve, candidates are of several models, or
            limits are given for a trace without arrivals.
    """
    sample, limits, table = sample_of(source), limits or Limits(), table or shipped_table()
    if limits.given() and not sample.is_timed and sample.windows[0].requests.order_reason != AT_ONCE:
        raise no_arrivals(sample, limits)
    present = plain_spec(present or fewest_gpus(ServerSpec(), sample, table))
    if len({spec.model for spec in (present, *(candidates or ()))}) > 1:
        raise UsageError("configurations are compared on one model: give one --model", code="several-models")
    with Pool(sample, table, limits, site=site, processes=processes, progress=progress) as pool:
        search = _Search(pool, present, keep_outputs=keep_outputs)
        if candidates is not None:
            search.serve(candidates, is_strict=True)
        else:
            search.run(space or Space.around(present, keep_outputs=keep_outputs))
        found = search.conclude(is_search=candidates is None)
        return replace(found, capacity=search.capacities(found)) if capacity else found


class _Search:
    """The configurations of one question: screened, served whole, ranked."""

    def __init__(self, pool: Pool, present: ServerSpec, *, keep_outputs: bool) -> None:
        self.pool, self.present, self.keep_outputs = pool, present, keep_outputs
        self.whole: dict[str, Whole] = {}
        self.servers: dict[str, OpenServer] = {}
        self.savings: dict[tuple[str, str], Saving] = {}
        self.reasons: dict[str, str] = {}
        self.screened: list[Screened] = []
        self.layouts: set[ServerSpec] = set()
        self.varied: set[ServerSpec] = set()
        self.tried: set[ServerSpec] = {present}
        self.pruned = self.equal = 0
        (now,) = pool.serve([present])
        if isinstance(now, UsageError):
            raise now
        self.now = self._keep(now)

    def run(self, space: Space) -> None:
        """Search: layouts, variations of the good ones, then the best few whole; and the way to the best."""
        shares = self.pool.asked.sample.windows[0].requests.prefix_blocks is not None
        found = [*self._afford(layouts(self.present, space, shares_prefixes=shares))]
        self.layouts.update(found)
        self._screen([self.present, *found])
        self._vary()
        first = [static_batches(self.present), *(one.spec for one in self._pareto_of_windows())]
        for _ in range(ROUNDS):
            if not (chosen := [*first, *self._next()]):
                break
            self.tried.update(chosen)
            self.serve(chosen)
            self._vary()
            first = []
        self._count_unvaried()

    def serve(self, specs: Iterable[ServerSpec], *, is_strict: bool = False) -> None:
        """Serve configurations whole that are not known yet; with `is_strict` one that cannot serve is an error."""
        wanted = [
            spec for spec in map(plain_spec, specs) if not self.keep_outputs or spec.precision == self.present.precision
        ]
        known = [_identity(other) for other in self.servers.values()]
        opened = self._open(wanted, is_strict=is_strict)
        chosen = {label_of(server): spec for spec, server in opened if _identity(server) not in known}
        for label, whole in zip(chosen, self.pool.serve(chosen.values()), strict=True):
            if not isinstance(whole, UsageError):
                self._keep(whole)
            elif is_strict:
                raise whole
            else:
                self.pruned += 1
                self.reasons[label] = str(whole)

    def conclude(self, *, is_search: bool) -> Recommendation:
        """What to choose of all that was served whole; in a search, no change that saves next to nothing."""
        limits, sample = self.pool.asked.limits, self.pool.asked.sample
        chosen, reason = self._choose()
        steps = [] if chosen is None or chosen == self.now else self._steps(chosen)
        if len(steps) > 1 and is_search:
            steps = self._shortest(steps)
            chosen = steps[-1].label
        ranked = self._ranked()
        present = next(one for one in ranked if one.label == self.now)
        return Recommendation(
            trace=facts_of(sample),
            limits=limits,
            present=self.now,
            recommended=chosen,
            reason=reason,
            configurations=ranked,
            steps=tuple(steps),
            pareto=pareto_of(ranked),
            static_batches=None if chosen is None else self._saving_over_static(chosen),
            searched=Searched(
                configurations=len(self.screened) + self.pruned + self.equal,
                pruned=self.pruned,
                equal=self.equal,
                windows=len(self.screened),
                whole=len(self.whole),
                reasons=self.reasons,
            ),
            notes=tuple(notes_of(ranked, present, chosen, limits, sample)),
        )

    def capacities(self, found: Recommendation) -> tuple[Capacity, ...]:
        """Of the present and the recommended configuration."""
        labels = [*dict.fromkeys(filter(None, (found.present, found.recommended)))]
        rates = self.pool.map(serve_rates, [self.whole[label].spec for label in labels])
        return tuple(replace(own, label=label) for label, own in zip(labels, rates, strict=True))

    def _keep(self, whole: Whole) -> str:
        server = open_server(whole.spec, self.pool.asked.table)
        label = label_of(server)
        if whole.spec.gpu != self.present.gpu:
            label += f" gpu={server.gpu.name}"
        self.servers[label], self.whole[label] = server, whole
        return label

    def _open(self, specs: Iterable[ServerSpec], *, is_strict: bool = False) -> Iterator[tuple[ServerSpec, OpenServer]]:
        """Those that can serve; the others are left out, with their reason."""
        for spec in specs:
            try:
                server = open_server(spec, self.pool.asked.table)
            except UsageError as error:
                if is_strict:
                    raise
                self._leave_out(spec, error)
            else:
                yield spec, server

    def _leave_out(self, spec: ServerSpec, error: UsageError) -> None:
        self.pruned += 1
        size = spec.options.tensor_parallel_size
        if str(error) not in self.reasons.values():  # of one replica as of several
            self.reasons[f"{spec.engine} --precision {spec.precision} -tp {size} -g {spec.gpu}"] = str(error)

    def _afford(self, specs: Iterable[ServerSpec]) -> Iterator[ServerSpec]:
        """Those whose idle power alone does not take more than they could save, by far."""
        run = self.whole[self.now].estimate.run
        budget_j = HOPELESS * run.energy_j if not self._breaks(self.whole[self.now]) else math.inf
        span_s = self.pool.asked.sample.duration_s or 0.0
        for spec, server in self._open(specs):
            idle_j = server.cost.idle_w * spec.replicas * span_s
            if idle_j > budget_j and spec != self.present:
                self.pruned += 1
                self.reasons[label_of(server)] = (
                    f"idle power alone would take {idle_j / run.energy_j:.2g} times as much"
                )
            else:
                yield spec

    def _screen(self, specs: Iterable[ServerSpec]) -> None:
        seen = {one.spec for one in self.screened}
        for spec, found in zip(new := [*dict.fromkeys(specs)], self.pool.screen(new), strict=True):
            if isinstance(found, UsageError):
                self._leave_out(spec, found)
            elif not isinstance(found, Screened):
                self.pruned += 1
                self.reasons[label_of(open_server(spec, self.pool.asked.table))] = found.reason
            elif found.spec not in seen:
                self.screened.append(found)

    def _vary(self) -> None:
        """Smaller batches and steps of the layouts that are not far from the best of what may keep the limits.

        They shorten steps, not the wait for a first token: a layout whose TTFT is far over its limit is not varied.
        """
        limit_j = WORTH_VARYING * min((one.energy_j for one in self.screened if self._is_near(one)), default=math.inf)
        new = [one for one in self.screened if one.spec in self.layouts - self.varied and one.energy_j <= limit_j]
        new = [one for one in new if all(own <= NEAR for name, own in one.excess.items() if "ttft" in name)]
        if math.isinf(limit_j):  # nothing is near the limits: few that are least over them
            new = sorted(new, key=lambda one: (one.is_overloaded, one.over))[:GROUPS]
        self.varied.update(one.spec for one in new)
        self._screen(spec for one in new for spec in variations(one.spec, one.peak_running, one.peak_tokens))

    def _count_unvaried(self) -> None:
        """Variations that change nothing, and those of layouts far from the best."""
        all_of = len([*variations(self.present, 10**9, 10**9)])
        for one in (own for own in self.screened if own.spec in self.layouts):
            own = len([*variations(one.spec, one.peak_running, one.peak_tokens)])
            self.equal += all_of - own
            self.pruned += 0 if one.spec in self.varied else own

    def _next(self) -> list[ServerSpec]:
        """The best two of few layouts: those that may take less than what keeps the limits, all while nothing does."""
        rest = sorted((one for one in self.screened if one.spec not in self.tried), key=lambda one: one.energy_j)
        if kept := [whole for whole in self.whole.values() if not self._breaks(whole)]:
            best = min(kept, key=lambda whole: whole.estimate.run.energy_j).spec
            least_j = next((one.energy_j for one in self.screened if one.spec == best), math.inf)
            rest = [one for one in rest if self._is_near(one) and one.energy_j < least_j]
        groups: dict[object, list[ServerSpec]] = {}
        rest.sort(key=lambda one: (0.0,) if self._is_near(one) else (1.0, one.is_overloaded, one.over))
        for one in rest:
            groups.setdefault(layout_of(one.spec), []).append(one.spec)
        return [spec for group in [*groups.values()][:GROUPS] for spec in group[:2]]

    def _is_near(self, one: Screened) -> bool:
        """Whether a configuration may keep the limits when the whole trace is served."""
        failed = [whole.spec for whole in self.whole.values() if self._breaks(whole)]
        if one.is_overloaded or one.spec in failed or (one.excess and layout_of(one.spec) in map(layout_of, failed)):
            return False
        return one.over <= NEAR

    def _pareto_of_windows(self) -> list[Screened]:
        """At most `GROUPS` that may be in the Pareto set."""
        near = [one for one in self.screened if self._is_near(one)]
        gpus = [one.spec.replicas * one.spec.options.tensor_parallel_size for one in near]
        kept = pareto_front([(one.energy_j, one.e2e_p99_s, own, one) for one, own in zip(near, gpus, strict=True)])
        every = -(-len(kept) // GROUPS) or 1
        return kept[::every]

    def _breaks(self, whole: Whole) -> tuple[str, ...]:
        run = whole.estimate.run
        fewest = min(own.estimate.run.rejected_requests for own in self.whole.values())
        breaks = [*self.pool.asked.limits.excess(run.latency)]
        breaks += [REJECTS] if run.rejected_requests > fewest else []
        breaks += [OVERLOADED] if run.overload is not None else []
        return tuple(breaks)

    def _saving(self, label: str, other: str) -> Saving:
        if (label, other) not in self.savings:
            own, base = self.whole[label], self.whole[other]
            ratio = own.estimate.run.energy_j / base.estimate.run.energy_j
            costed = own.costed(self.servers[label]), base.costed(self.servers[other])
            self.savings[label, other] = Saving.of(ratio, 0.0 if own is base else log_ratio_sd(*costed))
        return self.savings[label, other]

    def _saving_over_static(self, chosen: str) -> Saving | None:
        wanted = static_batches(self.present)
        label = next((label for label, whole in self.whole.items() if whole.spec == wanted), None)
        return None if label is None else self._saving(chosen, label)

    def _ranked(self) -> tuple[Configuration, ...]:
        """Those that keep the limits by energy, then the others by how far they are over."""
        ranked = []
        for label, whole in self.whole.items():
            run, breaks = whole.estimate.run, self._breaks(whole)
            over = max(self.pool.asked.limits.excess(run.latency).values(), default=1.0) if breaks else 0.0
            ranked.append((over, run.energy_j, self._configuration(label, breaks)))
        return tuple(configuration for *_, configuration in sorted(ranked, key=lambda row: row[:2]))

    def _configuration(self, label: str, breaks: tuple[str, ...]) -> Configuration:
        server = self.servers[label]
        dtype, present = server.setup.dtype, self.servers[self.now].setup.dtype
        return Configuration(
            label=label,
            command=command_of(server),
            engine=server.label,
            estimate=self.whole[label].estimate,
            saving=self._saving(label, self.now),
            breaks=breaks,
            changes_outputs=None if dtype == present else f"{dtype} instead of {present}",
        )

    def _choose(self) -> tuple[str | None, str]:
        """The one to choose, and why."""
        ranked = self._ranked()
        present = next(choice for choice in ranked if choice.label == self.now)
        within = [choice for choice in ranked if not choice.breaks]
        if not within:
            return None, "nothing_keeps_limits"
        if present.breaks:
            return within[0].label, "present_breaks_limits"
        saving = [choice for choice in within if choice.saving.is_significant and choice.saving.share > 0]
        return (saving[0].label, "saves") if saving else (self.now, "present_is_best")

    def _steps(self, chosen: str) -> list[Step]:
        """Changes from the present configuration to the chosen one: at each step the one that saves most."""
        now, wanted = self.present, self.whole[chosen].spec
        path: list[tuple[str, ServerSpec]] = []
        while now != wanted:
            changes = steps_between(now, wanted)
            found = zip(changes, self.pool.screen(changes.values()), strict=True) if len(changes) > 1 else ()
            energies = {change: own.energy_j for change, own in found if isinstance(own, Screened)}
            best = min(energies, key=energies.__getitem__) if energies else next(iter(changes))
            now = changes[best]
            path.append((best, now))
        self.serve(spec for _, spec in path)
        return self._along(path)

    def _along(self, path: Sequence[tuple[str, ServerSpec]]) -> list[Step]:
        """What each change of a path saves; one whose configuration cannot serve goes with the next."""
        labels = {_identity(self.servers[label]): label for label in self.whole}
        steps, changed = list[Step](), list[str]()
        before_j = all_j = self.whole[self.now].estimate.run.energy_j
        for change, spec in path:
            changed.append(change)
            try:
                label = labels[_identity(open_server(spec, self.pool.asked.table))]
            except (UsageError, KeyError):
                continue
            energy_j = self.whole[label].estimate.run.energy_j
            share = (before_j - energy_j) / all_j
            steps.append(Step(change=", ".join(changed), label=label, energy_j=energy_j, share=share))
            before_j, changed = energy_j, []
        return steps

    def _shortest(self, steps: Sequence[Step]) -> list[Step]:
        """The first steps, if what follows them saves nothing to speak of and they keep the limits."""
        worth_j = WORTH_TYPING * self.whole[self.now].estimate.run.energy_j
        for k, step in enumerate(steps, 1):
            if step.energy_j - steps[-1].energy_j < worth_j and not self._breaks(self.whole[step.label]):
                return [*steps[:k]]
        return [*steps]


def _identity(server: OpenServer) -> tuple[Any, ...]:
    """What makes two servers one: all that they run with."""
    spec, setup = server.spec, loaded_setup(server.setup)
    return setup, spec.gpu, tuple(server.config.options().items()), spec.replicas, spec.router
