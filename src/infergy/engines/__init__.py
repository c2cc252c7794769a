"""Who makes tokens: an engine turns requests into counted output tokens and knows nothing of energy."""

from infergy.engines.protocol import Completion, Engine, EngineOutOfMemoryError, Session, Work, find_engine

__all__ = ["Completion", "Engine", "EngineOutOfMemoryError", "Session", "Work", "find_engine"]
