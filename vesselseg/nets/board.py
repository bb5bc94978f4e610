"""TensorBoard: the rows of a run as event files."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import EnvironmentFault

Note = Callable[[Mapping[str, float]], None]


def require() -> None:
    """Raise EnvironmentFault where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        remedy = "pip install 'vesselseg[tensorboard]'"
        raise EnvironmentFault("tensorboard is not installed", remedy=remedy)


@contextmanager
def board(folder: Path, step: int, *, wanted: bool) -> Iterator[Note]:
    """Yield a function that notes a row; what an interrupted run noted after ``step`` is hidden."""
    if not wanted:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=step + 1)

    def note(row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, int(row["step"]))

    try:
        yield note
    finally:
        writer.close()
