"""Which loss is best, on few images and on many? The ancestor's weights and mixes among them.

``python studies/losses.py [--quick]`` writes ``results/losses.json`` and ``.png``.
"""

from __future__ import annotations

from typing import Any

from trials import Study, main


def weighted(background: float, **terms: float) -> dict[str, Any]:
    """Return settings of a weighted cross-entropy and other terms."""
    return {"losses": terms, "loss": {"background_weight": background}}


LOSSES: dict[str, dict[str, Any]] = {
    "CE(.1,.9)": weighted(0.1, weighted_ce=1.0),
    "CE(.3,.7)": weighted(0.3, weighted_ce=1.0),
    "soft BCE": {"losses": {"soft_bce": 1.0}},
    "Dice": {"losses": {"dice": 1.0}},
    "BCE-Dice": {"losses": {"bce_dice": 1.0}},
    "focal Tversky": {"losses": {"focal_tversky": 1.0}},
    "CE + FT": weighted(0.1, weighted_ce=1.0, focal_tversky=1.0),
    "CE + 1.5 Dice": weighted(0.1, weighted_ce=1.0, dice=1.5),
    "Lovász": {"losses": {"lovasz": 1.0}},
    "BCE + clDice": {"losses": {"soft_bce": 1.0, "soft_cl_dice": 0.5}},
    "BCE + boundary": {"losses": {"soft_bce": 1.0, "boundary": 0.2}},
    "BCE + skeleton": {"losses": {"soft_bce": 1.0, "dice": 1.0, "skeleton_recall": 0.1}},
    "ours, distance": {
        "distance": True,
        "losses": {"soft_bce": 1.0, "dice": 1.0, "sdf_nll": 0.5, "sdf_l1": 0.2},
    },
}
NETWORK = {"network": "vesselnet", "options": {"size": "small"}}
STUDY = Study(
    "losses",
    {
        f"{name}, {size} images": ({**NETWORK, **changes}, size)
        for size in (100, 1000)
        for name, changes in LOSSES.items()
    },
    "vesselnet small, 160 steps of 8 images of 64 x 64, AdamW 1e-3",
)

if __name__ == "__main__":
    main(STUDY, steps=160, seeds=1)
