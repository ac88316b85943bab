"""A recipe that comes to its end in a minute: few images, a ResNet-8 as teacher and student, nothing demanded of it."""

from __future__ import annotations


def tiny_recipe(
    *, heldout: int = 3600, teacher_epochs: float = 1, prompts_epochs: float = 1, epochs: float = 1, more: str = ""
) -> str:
    """Its TOML; `heldout` of 4,000 training images are not trained on; `more`: further sections."""
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


FP32 = '[export]\nprecisions = ["fp32"]\n'
"""The section for one file a network."""
