"""Print the lengths of our functions and files, beside those of well-made projects.

A mirror, no gate. Needs the standard library alone: ``python studies/style.py``.
"""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("vesselseg", "solvers", "cuda_kernels", "studies")
ANCHORS = (
    ("hj_reachability", 578, 4, 16, 29, 0.24),
    ("exponax", 6527, 14, 41, 94, 1.12),
    ("jax-cfd base", 2591, 7, 33, 150, 0.58),
    ("diffrax", 10521, 7, 36, 758, 0.27),
    ("mrpro", 11825, 5, 29, 219, 0.83),
)
HEADER = ("", "code lines", "median", "p90", "max", "docstrings / code", "longest file")


def modules(folder: Path) -> list[Path]:
    """Return the modules of a folder; links to other folders are left out."""
    links = [path for path in folder.iterdir() if path.is_symlink()]
    found = sorted(folder.rglob("*.py"))
    return [file for file in found if not any(link in file.parents for link in links)]


def docstrings(tree: ast.Module) -> set[int]:
    """Return the line numbers that docstrings take."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, owners) and ast.get_docstring(node) is not None:
            text = node.body[0]
            lines.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return lines


def measure(folder: Path) -> tuple[object, ...]:
    """Return the row of a folder; function lengths are code lines without docstrings."""
    lengths: list[int] = []
    code = text = longest = 0
    for file in modules(folder):
        source = file.read_text()
        tree = ast.parse(source)
        prose = docstrings(tree)
        rows = enumerate(source.splitlines(), 1)
        own = {n for n, row in rows if row.strip() and not row.strip().startswith("#")} - prose
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, functions):
                lengths.append(len(own & set(range(node.lineno, (node.end_lineno or 0) + 1))))
        code, text = code + len(own), text + len(prose)
        longest = max(longest, source.count("\n"))
    if not lengths:
        return (folder.name, code, "", "", "", "", longest)
    p90 = statistics.quantiles(lengths, n=10)[-1] if len(lengths) > 1 else lengths[0]
    middle = round(statistics.median(lengths))
    ratio = f"{text / code:.2f}"
    return (folder.name, code, middle, round(p90), max(lengths), ratio, longest)


if __name__ == "__main__":
    ours = [measure(ROOT / name) for name in FOLDERS]
    theirs = [(*anchor, "") for anchor in ANCHORS]
    for row in (HEADER, *ours, (), *theirs):
        print("".join(f"{cell!s:<18}" for cell in row))
