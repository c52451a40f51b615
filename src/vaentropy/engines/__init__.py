"""Engines: where tasks that need nothing of each other are done."""

from vaentropy.engines.engine import Call, Done, Engine, Here, Lost
from vaentropy.engines.processes import Processes
from vaentropy.engines.ray import Ray

__all__ = ["Call", "Done", "Engine", "Here", "Lost", "Processes", "Ray"]
