"""Our KD and ReviewKD against those of torchdistill (Matsubara, RRPR 2021), on the same inputs and weights.

Where the two differ, and what a test does about it:
- torchdistill ramps no weight: ours is taken at full weight (`progress` 1).
- torchdistill's KDLoss with alpha = 0 or without labels is the bare KL, without T^2: the tests give it both terms.
- torchdistill leaves the mode of the teacher to its user: here, as always with ours, it is in eval mode.
- torchdistill's fusion keeps each level at the student's size, ours at the teacher's: the pair has equal sizes.
- torchdistill gives sizes and channels of each level by hand and finds features by hooks: the test gives it ours.
- Both pool to 4, 2 and 1 (`output_sizes`), weigh by 1/2 a pooling, average within a level and sum over levels.
"""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchdistill.losses.mid_level import HierarchicalContextLoss, KDLoss, LogitStdKDLoss
from torchdistill.models.wrapper import AttentionBasedFusion, Student4KnowledgeReview

from afpkd.data.batches import Pixels
from afpkd.distillers import build_distiller
from afpkd.distillers.options import OPTIONS
from afpkd.distillers.reviewkd import ReviewKD
from afpkd.fusion import FusionLevel
from afpkd.learners import FrozenTeacher, student_learner
from afpkd.losses import hierarchical_context_loss
from afpkd.models import build_model, probe_shapes
from afpkd.models.outputs import Outputs, Shapes

WHERE = {"student_module_path": ".", "student_module_io": "output"}
THERE = {"teacher_module_path": ".", "teacher_module_io": "output"}


class Pair(NamedTuple):
    """A student in train mode, its teacher in eval mode, and one batch."""

    student: nn.Module
    teacher: nn.Module
    shapes: tuple[Shapes, Shapes]
    images: Tensor
    labels: Tensor


@pytest.fixture(name="pair")
def _pair() -> Pair:
    torch.manual_seed(0)
    student, teacher = (build_model(arch, num_classes=5, in_channels=1).double() for arch in ("resnet8", "resnet20"))
    shapes = [
        probe_shapes(build_model(arch, num_classes=5, in_channels=1), in_channels=1, image_size=(12, 12))
        for arch in ("resnet8", "resnet20")
    ]
    images = torch.randn(4, 1, 12, 12, dtype=torch.float64)
    teacher(images)  # moves the running statistics away from 0 and 1
    return Pair(student.train(), teacher.eval(), (shapes[0], shapes[1]), images, torch.tensor([0, 3, 3, 1]))


def _ours(pair: Pair, method: str, **options: Any) -> Tensor:
    """The sum of all losses of our training step, at full weight."""
    distiller = build_distiller(method, *pair.shapes, **{**vars(OPTIONS[method]()), **options})
    heldout = Pixels(pair.images.byte(), pair.labels, (0.5,), (0.3,))
    learner = student_learner(pair.student, FrozenTeacher(pair.teacher), distiller, heldout)
    return torch.stack(list(learner.losses(pair.images, pair.labels, 1.0).values())).sum()


