"""The ideal of the work that an estimate prices: the same lengths, bin by bin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from infergy.estimates.ideal import Ideal, flops_ideal, roofline_ideal
from infergy.energy.options import AT_CORNERS, PAPER, ROOFLINE
from infergy.energy.price import mean_lengths
from infergy.energy.values import Values
from infergy.errors import UsageError
from infergy.hardware import get_gpu, get_model
from infergy.workload.bins import Bin, BinCount, Histogram

NO_REQUEST = "no request lies in a bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValue:
    """An ideal, or the reason why there is none."""

    ideal: Ideal | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """How ideals are computed for one model on one GPU.

    Attributes:
        kind: ``dense``, ``paper`` or ``roofline``.
        method: The estimate's: under ``mean`` and ``physics`` the ideal too is of each bin's mean lengths.
        values: Where ``roofline`` takes its batch sizes from: the largest of these, bin by bin.
    """

    kind: str
    method: str
    model: str
    gpu: str
    values: Sequence[Values]

    def of(self, histogram: Histogram) -> ReferenceValue:
        """The ideal of all requests in bins.

        Raises:
            UsageError: The GPU has no figure of this kind, such as a headline beside its dense peak.
        """
        if not histogram.counts:
            return ReferenceValue(ideal=None, reason=NO_REQUEST)
        try:
            shape, gpu = get_model(self.model), get_gpu(self.gpu)
        except UsageError as error:
            return ReferenceValue(ideal=None, reason=f"no ideal: {error}")
        work = histogram if self.method in AT_CORNERS else at_mean_lengths(histogram)
        if self.kind == ROOFLINE:
            found = roofline_ideal(work, shape, gpu, self._batch_of)
        else:
            found = flops_ideal(work, shape, gpu, headline=self.kind == PAPER)
        lengths = "upper corners" if self.method in AT_CORNERS else "mean lengths"
        return ReferenceValue(ideal=replace(found, basis=f"{found.basis}, at the {lengths} of the bins"))

    def _batch_of(self, corner: Bin) -> int:
        """The largest batch of any engine; 1 where none has a value."""
        values = [one.at(corner.input_tokens, corner.output_tokens) for one in self.values]
        return max((value.batch for value in values if value is not None), default=1)


def at_mean_lengths(histogram: Histogram) -> Histogram:
    """The histogram with each bin's corner moved to the mean lengths of its requests."""
    return replace(histogram, counts=tuple(_moved(count) for count in histogram.counts))


def _moved(count: BinCount) -> BinCount:
    input_tokens, output_tokens = (max(1, round(tokens)) for tokens in mean_lengths(count))
    moved = replace(count.bin, input_tokens=input_tokens, output_tokens=output_tokens)
    return replace(count, bin=moved)
