"""Predictions against truth: one image, or a list of them with its table and pictures."""

from .cases import Scores, evaluate_cases, evaluate_folder, folder_cases, synthetic_cases
from .compare import evaluate

__all__ = [
    "Scores", "evaluate", "evaluate_cases", "evaluate_folder", "folder_cases", "synthetic_cases",
]  # fmt: skip