def _assert_same_step(pair: Pair, ours: Tensor, theirs: Tensor, rtol: float) -> None:
    """Equal losses, and equal gradients of every weight of the student."""
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0.0)
    parameters = list(pair.student.parameters())
    gradients = [torch.autograd.grad(loss, parameters) for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


# The learner takes losses in float32, torchdistill's are float64 here: hence the tolerance.
def test_a_step_of_kd_is_that_of_torchdistill(pair: Pair) -> None:
    theirs = KDLoss(**WHERE, **THERE, temperature=4.0, alpha=0.1, beta=0.9)
    outputs = [{".": {"output": model(pair.images).logits}} for model in (pair.student, pair.teacher)]
    ours = _ours(pair, "kd", temperature=4.0, kd_weight=0.9, task_weight=0.1).double()
    _assert_same_step(pair, ours, theirs(*outputs, pair.labels), rtol=1e-5)


def test_a_step_of_kd_on_standardised_logits_is_that_of_torchdistill(pair: Pair) -> None:
    theirs = LogitStdKDLoss(**WHERE, **THERE, temperature=2.0, alpha=0.1, beta=9.0)
    outputs = [{".": {"output": model(pair.images).logits}} for model in (pair.student, pair.teacher)]
    ours = _ours(pair, "kd", temperature=2.0, kd_weight=9.0, task_weight=0.1, standardise=True).double()
    _assert_same_step(pair, ours, theirs(*outputs, pair.labels), rtol=1e-5)


@pytest.mark.parametrize("side", [8, 6, 3, 1])
def test_hcl_is_that_of_torchdistill(side: int) -> None:
    student, teacher = (torch.randn(3, 2, side, side, dtype=torch.float64, requires_grad=True) for _ in range(2))
    # torchdistill's student side is what a fusion block returns: (its output, what it passes on)
    theirs = HierarchicalContextLoss(**WHERE, **THERE)({".": {"output": (student, None)}}, {".": {"output": teacher}})
    ours = hierarchical_context_loss(student, teacher)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def _their_review(pair: Pair) -> Student4KnowledgeReview:
    """torchdistill's wrapper of our student: its fusion blocks sit at the four levels, shallow to deep."""
    student, teacher = pair.shapes
    channels = zip([*student.channels, student.pooled], [*teacher.channels, teacher.pooled], strict=True)
    mid = student.pooled
    abfs = [
        {"io": "output", "path": str(level), "kwargs": {"in_channels": c, "mid_channels": mid, "out_channels": t}}
        for level, (c, t) in enumerate(channels)
    ]
    sizes = [1, *(size[0] for size in reversed(student.sizes))]
    review = Student4KnowledgeReview(pair.student, abfs, torch.device("cpu"), None, distributed=False, sizes=sizes)
    assert isinstance(review, nn.Module)
    return review.double()


def _take_weights(ours: FusionLevel, theirs: AttentionBasedFusion) -> None:
    """The same layers by other names: every one of them is mapped."""
    ours.project.load_state_dict(theirs.conv1.state_dict())
    ours.output.load_state_dict(theirs.conv2.state_dict())
    if ours.attention is not None:
        ours.attention.load_state_dict(theirs.attention_conv[0].state_dict())
    assert (ours.attention is None) == (theirs.attention_conv is None)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def _maps(outputs: Outputs) -> list[Tensor]:
    return outputs.imitated()


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_fusion_and_losses_of_reviewkd_are_those_of_torchdistill(
    pair: Pair, *, training: bool, activated: bool
) -> None:
    """activated: of the student's maps behind their ReLU, as the authors have it; the teacher's lie before it."""
    gamma, review = 0.6, _their_review(pair)
    fused: list[tuple[Tensor, Tensor]] = []
    for block in review.abf_modules:  # deep to shallow
        block.register_forward_hook(lambda module, args, output: fused.append(output))
    student, teacher = pair.student(pair.images), pair.teacher(pair.images)
    maps = [F.relu(each) if activated else each for each in _maps(student)]  # the last is an average of ReLUs
    options: dict[str, Any] = {"gamma": gamma, "warm_up": 0.1, "relative": False, "activated": activated}
    distiller = build_distiller("reviewkd", *pair.shapes, **options).double()
    assert isinstance(distiller, ReviewKD)
    for level, block in zip(distiller.fusion.levels, reversed(review.abf_modules), strict=True):
        assert isinstance(level, FusionLevel)
        _take_weights(level, block)
    review.train(training)
    distiller.train(training)

    review.secondary_forward({str(level): {"output": each} for level, each in enumerate(maps)})
    hcl = HierarchicalContextLoss(**WHERE, **THERE)
    theirs = gamma * sum(
        hcl({".": {"output": pair_of_maps}}, {".": {"output": target}})
        for pair_of_maps, target in zip(reversed(fused), _maps(teacher), strict=True)
    )
    for mine, (output, _) in zip(distiller.fusion(maps), reversed(fused), strict=True):
        torch.testing.assert_close(mine, output, rtol=1e-9, atol=1e-12)
    ours = distiller(student, teacher, pair.labels, 1.0)["spatial"]
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-10)
    parameters = [p for name, p in pair.student.named_parameters() if not name.startswith("fc.")]
    gradients = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10)


def test_ours_alone_rises_from_zero_to_torchdistills_weight(pair: Pair) -> None:
    distiller = build_distiller(
        "reviewkd", *pair.shapes, gamma=0.6, warm_up=0.5, relative=False, activated=False
    ).double()
    outputs = pair.student(pair.images), pair.teacher(pair.images)
    losses = [float(distiller(*outputs, pair.labels, progress)["spatial"].detach()) for progress in (0.0, 0.25, 0.5)]
    assert losses == pytest.approx([0.0, losses[2] / 2, losses[2]])
