"""Forward and backward pass of a training step, recorded once and replayed: small networks wait for launches.

A step of a CIFAR pair is some thousand kernels of a few microseconds each; launched one by one from Python, a GPU idles
most of the time. A CUDA graph launches all of them at once (docs.pytorch.org, "CUDA semantics", "CUDA graphs"). What is
recorded is the kernels alone: all that Python decides must be the same in every step, nothing may wait for the device
or copy to it, and what changes (images, target, progress) must lie in fixed tensors. The losses of our classifiers
are such (a test holds them to it); a detector's, whose boxes differ in number, are not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from afpkd.errors import UserError

Pass = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""(normalised images, target, progress, one value) -> named losses; gradients are left at the parameters."""

UNRECORDED = 3
"""Passes before it: libraries choose kernels and take memory in the first, which cannot be recorded."""


class RecordedPass:
    """A pass as a CUDA graph. Its losses are those of the last call: the next one overwrites them."""

    def __init__(self, device: torch.device) -> None:
        self._left = UNRECORDED
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
        self._progress = torch.zeros((), dtype=torch.float64, device=device)  # as exact as a number
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._losses: dict[str, Tensor] = {}

    def __call__(self, run: Pass, images: Tensor, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The losses of this batch, always of one size, by `run`, always the same. (It is not kept: who holds this
        object may be what `run` belongs to, and the memory of a cycle is not freed when it is let go.)"""
        self._progress.fill_(progress)
        if self._left:
            self._left -= 1
            return self._unrecorded(run, images, target)
        if self._inputs is None:
            self._inputs = images.clone(), target.clone()
            self._losses = self._record(run, *self._inputs)
        for fixed, given in zip(self._inputs, (images, target), strict=True):
            fixed.copy_(given)
        self._graph.replay()
        return self._losses

    def _record(self, run: Pass, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        try:
            with torch.cuda.graph(self._graph, stream=self._stream):
                losses = run(images, target, self._progress)
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a recording that failed fails, too, and says less
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            told = f"this training's step cannot be recorded as a CUDA graph ({str(cause).splitlines()[0]})"
            raise UserError("E_TRAIN_GRAPH", f"{told}: set AFPKD_CUDA_GRAPH=0") from cause
        return {name: loss.detach() for name, loss in losses.items()}  # with gradients they would keep what made them

    def _unrecorded(self, run: Pass, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        """On the stream that will record: autograd remembers on which it met a parameter."""
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            losses = run(images, target, self._progress)
        here.wait_stream(self._stream)
        return losses
