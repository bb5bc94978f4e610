"""The boundary prior: its content, its HDF5 + VTKHDF file, its invariants."""

from .boundary import BoundaryPrior, PriorSettings

__all__ = ["BoundaryPrior", "PriorSettings"]
