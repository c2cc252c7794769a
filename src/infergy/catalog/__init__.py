"""What inference runs on: GPUs by their datasheets, models by their shapes. Standard library only."""

from infergy.catalog.configs import BY_HAND, read_shape
from infergy.catalog.gpus import (
    SIMULATED_PREFIX,
    Gpu,
    Link,
    catalog_name,
    find_gpu_by_driver_name,
    get_gpu,
    gpu_names,
)
from infergy.catalog.layers import AttentionShape, ExpertShape, LatentAttention, MambaShape, MlpShape
from infergy.catalog.models import canonical_name, get_model, model_config, model_names, shape_of_id
from infergy.catalog.shape import DTYPE_BYTES, Checkpoint, ModelShape

__all__ = [
    "BY_HAND",
    "DTYPE_BYTES",
    "SIMULATED_PREFIX",
    "AttentionShape",
    "Checkpoint",
    "ExpertShape",
    "Gpu",
    "LatentAttention",
    "Link",
    "MambaShape",
    "MlpShape",
    "ModelShape",
    "canonical_name",
    "catalog_name",
    "find_gpu_by_driver_name",
    "get_gpu",
    "get_model",
    "gpu_names",
    "model_config",
    "model_names",
    "read_shape",
    "shape_of_id",
]
