"""The names and defaults of what an estimate can be asked for; light, since the command line's help needs them."""

from __future__ import annotations

CEILING = "ceiling"
MEAN = "mean"
TABLE = "table"
PHYSICS = "physics"
METHODS = (CEILING, MEAN, TABLE, PHYSICS)
AT_CORNERS = (CEILING, TABLE)
"""These price each request at the upper corner of its bin, the others at the mean lengths of the bin."""

DATASHEET = "datasheet"
"""Not from measured cells at all: `infergy.energy.datasheet`."""

FRACTIONAL = "fractional"
WHOLE = "whole"
RARE_RULES = (FRACTIONAL, WHOLE)

DENSE = "dense"
PAPER = "paper"
ROOFLINE = "roofline"
IDEALS = (DENSE, PAPER, ROOFLINE)
"""What an estimate may stand beside: `flops_ideal` at the dense peak, at the vendor's headline, or `roofline_ideal`."""

BASELINE = "transformers"
"""The unoptimised engine of arXiv 2504.17674: PyTorch, not compiled."""

DEFAULT_MODEL = "llama-3.1-8b"
DEFAULT_GPU = "h200"

MAX_BATCH_S = 20.0
"""Seconds that a batch may take to count: beyond, batches grow cheaper still, but nobody waits for the answers."""

MAX_SEQUENCES = 256
"""Requests served at once, at most, where nothing measured tells: vLLM's `max_num_seqs` on GPUs of less than 70 GiB."""
