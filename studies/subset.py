"""What a quarter of the images teaches: the hardest and most different ones, or any.

A quarter chosen by hardness and difference (`data.subset`), a quarter as it comes, and all, for
equal steps. ``python studies/subset.py [--quick]`` writes ``results/subset.json`` and ``.png``.
"""

from __future__ import annotations

from typing import Any

from trials import Pool, Study, main

NETWORK: dict[str, Any] = {"network": "vesselnet", "options": {"size": "small"}}
STUDY = Study(
    "subset",
    {
        "all 400": (NETWORK, 400),
        "100 as they come": (NETWORK, 100),
        "100 chosen of 400": (NETWORK, Pool(400, 0.25)),
    },
    "vesselnet small, 240 steps of 8 images of 64 x 64, BCE-Dice, AdamW 1e-3",
)

if __name__ == "__main__":
    main(STUDY, steps=240, seeds=3)
