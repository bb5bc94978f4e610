"""Splitting cases into parts: exact, disjoint, by patient, the same for any order of the list."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import ConfigError


def split(
    ids: Sequence[str],
    sizes: Mapping[str, float],
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Divide cases into named parts.

    Parameters
    ----------
    ids : sequence of str
        Names of the cases, all different; their order does not matter.
    sizes : mapping of part to size
        Whole numbers are counts; fractions below one are shares, rounded up one part after the
        other, each of what the parts before it left. -1 is all the rest, for one part.
    groups : mapping of id to group, optional
        Cases of one group (a patient) stay together.
    seed : int

    Returns
    -------
    dict of part to sorted ids
        Disjoint; every part has exactly its size.

    Raises
    ------
    ConfigError
        If the sizes do not add up, or no division of the groups gives them exactly.
    """
    names = sorted(ids)
    if len(set(names)) != len(names) or not names:
        raise ConfigError("bad list of cases", found=f"{len(names)} names", need="different names")
    counts = whole_numbers(sizes, len(names))
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(name if groups is None else groups[name], []).append(name)
    order = np.random.default_rng(seed).permutation(len(members))
    rest = [sorted(members)[n] for n in order]
    parts: dict[str, list[str]] = {}
    for part, count in counts.items():
        taken = exactly(count, [len(members[g]) for g in rest])
        if taken is None:
            need = "sizes that whole groups add up to"
            raise ConfigError(f"no division by groups gives '{part}'", found=count, need=need)
        parts[part] = sorted(n for k in taken for n in members[rest[k]])
        rest = [g for k, g in enumerate(rest) if k not in taken]
    return parts


def whole_numbers(sizes: Mapping[str, float], total: int) -> dict[str, int]:
    """Turn shares and -1 into counts."""
    counts, left, open_part = {}, total, ""
    for part, size in sizes.items():
        if size == -1 and not open_part:
            open_part, counts[part] = part, 0
            continue
        if not 0 <= size < math.inf or (size >= 1 and size != int(size)):
            raise ConfigError(f"bad size of '{part}'", found=size, need="a count or a share < 1")
        # 1e-9: a share of 0.1 of 3930 cases is 393, not 394.
        counts[part] = int(size) if size >= 1 else math.ceil(size * left - 1e-9)
        left -= counts[part]
    if open_part:
        counts[open_part], left = left, min(left, 0)
    if left != 0:
        found = f"{sum(counts.values())} of {total}"
        raise ConfigError("sizes do not add up", found=found, need="all cases, or one size of -1")
    return counts


def exactly(count: int, sizes: Sequence[int]) -> set[int] | None:
    """Return indices, early ones first, whose sizes sum to the count; None if there are none."""
    reached: dict[int, tuple[int, int]] = {
        0: (-1, -1)
    }  # sum -> (index that reached it, sum before)
    for index, size in enumerate(sizes):
        for total in sorted(reached, reverse=True):
            new = total + size
            if new <= count and new not in reached:
                reached[new] = (index, total)
        if count in reached:
            break
    if count not in reached:
        return None
    taken: set[int] = set()
    while count:
        index, count = reached[count]
        taken.add(index)
    return taken


def groups_by(pattern: str, ids: Sequence[str]) -> dict[str, str]:
    """Return the group of each id: what the pattern's first parentheses, or all of it, match."""
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"bad pattern of groups: {error}", found=pattern) from None
    found = {name: rule.search(name) for name in ids}
    lost = [name for name, match in found.items() if match is None]
    if lost:
        raise ConfigError("no group in a name", found=lost[0], need=f"names like {pattern}")
    return {name: m[1] if rule.groups else m[0] for name, m in found.items() if m}
