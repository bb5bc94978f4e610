"""A prior in the formats of flow solvers, meshers and viewers."""

from .table import TARGETS, export

__all__ = ["TARGETS", "export"]
