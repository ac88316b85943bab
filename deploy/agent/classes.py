"""What follows a classifier's call: its logits as classes with their chances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def best_classes(logits: NDArray[np.float32], top: int) -> list[tuple[int, float]]:
    """Give the `top` best classes of one image's logits (K) with their probability (softmax), the best first."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    chances = powers / powers.sum()
    return [(int(index), float(chances[index])) for index in np.argsort(-chances, kind="stable")[:top]]
