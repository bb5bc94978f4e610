"""From an MR scan of blood vessels to a boundary prior for inverse Navier-Stokes solvers.

Importing this package is cheap: every public name is loaded on first use (PEP 562), and none of
torch, cupy or numba before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fields import Case, LevelSet, Probability, Refinement, Volume
    from .grid import Grid
    from .infer import segment
    from .pipeline import build_prior, train
    from .prior.boundary import BoundaryPrior
    from .solvers.refine import refine
    from .solvers.settings import RefineSettings

__version__ = "0.1.0"

_HOME = {
    "BoundaryPrior": "prior",
    "Case": "fields",
    "Grid": "grid",
    "LevelSet": "fields",
    "Probability": "fields",
    "RefineSettings": "solvers.settings",
    "Refinement": "fields",
    "Volume": "fields",
    "build_prior": "pipeline",
    "refine": "solvers.refine",
    "segment": "infer",
    "train": "pipeline",
}

__all__ = [
    "BoundaryPrior",
    "Case",
    "Grid",
    "LevelSet",
    "Probability",
    "RefineSettings",
    "Refinement",
    "Volume",
    "build_prior",
    "refine",
    "segment",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in {"phantoms", "solvers", "metrics", "synth", "io"}:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'vesselseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "io", "metrics", "phantoms", "solvers", "synth"])
