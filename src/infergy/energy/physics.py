"""Joules and seconds of a forward pass on any GPU of the catalogue, by what it must move and compute.

    linear    = roofline of  (weights × widths + experts × grouping × imbalance) / (ηw × bandwidth)
                and          (FLOPs of matrices, rows in vain too) / (ηc × peak)
    attention = roofline of  cache / (ηkv × bandwidth)  and  FLOPs of attention / (ηa × peak)
    t         = (linear + attention) / GPUs + layers × launch + GPUs' exchanges + sequences × host + step
    E         = base × TDP × GPUs × t + e_byte × bytes + e_FLOP × FLOPs

Two rooflines with a smooth corner, (memory⁴ + compute⁴)^¼, one after the other, since a layer's matrices and its
attention are; launches and the host beside them, and joules that are those of time, of bytes and of FLOPs.
Where E / t passes the power limit, time is stretched, and the base power of the stretch is paid: that is what
throttling does. An engine without CUDA graphs launches kernels while the GPU still works on earlier ones: there t is
the smooth maximum of the GPU's time and the host's, not their sum (`Physics.runs_ahead`). Each constant has a prior, a
spread and a source (`CONSTANTS`); `Physics` holds values for them, of the datasheet alone or fitted
(`infergy.score.fit`, `infergy.energy.posterior`), for all GPUs and by how much single GPUs differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infergy.energy.demand import Demand
from infergy.hardware.gpus import Gpu

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

KERNELS = "power and time of H200 and B200 kernels in AIConfigurator's tables (vLLM 0.22; Apache-2.0)"
LAUNCH = "10 to 14 launches a layer at some 3 us each inside a CUDA graph"
TILES = "half of the 16 to 128 rows of a tile of vLLM's grouped products"
CHUNKS = "VLLM_MOE_DP_CHUNK_SIZE: what a GPU exchanges is filled up to 256 tokens; as many rows an expert is our guess"
OURS = "our own estimate, nowhere published: the spread says how little it is trusted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One constant of the model.

    Attributes:
        name: What it is called in files.
        value: The prior's median.
        spread: Standard deviation of the prior's logarithm.
        differs: Standard deviation of the logarithm of a GPU's own factor on it; 0 if all GPUs share it.
        meaning: What it is, with its unit.
        source: Where the prior is from.
    """

    name: str
    value: float
    spread: float
    meaning: str
    source: str
    differs: float = 0.0


def _constant(
    name: str, value: float, spread: float, meaning: str, source: str = OURS, differs: float = 0.0
) -> Constant:
    return Constant(name=name, value=value, spread=spread, meaning=meaning, source=source, differs=differs)


