"""A user's folder of scans and masks as training cases: pairs, split, augmentation, patches."""

from .augment import AugmentSettings
from .folder import Pair, pairs
from .source import DataSettings, FolderCases, notes, sources
from .split import split

__all__ = [
    "AugmentSettings", "DataSettings", "FolderCases", "Pair", "notes", "pairs", "sources", "split",
]  # fmt: skip
