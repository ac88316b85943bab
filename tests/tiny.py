"""A recipe that comes to its end in a minute: few images, a ResNet-8 as teacher and student, nothing demanded of it."""

from __future__ import annotations


def tiny_recipe(
    *, heldout: int = 400, teacher_epochs: float = 0.2, prompts_epochs: float = 0.1, epochs: float = 0.2, more: str = ""
) -> str:
    """Its TOML; `heldout` of 4,000 training images are not trained on; `more`: further sections.

    Parts of an epoch of many images, and few to choose on. Who wants whole epochs gives `heldout`, too: `FEW`.
    """
    return f"""
extends = "default"
[data]
heldout = {heldout}
[teacher]
arch = "resnet8"
epochs = {teacher_epochs}
min_top1 = 0.0
[prompts]
epochs = {prompts_epochs}
must_choose = false
[distill]
epochs = {epochs}
{more}
"""


FEW = 3600
"""So many held out that a whole epoch has 400 images."""

FP32 = '[export]\nprecisions = ["fp32"]\n'
"""The section for one file a network."""
