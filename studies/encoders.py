"""What an encoder brings: none, VGG16, ResNet50, the latter with its first blocks frozen.

All start from random weights (no pretrained file is in the repository), so a frozen block is a
random one. ``python studies/encoders.py [--quick]`` writes ``results/encoders.json`` and ``.png``.
"""

from __future__ import annotations

from trials import Study, main

FROZEN = {"width": 10, "freeze": ("stem", "layer1")}
STUDY = Study(
    "encoders",
    {
        "none": ({"network": "unet", "options": {"width": 12}}, 400),
        "VGG16": ({"network": "unet-vgg16", "options": {"width": 12}}, 400),
        "ResNet50": ({"network": "unet-resnet50", "options": {"width": 10}}, 400),
        "ResNet50, stem and layer1 frozen": (
            {"network": "unet-resnet50", "options": FROZEN},
            400,
        ),
    },
    "not pretrained, 240 steps of 8 images of 64 x 64 out of 400, BCE-Dice, AdamW 1e-3",
)

if __name__ == "__main__":
    main(STUDY, steps=240, seeds=2)
