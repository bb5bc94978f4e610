"""Which network is best for equal data and steps? Every network of the registry, made small.

``python studies/architectures.py [--quick]`` writes ``results/architectures.json`` and ``.png``.
The last one, ``mask2former``, needs the extra ``compare``.
"""

from __future__ import annotations

from typing import Any

from trials import Study, main

from vesselseg import nets

SMALL: dict[str, dict[str, Any]] = {  # about a million parameters each
    "deconvnet": {"width": 10, "fc_width": 64},
    "deeplabv3-resnet50": {"width": 10, "rates": (1, 2, 3)},
    "fcn-resnet101": {"width": 8},
    "fcn-resnet50": {"width": 11},
    "query-mask": {},
    "resunet": {"width": 22},
    "segnet": {"width": 12},
    "unet": {"width": 12},
    "unet-resnet50": {"width": 10},
    "unet-vgg16": {"width": 12},
    "unext": {},
    "vesselnet": {"size": "small"},
    "mask2former": {"width": 16, "hidden": 64, "layers": 2},
}
NAMES = (*nets.names(), "mask2former")
STUDY = Study(
    "architectures",
    {name: ({"network": name, "options": SMALL[name]}, 400) for name in NAMES},
    "equal budget: 240 steps of 8 images of 64 x 64 out of 400, BCE-Dice, AdamW 1e-3",
)

if __name__ == "__main__":
    main(STUDY, steps=240, seeds=2)
