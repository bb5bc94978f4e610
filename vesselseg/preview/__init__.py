"""One picture of a prior: slices, projection, surface, convergence."""

from .page import preview

__all__ = ["preview"]
