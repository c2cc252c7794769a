"""What inference runs on: GPUs by their datasheets, models by their shapes. Standard library only."""

from infergy.hardware.forecast import Forecast, forecast
from infergy.hardware.gpus import (
    SIMULATED_PREFIX,
    Gpu,
    Link,
    catalogue_name,
    find_gpu_by_driver_name,
    get_gpu,
    gpu_names,
)
from infergy.hardware.memory import BatchLimit, largest_batch
from infergy.hardware.models import canonical_name, get_model, model_config, model_names
from infergy.hardware.shape import DTYPE_BYTES, AttentionShape, ExpertShape, LatentAttention, ModelShape

__all__ = [
    "DTYPE_BYTES",
    "SIMULATED_PREFIX",
    "AttentionShape",
    "BatchLimit",
    "ExpertShape",
    "Forecast",
    "Gpu",
    "LatentAttention",
    "Link",
    "ModelShape",
    "canonical_name",
    "catalogue_name",
    "find_gpu_by_driver_name",
    "forecast",
    "get_gpu",
    "get_model",
    "gpu_names",
    "largest_batch",
    "model_config",
    "model_names",
]
