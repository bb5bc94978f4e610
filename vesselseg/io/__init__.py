"""Guarded readers and the atomic writer.

``read_volume`` and ``read_start`` check what a file claims before a library sees it;
``write_image`` and everything else that leaves a file goes through ``atomic.write_bytes``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .guard import Limits
    from .nifti import write_image
    from .start import read_start
    from .velocity import read_flow
    from .volume import read_volume

_HOME = {"Limits": "guard", "read_flow": "velocity", "read_start": "start"}
_HOME |= {"read_volume": "volume", "write_image": "nifti"}

__all__ = ["Limits", "read_flow", "read_start", "read_volume", "write_image"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'vesselseg.io' has no attribute {name!r}")
