"""Small studies for the tests."""

from pathlib import Path

STAGES = Path(__file__).parent / "stages.py"


def stage(name):
    """Name a function of ``stages.py``."""
    return f"{STAGES}:{name}"


def of(name, draws=3, **more):
    """Make a study of a function on a phantom that it need not render."""
    cases = {"phantoms": ["circle"], "draws": draws, **more.pop("cases", {})}
    return {"stage": stage(name), "cases": cases, **more}


def toml(tree, head=""):
    """Render a tree of settings."""
    import json

    lines, tables = [], []
    for key, value in tree.items():
        name = json.dumps(key) if "." in key else key
        if isinstance(value, dict):
            tables.append(f"[{head}{name}]\n" + toml(value, f"{head}{name}."))
        else:
            lines.append(f"{name} = {json.dumps(value)}\n")
    return "".join(lines + tables)