CONSTANTS: tuple[Constant, ...] = (
    _constant("weight_efficiency", 0.8, 0.1, "share of the bandwidth at which weights are read", KERNELS, 0.15),
    _constant("cache_efficiency", 0.75, 0.3, "share of the bandwidth at which the KV cache is read", KERNELS, 0.2),
    _constant("compute_efficiency", 0.65, 0.25, "share of the dense peak that matrix products reach", KERNELS, 0.15),
    _constant("attention_efficiency", 0.4, 0.4, "share of bfloat16's dense peak that attention reaches"),
    _constant("layer_s", 40e-6, 0.4, "s a layer beside bytes and FLOPs, with CUDA graphs", LAUNCH, 0.25),
    _constant(
        "expert_layer_s", 60e-6, 0.6, "s more for a layer with experts: routing, sorting, grouped products", OURS, 0.25
    ),
    _constant("state_layer_s", 130e-6, 0.6, "s more for a layer with a Mamba-2 state"),
    _constant(
        "reduce_s", 10e-6, 0.5, "s of an exchange among two GPUs", "one-shot all-reduce over NVLink: 8 to 12 us", 0.25
    ),
    _constant("reduce_growth", 0.5, 0.5, "by which power of GPUs / 2 that grows"),
    _constant("sequence_s", 20e-6, 0.6, "s of host and sampling a sequence and step", OURS, 0.25),
    _constant("step_s", 0.8e-3, 0.6, "s of host a step", "schedulers of vLLM: 0.2 to 1 ms", 0.25),
    _constant("expert_bytes", 1.5, 0.4, "by how much reading experts of 30 MB is slower than dense matrices"),
    _constant("expert_size", 0.25, 0.7, "by which power of 30 MB / size smaller experts are read slower"),
    _constant("imbalance", 0.5, 0.5, "of the spread of visited experts over GPUs, what the fullest GPU adds"),
    _constant("expert_rows", 32.0, 0.7, "rows that a visited expert computes in vain: tiles are filled up", TILES),
    _constant("replica_rows", 256.0, 1.0, "more of them where each GPU has requests of its own", CHUNKS),
    _constant("fp8_bytes", 1.2, 0.3, "by how much reading fp8 is slower than its bytes say", OURS, 0.25),
    _constant("fp8_flops", 1.2, 0.3, "by how much fp8 computes more: activations are quantised"),
    _constant("fp8_layer_s", 20e-6, 0.7, "s more for a layer in fp8: activations are quantised"),
    _constant("block_bytes", 1.5, 0.5, "by how much experts scaled in blocks are read slower than their bytes say"),
    _constant("block_flops", 1.3, 0.4, "by how much fp8 scaled in blocks computes more than other fp8"),
    _constant("block_byte_energy", 1.3, 0.3, "joules of a byte scaled in blocks over other fp8"),
    _constant("mxfp4_bytes", 1.2, 0.3, "by how much reading mxfp4 is slower than its bytes say", OURS, 0.3),
    _constant("mxfp4_flops", 1.2, 0.4, "by how much mxfp4 computes more: weights are widened", OURS, 0.3),
    _constant("mxfp4_layer_s", 20e-6, 0.7, "s more for a layer in mxfp4", OURS, 0.3),
    _constant("dispatch_s", 15e-6, 0.7, "s of sending tokens to their experts' GPU, a layer and two GPUs"),
    _constant("base_share", 0.28, 0.25, "power of a busy GPU beside bytes and FLOPs, over its TDP", KERNELS, 0.25),
    _constant("byte_share", 0.45, 0.25, "power of reading at 0.8 of the bandwidth, over TDP", KERNELS, 0.25),
    _constant("flop_share", 0.7, 0.25, "power of bfloat16 products at 0.6 of the peak, over TDP", KERNELS, 0.25),
    _constant("fp8_byte_energy", 1.1, 0.25, "joules of a byte in fp8 over one in bfloat16"),
    _constant("fp8_flop_energy", 0.7, 0.25, "joules of a FLOP in fp8 over one in bfloat16", KERNELS),
)
BY_NAME: Mapping[str, Constant] = {one.name: one for one in CONSTANTS}

