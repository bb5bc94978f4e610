"""The demonstration: the whole path on the bundled scan and on an exact phantom."""

from .example import run_demo

__all__ = ["run_demo"]
