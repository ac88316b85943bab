"""The stage `export` by task: what a classifier's bundle is made of, and a detector's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from afpkd.record import Json
from pipeline.lineage import require_same_data
from pipeline.networks import build_network, layer_names, network_of
from pipeline.recipe_detection import CocoData

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from export.making import Order
    from pipeline.workspace import Run


def export_classifier(run: Run, model: nn.Module, order: Order) -> Json:
    """Write the bundle of a classifier; order: all but the data's part of it.

    UserError where the data are no longer those that it was trained on.
    """
    from afpkd.data.dataset import data_root
    from export.build import build_bundle
    from export.calibration import calibration_images

    data, wanted = run.recipe.data.spec.load(data_root()), run.recipe.export
    sha256 = require_same_data(run.role(order.role) / "record.json", data.sha256())
    quantizes = "int8" in wanted.precisions
    drawn = calibration_images(data.train.images, run.recipe.seed, wanted.calibration_images) if quantizes else None
    return build_bundle(
        model,
        replace(order, lineage={**order.lineage, "data": sha256}, calibration=drawn),
        images=data.test.images,
        labels=data.test.labels,
        label_names=data.label_names,
    )


def excluded_of(run: Run, role: str, record: Json, model: nn.Module, say: Callable[[str], None]) -> tuple[str, ...]:
    """Those names of `export.int8_exclude` that are for the role's network: all but layers of the other one alone.

    record: of the role. What neither network has stays, for whoever knows the graph's own names.
    """
    wanted = run.recipe.export.int8_exclude
    own = layer_names(model)
    if own.issuperset(wanted):
        return wanted
    other = "student" if role == "teacher" else "teacher"
    facts = {key: record[key] for key in ("num_classes", "in_channels")}
    given = record["preprocessing"]["mean"], record["preprocessing"]["std"]
    network = network_of(run.recipe, other)
    theirs = layer_names(build_network(network, **facts, image_size=tuple(record["image_size"]), given=given)) - own
    for name in theirs.intersection(wanted):
        say(f"export.int8_exclude: {name} is a layer of the {other} alone")
    return tuple(name for name in wanted if name not in theirs)


def export_detector(run: Run, model: nn.Module, order: Order) -> Json:
    """Write the bundle of a detector; order: all but the data's part of it.

    UserError where the data are no longer those that it was trained on.
    """
    import numpy as np

    from afpkd.data.coco import read_canvases
    from export.detector import EvaluatedScenes, build_detector_bundle
    from pipeline.scenes import read_scenery, reading, scenes_for_calibration

    data, wanted = run.recipe.data, run.recipe.export
    assert isinstance(data, CocoData)
    scenery = read_scenery(data, run.recipe_file, run.recipe.seed)
    sha256 = require_same_data(run.role(order.role) / "record.json", scenery.sha256())
    canvases, scales = zip(*read_canvases(scenery.test.scenes, data.image_size), strict=True)
    drawn = (
        scenes_for_calibration(scenery.train, data.image_size, run.recipe.seed, wanted.calibration_images)
        if "int8" in wanted.precisions
        else None
    )
    return build_detector_bundle(
        model,
        replace(order, lineage={**order.lineage, "data": sha256}, calibration=drawn),
        test=EvaluatedScenes(np.stack(canvases), scales, scenery.test),
        reading=reading(data),
    )
