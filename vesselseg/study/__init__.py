"""Studies: many cases, many settings, one table; resumable, on one machine or a cluster.

``run`` a ``Study``, then ``table`` its results, ``plot`` and ``report`` them; ``tune`` picks
settings on one family of cases and reports on another.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engines import Engine, choose
    from .page import report
    from .perform import CaseInput
    from .plan import Study, read_study
    from .plots import plot
    from .results import status, table, write_table
    from .runner import Summary, resume, run
    from .sources import Cases
    from .space import Interval, Search
    from .tuning import tune

_HOME = {
    "CaseInput": "perform",
    "Cases": "sources",
    "Engine": "engines",
    "Interval": "space",
    "Search": "space",
    "Study": "plan",
    "Summary": "runner",
    "choose": "engines",
    "plot": "plots",
    "read_study": "plan",
    "report": "page",
    "resume": "runner",
    "run": "runner",
    "status": "results",
    "table": "results",
    "tune": "tuning",
    "write_table": "results",
}

__all__ = [
    "CaseInput",
    "Cases",
    "Engine",
    "Interval",
    "Search",
    "Study",
    "Summary",
    "choose",
    "plot",
    "read_study",
    "report",
    "resume",
    "run",
    "status",
    "table",
    "tune",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'vesselseg.study' has no attribute {name!r}")
