"""A recipe's images on the device, split, and the task they set: small images with labels, or scenes with boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from afpkd.distillers.options import OPTIONS
from afpkd.errors import UserError
from pipeline.recipe import Data, Recipe
from pipeline.recipe_detection import CocoData
from pipeline.recipe_folder import FolderData

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from afpkd.data.batches import Augmentation
    from afpkd.data.dataset import Labels
    from afpkd.models.foreign import Normalisation
    from afpkd.tasks.task import Task


class Splits(NamedTuple):
    """What training stages read. train, heldout, test: `afpkd.data.batches.Pixels`, or `coco_batches.Scenes`."""

    task: Task
    train: Any
    heldout: Any
    test: Any
    label_names: list[str]
    in_channels: int
    image_size: tuple[int, int]
    normalisation: Normalisation
    sha256: str
    """Of the data: which a record speaks of."""
    notes: list[str]
    """What a person should know of it."""


def splits_of(recipe: Recipe, recipe_file: Path, device: torch.device) -> Splits:
    """Read a recipe's images. UserError where they are missing, broken, or too few for what is exported."""
    if isinstance(recipe.data, CocoData):
        found = _scenes(recipe, recipe.data, recipe_file, device)
    else:
        found = _pixels(recipe, recipe.data, recipe_file, device)
    if told := recipe.too_large_batch(found.train.num_images):  # of any section: not after the teacher's training
        raise UserError("E_DATA_LITTLE", told)
    return found


def augmentation_of(data: Data | FolderData | CocoData) -> Augmentation:
    """What happens to training images at random."""
    from afpkd.data.batches import Augmentation

    if isinstance(data, CocoData):
        return Augmentation(padding=0, flip=data.flip, scales=data.scales)
    return Augmentation(data.crop_padding, data.flip, data.crop_scale, data.rotation)


def _pixels(recipe: Recipe, wanted: Data | FolderData, recipe_file: Path, device: torch.device) -> Splits:
    from afpkd.data.batches import pixels_from_split
    from afpkd.data.dataset import channel_statistics, data_root, hold_out, why_unfit
    from afpkd.learners import CLASSIFICATION

    spec = wanted.spec
    _require_taught(recipe, spec.num_classes, recipe_file)
    data = spec.load(data_root())
    if told := why_unfit(data, spec):
        raise UserError("E_DATA_BROKEN", f"data set {recipe.data.name!r}: {told}")
    exported, num_train = recipe.export, len(data.train.labels)
    if "int8" in exported.precisions and num_train < exported.calibration_images:  # not after hours of training
        raise UserError(
            "E_DATA_LITTLE",
            f"int8 is calibrated on {exported.calibration_images} training images, there are {num_train}: "
            'set export.precisions = ["fp32", "fp16"]',
        )
    if data.heldout is None:
        rest, heldout = hold_out(data.train, wanted.num_heldout(num_train), recipe.seed)
    else:
        rest, heldout = data.train, data.heldout
    given = wanted.mean and wanted.std and (wanted.mean, wanted.std)
    normalisation = given or channel_statistics(data.train.images)
    _require_spread(normalisation, recipe_file)
    train, held, test = (pixels_from_split(split, *normalisation, device) for split in (rest, heldout, data.test))
    found = CLASSIFICATION, train, held, test, data.label_names, spec.in_channels, spec.image_size
    return Splits(*found, normalisation, data.sha256(), [*data.notes, *untaught(rest.labels, data.label_names)])


def _require_taught(recipe: Recipe, num_classes: int, recipe_file: Path) -> None:
    """UserError where a loss of the recipe's method has nothing to teach about so many classes."""
    method = OPTIONS[recipe.distill.method](**recipe.distill.options())
    if num_classes == 2 and (idle := method.idle_with_two_classes()):
        raise UserError("E_METHOD_FIT", f"{recipe_file.name}: distill.{idle}")


def _require_spread(normalisation: Normalisation, recipe_file: Path) -> None:
    """UserError where a measured channel has none: nothing can be divided by it."""
    if 0 in normalisation[1]:
        told = f"channel {normalisation[1].index(0)} is the same in all training images and has no spread"
        raise UserError("E_RECIPE_VALUE", f"{recipe_file.name}: data.std: {told}: give data.mean and data.std")


def untaught(labels: Labels, names: Sequence[str]) -> list[str]:
    """A note that names the classes of which no image is left to train on; images are held out of all together."""
    taught = set(labels.tolist())
    without = [name for label, name in enumerate(names) if label not in taught]
    if not without:
        return []
    shown = ", ".join(without[:4]) + (", ..." if len(without) > 4 else "")
    return [
        f"{len(without)} of {len(names)} classes have no image to train on ({shown}): all of theirs are held out or "
        "unreadable: add images, or choose what is held out (val)"
    ]


def _scenes(recipe: Recipe, wanted: CocoData, recipe_file: Path, device: torch.device) -> Splits:
    from afpkd.data.coco_batches import Scenes
    from pipeline.scenes import detection_task, read_scenery

    scenery = read_scenery(wanted, recipe_file, recipe.seed)
    train, heldout, test = (Scenes(split, wanted.image_size, wanted.mean, wanted.std, device) for split in scenery)
    found = detection_task(wanted), train, heldout, test, scenery.train.names, 3, wanted.image_size
    return Splits(*found, (wanted.mean, wanted.std), scenery.sha256(), scenery.told())
