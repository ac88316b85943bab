"""The proof before training that a network exports, kept: it takes seconds to minutes, and every point of a sweep asks.

What was proven lies under ~/.cache/afpkd/exportable (XDG_CACHE_HOME), one empty file each. It holds for the same
network, sizes, opsets, float16 or not, packages and commit of this program; not for a user's own file, whose name says
nothing of what it does, and not where the commit says nothing of the code.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from afpkd.models.user_file import is_user_file
from afpkd.record import Json, cache_folder, digest, provenance
from pipeline.networks import label

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn


def require_export(
    model: nn.Module, example: Tensor, network: Json, *, num_classes: int, opsets: Sequence[int], half: bool
) -> None:
    """Prove that the new `model`, the `network` for images like `example` (1, C, H, W), exports; UserError if not.

    half: whether in float16 too.
    """
    import torch

    from export.to_onnx import dry_run_export

    proven = _proof(network, (num_classes, *example.shape), opsets, half)
    if proven is not None and proven.exists():
        return
    with torch.random.fork_rng():  # the exporter's draws must not move the weights that are drawn next
        dry_run_export(model, example, arch=label(network["arch"]), opsets=opsets, half=half)
    if proven is not None:
        with suppress(OSError):  # of a cache that cannot be written nothing is kept
            proven.parent.mkdir(parents=True, exist_ok=True)
            proven.touch()


def _proof(network: Json, sizes: Sequence[int], opsets: Sequence[int], half: bool) -> Path | None:
    """The file that stands for it, None where nothing can."""
    made = provenance()
    commit = made["git_commit"]
    if is_user_file(network["arch"]) or commit is None or not commit.isalnum():
        return None
    name = digest([network, list(sizes), list(opsets), half, made["versions"], commit])
    return cache_folder("exportable") / name
