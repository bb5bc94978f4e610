"""The ranking of learning rates and batch sizes of UNeXt that others found, tried here.

Claimed for UNeXt with BCE-Dice, Adam and a cosine over 20 epochs: 1e-4 at batch 8 is best, at
batch 16 a little worse, and 1e-2 fails. ``python studies/lr_batch.py [--quick]`` writes
``results/lr_batch.json`` and ``.png``.
"""

from __future__ import annotations

from typing import Any

from trials import Study, main

IMAGES = 200
CLAIMED = ("lr 1e-4, batch 8", "lr 1e-4, batch 16", "lr 1e-2, batch 8")  # best first


def changes(lr: float, batch: int) -> dict[str, Any]:
    """Return the settings of one row."""
    adam = {"optimizer": "adam", "lr": lr, "weight_decay": 1e-4, "batch": batch, "warmup": 0}
    floor = {"final_lr": 1e-5 / lr, "ema": 0.0, "steps": 20 * IMAGES // batch}
    return {"network": "unext", **adam, **floor}


STUDY = Study(
    "lr_batch",
    {
        CLAIMED[0]: (changes(1e-4, 8), IMAGES),
        CLAIMED[1]: (changes(1e-4, 16), IMAGES),
        CLAIMED[2]: (changes(1e-2, 8), IMAGES),
    },
    "UNeXt, 20 epochs of 200 images of 64 x 64, BCE-Dice, Adam, cosine to 1e-5",
)


def verdict(table: list[dict[str, Any]]) -> str:
    """Say whether the claimed order is found."""
    found = [row["trial"] for row in sorted(table, key=lambda row: -row["Dice"])]
    same = "the claimed order" if found == list(CLAIMED) else "another order than claimed"
    return f"{same}: " + " > ".join(found)


if __name__ == "__main__":
    main(STUDY, steps=0, seeds=3, extra=verdict)
