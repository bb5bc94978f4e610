"""Synthetic scans: geometry, forward model, appearance, data sets."""

from .cases import SynthSettings, case, perturbed, write_dataset

__all__ = ["SynthSettings", "case", "perturbed", "write_dataset"]