REFERENCE_EXPERT_BYTES = 30e6
LINK_BYTES_PER_S = 450e9
"""One direction of NVLink 4, where the catalogue knows no link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chips:
    """What the datasheets of the GPUs say, a column each of the passes' length (or of length 1 for all of them).

    Attributes:
        bandwidth: Bytes/s of one GPU.
        peak: Dense FLOP/s of one GPU at the width at which it computes; `base_peak` at bfloat16.
        tdp_w: Watts of one GPU.
        link: Bytes/s, one direction, to the others.
        names: Names in the catalogue.
    """

    bandwidth: Column
    peak: Column
    base_peak: Column
    tdp_w: Column
    link: Column
    names: tuple[str, ...]

    @classmethod
    def of(cls, gpus: Sequence[Gpu], dtypes: Sequence[str]) -> Chips:
        """The chips of each pass, and the format of its weights."""
        import numpy as np

        def column(values: Sequence[float]) -> Column:
            return np.array(values, dtype=float)

        return cls(
            bandwidth=column([gpu.memory_bandwidth for gpu in gpus]),
            peak=column([_peak(gpu, dtype) for gpu, dtype in zip(gpus, dtypes, strict=True)]),
            base_peak=column([gpu.dense_flops("bfloat16") for gpu in gpus]),
            tdp_w=column([gpu.tdp_w for gpu in gpus]),
            link=column([gpu.link.bandwidth if gpu.link is not None else LINK_BYTES_PER_S for gpu in gpus]),
            names=tuple(gpu.name for gpu in gpus),
        )

    def take(self, rows: Any) -> Chips:
        """Those at these places, or where a mask says so."""
        import numpy as np

        places = np.arange(len(self.names))[rows]
        return Chips(
            bandwidth=self.bandwidth[places],
            peak=self.peak[places],
            base_peak=self.base_peak[places],
            tdp_w=self.tdp_w[places],
            link=self.link[places],
            names=tuple(self.names[place] for place in places),
        )


def _peak(gpu: Gpu, dtype: str) -> float:
    """Narrow weights are computed with at their own width only where the GPU can, and mxfp4's never are."""
    return gpu.peak_flops.get("fp8", gpu.dense_flops("bfloat16")) if dtype == "fp8" else gpu.dense_flops("bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Attributes: `seconds` of each pass, `energy_j` of all its GPUs."""

    seconds: Column
    energy_j: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Physics:
    """Values for the constants.

    Attributes:
        values: By name; what is missing has its prior. Columns of shape (k, 1) tell k variants of all passes at once.
        factors: Of single GPUs, by the catalogue's name, then by constant; what is missing is 1.
        runs_ahead: Whether the host launches kernels while the GPU works on earlier ones, as without CUDA graphs.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    runs_ahead: bool = False

    def of(self, name: str, chips: Chips) -> Any:
        """A constant for each pass: one number, or a column where GPUs differ."""
        import numpy as np

        value = self.values.get(name, BY_NAME[name].value)
        own = {gpu: factors[name] for gpu, factors in self.factors.items() if name in factors}
        if not own:
            return value
        kinds = {gpu: own.get(gpu, 1.0) for gpu in dict.fromkeys(chips.names)}
        if len(kinds) == 1:
            return value * next(iter(kinds.values()))
        return value * np.array([kinds[gpu] for gpu in chips.names])

    def passes(self, demand: Demand, chips: Chips, *, extra_s: Any = 0.0) -> Passes:
        """Seconds and joules of each pass, of shape (n,), or (k, n) where constants have k values.

        Args:
            demand: n passes.
            chips: Of each pass, or of all of them.
            extra_s: Seconds that the host takes beside what the constants tell.
        """
        import numpy as np

        work = self._work(demand, chips)
        launch_s, exchange_s, host_s = self._waits(demand, chips)
        host_s = launch_s + host_s + extra_s
        gpu_s = work.seconds / demand.gpus + np.where(demand.gpus > 1, exchange_s, 0.0)
        seconds = _roofline(gpu_s, host_s) if self.runs_ahead else gpu_s + host_s
        base_w = self.of("base_share", chips) * chips.tdp_w * demand.gpus
        # What work adds to base power must fit under the limit: then E / t is at most TDP.
        added = work.energy_j / ((chips.tdp_w * demand.gpus - base_w) * seconds)
        seconds = seconds * _stretch(added)
        return Passes(seconds=seconds, energy_j=work.energy_j + base_w * seconds)

    def _work(self, d: Demand, chips: Chips) -> Passes:
        """Seconds of one GPU, were it to do all of it, and joules beyond base power."""
        import numpy as np

        def of(name: str) -> Any:
            return self.of(name, chips)

        has_experts = d.expert_layers > 0
        is_fp8, is_block, is_mxfp4 = d.is_fp8 > 0, d.is_block_scaled > 0, d.is_mxfp4 > 0
        narrow = np.where(is_fp8, of("fp8_bytes"), 1.0) * np.where(is_mxfp4, of("mxfp4_bytes"), 1.0)
        grouping = of("expert_bytes") * (d.expert_size_bytes / REFERENCE_EXPERT_BYTES) ** -of("expert_size")
        grouping = np.maximum(1.0, grouping)
        grouping = np.where(has_experts, grouping, 1.0) * np.where(is_block, of("block_bytes"), 1.0)
        # Of n experts dropped on G GPUs the fullest has n / G + √(2 n ln G / G), as n is large (Raab and Steger 1998).
        fullest = np.sqrt(2 * np.log(np.maximum(d.gpus, 1.0)) * d.gpus / d.experts_visited)
        waiting = np.where(d.is_dispatched > 0, 1 + of("imbalance") * fullest, 1.0)
        weights = d.weight_bytes * narrow + d.expert_bytes * grouping * waiting * np.where(is_block, 1.0, narrow)
        rows = of("expert_rows") + np.where(d.is_replicated > 0, of("replica_rows"), 0.0)
        widened = np.where(is_fp8, of("fp8_flops"), 1.0) * np.where(is_block, of("block_flops"), 1.0)
        flops = (d.linear_flops + d.expert_row_flops * rows) * widened * np.where(is_mxfp4, of("mxfp4_flops"), 1.0)
        linear_s = _roofline(
            weights / (of("weight_efficiency") * chips.bandwidth), flops / (of("compute_efficiency") * chips.peak)
        )
        attention_s = _roofline(
            d.cache_bytes / (of("cache_efficiency") * chips.bandwidth),
            d.attention_flops / (of("attention_efficiency") * chips.base_peak),
        )
        byte_j = of("byte_share") * chips.tdp_w / (0.8 * chips.bandwidth)
        flop_j = of("flop_share") * chips.tdp_w / (0.6 * chips.base_peak)
        moved = d.weight_bytes + d.expert_bytes * np.sqrt(grouping)
        moved = moved * np.where(is_fp8, of("fp8_byte_energy"), 1.0) * np.where(is_block, of("block_byte_energy"), 1.0)
        computed = flops * np.where(is_fp8, of("fp8_flop_energy"), 1.0) + d.attention_flops
        return Passes(seconds=linear_s + attention_s, energy_j=byte_j * (moved + d.cache_bytes) + flop_j * computed)

    def _waits(self, d: Demand, chips: Chips) -> tuple[Any, Any, Any]:
        """Seconds of launches, of GPUs' exchanges if there are several, and of the host."""

        def of(name: str) -> Any:
            return self.of(name, chips)

        launch_s = (
            d.layers * of("layer_s") + d.expert_layers * of("expert_layer_s") + d.state_layers * of("state_layer_s")
        )
        launch_s = launch_s + d.layers * (d.is_fp8 * of("fp8_layer_s") + d.is_mxfp4 * of("mxfp4_layer_s"))
        exchange_s = 2 * d.layers * of("reduce_s") * (d.gpus / 2) ** of("reduce_growth") + d.reduced_bytes / chips.link
        exchange_s = exchange_s + d.is_dispatched * d.expert_layers * of("dispatch_s") * d.gpus / 2
        return launch_s, exchange_s, d.sequences * of("sequence_s") + of("step_s")


def _roofline(memory_s: Any, compute_s: Any) -> Any:
    """The smooth maximum of both, (memory⁴ + compute⁴)^¼: where both take as long, 2^¼ of either."""
    import numpy as np

    # Products and roots: powers take numpy ten times as long.
    return np.sqrt(np.hypot(memory_s * memory_s, compute_s * compute_s))


def _stretch(added: Any) -> Any:
    """(1 + added⁸)^⅛: how much longer work takes whose power is so many times what the limit leaves for it."""
    import numpy as np

    fourth = (added * added) ** 2
    return np.sqrt(np.sqrt(np.hypot(1.0, fourth)))
