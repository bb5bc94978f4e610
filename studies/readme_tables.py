"""Copy result tables into README and docs: ``python studies/readme_tables.py``.

Between ``<!-- table:NAME -->`` and ``<!-- end -->`` goes ``studies/results/NAME.json``: its key
``table``, a list of rows with equal keys, which become the header. Numbers keep three digits.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vesselseg.io.atomic import write_bytes

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "studies" / "results"
MARKED = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Render rows as a Markdown table, numbers to the right."""
    names = list(rows[0])
    numeric = [any(isinstance(row[name], int | float) for row in rows) for name in names]
    lines = [names, ["---:" if right else "---" for right in numeric]]
    lines += [[cell(row[name]) for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cell(value: Any) -> str:
    """Render one value."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def filled(text: str) -> str:
    """Return the text with every marked table made anew; one without a result stays."""

    def replace(match: re.Match[str]) -> str:
        file = RESULTS / f"{match[2]}.json"
        if not file.is_file():
            return match[0]
        return match[1] + markdown(json.loads(file.read_text())["table"]) + match[3]

    return MARKED.sub(replace, text)


if __name__ == "__main__":
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text()
        if filled(text) != text:
            write_bytes(page, filled(text).encode())
