"""Settings: frozen pydantic models, read from TOML, changed by ``--set a.b=c``."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigError

MAX_CONFIG_BYTES = 1_000_000


class Settings(BaseModel):
    """Base of every settings model: frozen, strict, no unknown key, no inf or nan."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


Model = TypeVar("Model", bound=Settings)


def load_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file of at most 1 MB; a BOM and CRLF line ends are accepted."""
    file = Path(path)
    if "\0" in os.fspath(path):
        raise ConfigError("bad name of a config", path=path, need="a name without NUL characters")
    if file.suffix.lower() in {".yaml", ".yml"}:
        raise ConfigError("YAML is not accepted", path=path, remedy="write TOML")
    try:
        data = file.read_bytes()[: MAX_CONFIG_BYTES + 1]
    except OSError as error:
        raise ConfigError(f"cannot read config: {error.strerror}", path=path) from None
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError("config larger than 1 MB", path=path)
    if not data.strip():
        raise ConfigError("empty config", path=path, need="TOML")
    try:
        return tomllib.loads(data.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"not UTF-8 at line {line}", path=path) from None
    except RecursionError:
        raise ConfigError("nested too deeply", path=path) from None
    except ValueError as error:  # TOMLDecodeError and integers of thousands of digits
        raise ConfigError(f"not valid TOML: {error}", path=path) from None


def parse_assignment(text: str) -> tuple[tuple[str, ...], Any]:
    """Split ``a.b=value``; the value is TOML, a bare word stands for itself."""
    key, found, value = text.partition("=")
    parts = tuple(p.strip() for p in key.split("."))
    if not found or not all(parts):
        raise ConfigError("bad --set", found=text, need="key.sub=value")
    try:
        return parts, tomllib.loads(f"v = {value.strip()}")["v"]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return parts, value.strip()


def override(tree: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return a copy of the tree with every ``a.b=value`` applied."""
    result = _copy(tree)
    seen: dict[tuple[str, ...], Any] = {}
    for text in assignments:
        parts, value = parse_assignment(text)
        if parts in seen and seen[parts] != value:
            key = ".".join(parts)
            raise ConfigError(f"--set {key} given twice", found=f"{seen[parts]!r} and {value!r}")
        seen[parts] = value
        node = result
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {'.'.join(parts)}: '{part}' is not a table")
        node[parts[-1]] = value
    return result


def build(model: type[Model], tree: Mapping[str, Any], path: Any = None) -> Model:
    """Validate a tree of settings; the first fault becomes a ConfigError with a remedy."""
    try:
        return model.model_validate(dict(tree))
    except ValidationError as error:
        faults = error.errors()
    first = faults[0]
    location = _inside(tree, first["loc"])
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        raise ConfigError(f"unknown key '{key}'", path=path, remedy=_hint(model, location))
    # A value that may be of several kinds has a fault for each of them.
    same = [fault for fault in faults if _inside(tree, fault["loc"]) == location]
    message = " or ".join(dict.fromkeys(f["msg"].removeprefix("Value error, ") for f in same))
    raise ConfigError(f"{key}: {message}" if key else message, path=path, found=first.get("input"))


def _inside(tree: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Return the part of a fault's location that names a key; the rest names a kind of value."""
    names: list[str] = []
    for part in loc:
        if not isinstance(tree, Mapping) and names:
            break
        names.append(str(part))
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return names


def resolve(
    model: type[Model], path: str | os.PathLike[str] | None, assignments: Iterable[str] = ()
) -> Model:
    """Build settings with the precedence defaults < file < ``--set``."""
    return build(model, override(load_toml(path) if path else {}, assignments), path)


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _hint(model: type[BaseModel], location: list[str]) -> str:
    for part in location[:-1]:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    names = list(model.model_fields)
    near = difflib.get_close_matches(location[-1], names, 1, 0.5)
    return f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(names)
