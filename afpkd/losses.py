"""Every loss of the program as a pure function, with its equation and source. Means over the batch, natural units."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation on logits: T^2 KL(softmax(z_t / T) || softmax(z_s / T)), the mean over the batch.

    Hinton et al., "Distilling the knowledge in a neural network" (2015). Logits N, K; `temperature` T > 0.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def standardised(logits: Tensor) -> Tensor:
    """Logits N, K with mean 0 and standard deviation 1 a row: (z - mean) / std.

    Sun et al., "Logit standardization in knowledge distillation" (CVPR 2024), algorithm 1: a student then matches the
    order of the teacher's logits, not their range. std with Bessel's correction, as published.
    """
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


def decoupled_losses(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """DKD's two parts of the KD loss: (target class, non-target classes), each T^2 KL(teacher || student).

    Zhao et al., "Decoupled knowledge distillation" (CVPR 2022), equations 5 to 7: TCKD compares the binary
    distributions (p_target, 1 - p_target); NCKD the distributions over the other classes alone. Means over the batch.
    Logits N, K; target N class indices.
    """
    column = target[:, None]
    rest = torch.arange(student_logits.shape[1] - 1, device=target.device)
    rest = rest + (rest >= column)  # the columns of the other classes, N, K - 1: gathered, no step waits for the device
    binary, others = [], []
    for logits in (student_logits, teacher_logits):
        log_p = F.log_softmax(logits / temperature, dim=1)
        log_others = log_p.gather(1, rest)
        binary.append(torch.cat([log_p.gather(1, column), log_others.logsumexp(dim=1, keepdim=True)], dim=1))
        others.append(F.log_softmax(log_others, dim=1))

    def divergence(pair: list[Tensor]) -> Tensor:
        return temperature**2 * F.kl_div(pair[0], pair[1], reduction="batchmean", log_target=True)

    return divergence(binary), divergence(others)


def class_map_loss(student: Tensor, teacher: Tensor, size: int, *, normalise: bool) -> Tensor:
    """CAT-KD's loss: the mean squared error of class activation maps, average-pooled to `size` x `size`.

    Guo et al., "Class attention transfer based knowledge distillation" (CVPR 2023), equation 4. Maps N, K, h, w;
    `normalise` brings each pooled map to unit L2 norm first (the authors' code does so for cross-architecture pairs).
    """
    ours, theirs = (F.adaptive_avg_pool2d(maps, size).flatten(2) for maps in (student, teacher))
    if normalise:
        ours, theirs = F.normalize(ours, dim=2), F.normalize(theirs, dim=2)
    return F.mse_loss(ours, theirs)


def in_spreads(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of one level, N, C, H, W, in units of the teacher's standard deviation over the whole batch of them.

    A squared error is then the part of the teacher's variance that the student does not explain, and a weight means the
    same whatever range a teacher's features have. After PKD (Cao et al., "General distillation framework for object
    detectors via Pearson correlation coefficient", NeurIPS 2022), which divides each channel by its own.
    """
    spread = teacher.detach().float().std().clamp_min(1e-6)
    return student / spread, teacher / spread


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """ReviewKD's HCL: squared error at full size and of average-pooled versions, weighted 1, 1/2, 1/4, 1/8.

    Chen et al., "Distilling knowledge via knowledge review" (CVPR 2021), section 3.4: pooled to 4x4, 2x2 and 1x1
    (sizes that do not shrink the map are skipped), divided by the sum of the weights. Maps N, C, H, W.
    """
    difference = student - teacher
    loss, total, weight = difference.square().mean(), 1.0, 1.0
    nested = all(side % 4 == 0 for side in difference.shape[-2:])  # then 4x4 pools on to 2x2 and 1x1 exactly
    pooled = difference
    for size in (4, 2, 1):
        if size < student.shape[-2]:  # pooling is linear: the pooled difference is the difference of the pooled
            weight /= 2
            pooled = F.adaptive_avg_pool2d(pooled if nested else difference, size)
            loss = loss + weight * pooled.square().mean()
            total += weight
    return loss / total


def token_overlap(masks: Tensor) -> Tensor:
    """Soft Jaccard overlap between the masks of a band's tokens, the mean over pairs and images: O values in 0..1.

    masks: N, O, T, h, w in 0..1. J(m, n) = sum(m n) / (sum m^2 + sum n^2 - sum m n): FreeKD's L_dis, over the T (T - 1)
    off-diagonal pairs (each mask overlaps itself fully whatever is learned). Zero for T = 1.
    """
    tokens = masks.shape[2]
    flat = masks.flatten(3)
    inner = flat @ flat.transpose(-1, -2)
    energy = inner.diagonal(dim1=-2, dim2=-1)
    jaccard = inner / (energy.unsqueeze(-1) + energy.unsqueeze(-2) - inner).clamp_min(1e-12)
    off_diagonal = jaccard.sum(dim=(-1, -2)) - jaccard.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal.mean(0) / max(tokens * (tokens - 1), 1)


def frequency_loss(
    difference: list[Tensor],
    masks: list[Tensor],
    channel_weight: Tensor,
    *,
    normalise: Literal["level", "band", "none"],
) -> Tensor:
    """AFPKD's loss of one level: the masked L1 distance of teacher and student bands, the mean over images.

    With e_b = mean over channels and positions of omega_c w_p |a - b|_{c,p} and A_b = mean over positions of w_p, where
    a, b are band b of teacher and student, w its pixel mask and omega the channel weight:
        level  sum_b e_b / sum_b A_b     a band counts by the area that its mask keeps
        band   mean_b (e_b / A_b)        every band counts the same, however little of it is kept
        none   mean_b e_b                FreeKD's
    FreeKD sums |m_i a - m_i b| over tokens; masks are positive, so it factors into one sum with one mask w, and no
    tensor has T copies.

    difference: a - b a group, N, C, O, h, w; masks: N, O, h, w a group; channel_weight: N, C.
    """
    pairs = list(zip(difference, masks, strict=True))
    distances = torch.cat([_masked_distance(group, mask, channel_weight) for group, mask in pairs], dim=1)
    if normalise == "none":
        return distances.mean()
    areas = torch.cat([mask.mean(dim=(-2, -1)) for mask in masks], dim=1).clamp_min(1e-6)
    if normalise == "band":
        return (distances / areas).mean()
    return (distances.sum(dim=1) / areas.sum(dim=1)).mean()


def _masked_distance(difference: Tensor, mask: Tensor, channel_weight: Tensor) -> Tensor:
    """e_b above: N, O."""
    if difference.dtype == torch.float16:
        with torch.autocast(difference.device.type, enabled=False):  # a detector's sums leave float16's range
            return _masked_distance(difference.float(), mask.float(), channel_weight.float())
    over_channels = torch.einsum("nc,ncohw->nohw", channel_weight, difference.abs())
    return (over_channels * mask).mean(dim=(-2, -1)) / difference.shape[1]


Progress = float | Tensor
"""0..1 of the schedule; a tensor where the step is recorded as a CUDA graph, which would keep a number for ever."""


def warm_up(progress: Progress, fraction: float) -> Progress:
    """Linear ramp of a distillation weight, 0 -> 1 over the first `fraction` of the schedule; `progress` in 0..1.

    ReviewKD ramps over 20 of 240 epochs; as a fraction, short recipes reach full weight too.
    """
    if fraction <= 0:
        return 1.0
    ramp = progress / fraction
    return ramp.clamp_max(1.0) if isinstance(ramp, Tensor) else min(ramp, 1.0)
