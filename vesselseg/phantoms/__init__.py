"""Exact problems: vessel-like shapes whose signed distance to the wall is known."""

from .problems import Phantom, custom, make, names

__all__ = ["Phantom", "custom", "make", "names"]
