"""Synthetic scans: geometry, forward model, appearance, data sets."""

from .cases import Shape, SynthSettings, case, perturbed
from .folder import write_dataset

__all__ = ["Shape", "SynthSettings", "case", "perturbed", "write_dataset"]
