"""Training settings by the names of other programs, so that their configurations load as they are.

The names are those of the UNeXt and NestedUNet training scripts. Their scheduler counts epochs, and
they know neither warm-up nor averaged weights: a configuration that names its network as they do
gets neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

KEYS = {
    "arch": "network",
    "batch_size": "batch",
    "dataset": "data.folder",
    "deep_supervision": "options.deep_supervision",
    "img_ext": "data.image_suffix",
    "input_channels": "in_channels",
    "mask_ext": "data.mask_suffix",
    "num_classes": "classes",
    "num_workers": "workers",
}
MORE = {"cfg", "name", "gamma", "input_h", "input_w"}  # the first two shape nothing
SCHEDULERS = {
    "cosineannealinglr": "cosine",
    "reducelronplateau": "plateau",
    "multisteplr": "multistep",
    "cycliclr": "cyclic",
}
LOSSES = {
    "bcediceloss": "bce_dice",
    "bcewithlogitsloss": "soft_bce",
    "crossentropyloss": "soft_bce",
    "diceloss": "dice",
    "lovaszhingeloss": "lovasz",
}
RECIPE = {"dims": 2, "distance": False, "warmup": 0, "ema": 0.0, "beta2": 0.999}


def ours(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the keys and values of another program; what is ours already stays as it is."""
    if not (KEYS.keys() | MORE) & tree.keys():
        return dict(tree)
    found = {key: value for key, value in tree.items() if key not in KEYS.keys() | MORE}
    for key in KEYS.keys() & tree.keys():
        if key != "deep_supervision" or tree[key] is not False:
            _put(found, KEYS[key], tree[key])
    if {"input_h", "input_w"} <= tree.keys():
        _put(found, "data.patch", [tree["input_h"], tree["input_w"]])
    for key, words in {"optimizer": {}, "network": {}, "scheduler": SCHEDULERS}.items():
        if isinstance(value := found.get(key), str):
            found[key] = words.get(value.lower(), value.lower())
    if isinstance(name := found.get("loss"), str):
        found |= {"losses": {LOSSES.get(name.lower(), name): 1.0}, "loss": {}}
    if isinstance(text := found.get("milestones"), str):
        found["milestones"] = [int(word) for word in text.split(",") if word.strip().isdecimal()]
    if found.get("scheduler") == "multistep" and "gamma" in tree:
        found["factor"] = tree["gamma"]
    if found.get("scheduler") == "cosine":
        with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):  # the model will say
            found["final_lr"] = found["min_lr"] / found["lr"]
    return {**(RECIPE if "arch" in tree else {}), **found}


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a value of a tree unless it is there."""
    table, _, key = dotted.rpartition(".")
    node = tree.get(table, {}) if table else tree
    if isinstance(node, Mapping):  # anything else is refused by the model
        node = {key: value, **node}
        tree.update({table: node} if table else node)
