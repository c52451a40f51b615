"""Engines: where tasks that need nothing of each other are done."""

from vaentropy.engines.engine import Call, Done, Engine, GpuFailed, Here, Lost, engine_or_here, require_engine
from vaentropy.engines.processes import Processes, available_cores
from vaentropy.engines.ray import Ray

__all__ = [
    "Call",
    "Done",
    "Engine",
    "GpuFailed",
    "Here",
    "Lost",
    "Processes",
    "Ray",
    "available_cores",
    "engine_or_here",
    "require_engine",
]
