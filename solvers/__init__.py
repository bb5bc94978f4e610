"""Level-set numerics on bare arrays: redistancing, evolution, refinement, uncertainty."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evolution import advect, stable_time_step
    from .redistancing import extend, redistance
    from .refine import refine_array
    from .viscous import viscous_distance

_HOME = {
    "advect": "evolution",
    "extend": "redistancing",
    "redistance": "redistancing",
    "refine_array": "refine",
    "stable_time_step": "evolution",
    "viscous_distance": "viscous",
}

__all__ = [
    "advect",
    "extend",
    "redistance",
    "refine_array",
    "stable_time_step",
    "viscous_distance",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
