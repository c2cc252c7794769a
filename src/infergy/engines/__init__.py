"""Who makes tokens: an engine turns requests into counted output tokens and knows nothing of energy."""

from infergy.engines.engine import Completion, Engine, EngineOutOfMemoryError, Session, Work
from infergy.errors import UsageError
from infergy.records import ENGINES

__all__ = ["Completion", "Engine", "EngineOutOfMemoryError", "Session", "Work", "find_engine"]


def find_engine(name: str) -> Engine:
    """The engine called `name`; nothing heavy is imported.

    Raises:
        UsageError: There is none.
    """
    if name == "transformers":
        from infergy.engines.transformers import TransformersEngine

        return TransformersEngine()
    if name == "vllm":
        from infergy.engines.vllm import VllmEngine

        return VllmEngine()
    raise UsageError.unknown("engine", name, ENGINES, code="unknown-engine")
