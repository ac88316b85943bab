"""Accuracy of anything the program knows: a role of a run, a bare weights file, a bundle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from afpkd.data import DATASETS
from afpkd.data.dataset import Dataset, data_root
from afpkd.errors import UserError
from afpkd.names import look_up, unknown
from afpkd.record import Json
from pipeline.lineage import WEIGHTS, require_recorded, require_same_data
from pipeline.networks import build_network, network_of, recorded_network, require_own_code
from pipeline.recipe_folder import folder_in
from pipeline.recipe_reader import load_recipe, recipe_names
from pipeline.recorded import BUILT_FROM, checked, recorded

if TYPE_CHECKING:
    from torch import nn


def evaluate_path(path: Path, *, arch: str | None, data: str | None, recipe: str | None) -> Json:
    """Top-1 on the test set: {"top1": percent, "n": images}; of a bundle with several files, {precision: {...}}."""
    if (path / "manifest.json").is_file():
        _refuse_idle(path, arch=arch, data=data, recipe=recipe)
        return _of_bundle(path)
    if (path / "record.json").is_file():
        _refuse_idle(path, data=data, recipe=recipe)
        record = recorded(path / "record.json")
        if record.get("task") == "detection":
            raise UserError(
                "E_EVALUATE", f"{path}: a detector is scored as it travels: name its bundle, {path / 'bundle'}"
            )
        if "arch" not in record:
            raise UserError(
                "E_EVALUATE", f"{path}: holds no network that classifies alone: name the student's or teacher's folder"
            )
        checked(record, path / "record.json", *BUILT_FROM)
        if "folder" not in record and record["data"] not in DATASETS:
            told = unknown("data set", record["data"], DATASETS)
            raise UserError("E_RECORD", f"{path / 'record.json'}: {told}: was it made by another version?")
        spec = folder_in(record).spec if "folder" in record else DATASETS[record["data"]]
        model = recorded_network(record, arch)
        require_recorded(path, WEIGHTS)
        require_own_code(record, arch, path / WEIGHTS)
        whole = spec.load(data_root())
        require_same_data(path / "record.json", whole.sha256())
        return _measured(model, path / WEIGHTS, whole, record["preprocessing"])
    if not path.is_file():
        told = "neither a weights file nor a folder with a record or a manifest: name one, such as runs/default/student"
        raise UserError("E_EVALUATE", f"{path}: {told}")
    if arch is None or data is None:
        raise UserError("E_EVALUATE", f"{path}: a bare weights file needs --arch NAME and --data NAME")
    spec = look_up("E_UNKNOWN_NAME", "data set", data, DATASETS)
    normalisation, own = _normalisation(path, data, recipe)
    model = build_network(
        {"arch": arch, "stages": [], "own": own},
        num_classes=spec.num_classes,
        in_channels=spec.in_channels,
        image_size=spec.image_size,
        given=(normalisation["mean"], normalisation["std"]),
    )
    return _measured(model, path, spec.load(data_root()), normalisation)


def accuracies_told(found: Json) -> str:
    """What `evaluate_path` gave in words: one line, or one a precision."""
    rows = {"": found} if "n" in found else found
    return "\n".join(f"{name}{': ' if name else ''}{_words(row)} of {row['n']} images" for name, row in rows.items())


def _words(row: Json) -> str:
    if "top1" in row:
        return f"top-1 {row['top1']:.2f} %"
    return f"AP {row['ap']:.2f} %, AP50 {row['ap50']:.2f} %, AP75 {row['ap75']:.2f} %"


def _of_bundle(path: Path) -> Json:
    import numpy as np

    from export.passes import outputs_of
    from export.sealed import verify_bundle
    from export.verify import onnx_forward, top1

    manifest = verify_bundle(path)
    if manifest["task"] == "detection":
        return _of_detector_bundle(path, manifest)
    images = np.load(path / manifest["evaluation"]["images"], allow_pickle=False)
    labels = np.load(path / manifest["evaluation"]["labels"], allow_pickle=False)
    found = {}
    for precision, file in _files(path, manifest):
        logits = outputs_of(onnx_forward(file), images, manifest["preprocessing"])
        found[precision] = {"top1": top1(logits, labels), "n": len(labels)}
    return found if len(found) > 1 else next(iter(found.values()))


def _of_detector_bundle(path: Path, manifest: Json) -> Json:
    """{precision: {"ap", "ap50", ..., "n"}}, by the suppression that devices run."""
    from deploy.agent import onnx_runtime
    from deploy.agent.bundle import Bundle
    from deploy.agent.objects import found_in_evaluation
    from deploy.found import average_precision_of

    truth, names = path / manifest["evaluation"]["labels"], (manifest["input"]["name"], manifest["output"]["name"])
    found = {}
    for precision, file in _files(path, manifest):
        runtime = onnx_runtime.load_precise(file, *names, 0)
        scores = average_precision_of(found_in_evaluation(runtime, Bundle(str(path))), truth)
        found[precision] = {**scores, "n": manifest["evaluation"]["num"]}
    return found


def _files(path: Path, manifest: Json) -> Iterator[tuple[str, Path]]:
    """Each precision with the file that ONNX Runtime takes of it, by the rule that devices go by."""
    from deploy.agent.bundle import Bundle
    from deploy.agent.errors import AgentError

    bundle = Bundle(str(path))
    for precision in dict.fromkeys(entry["precision"] for entry in manifest["files"]):
        try:
            yield precision, path / bundle.entry(precision, "onnxruntime")["path"]
        except AgentError as error:
            raise UserError("E_BUNDLE", f"{path}: {error.message}: add it to the recipe's export") from None


def _measured(model: nn.Module, path: Path, data: Dataset, normalisation: Json) -> Json:
    import torch

    from afpkd.checkpoint import load_weights
    from afpkd.data.batches import pixels_from_split
    from afpkd.learners import CLASSIFICATION
    from afpkd.tasks.task import model_scores

    load_weights(model, path)
    pixels = pixels_from_split(data.test, normalisation["mean"], normalisation["std"], torch.device("cpu"))
    return {"top1": model_scores(CLASSIFICATION, model, pixels)["top1"], "n": len(data.test.labels)}


def _refuse_idle(path: Path, **given: str | None) -> None:
    """UserError for an option that a bundle or a role, which says all of itself, would not look at."""
    idle = " and ".join(f"--{option}" for option, value in given.items() if value is not None)
    if idle:
        raise UserError("E_USAGE", f"{path}: {idle}: would do nothing, it is for a bare weights file: leave it out")


def _normalisation(path: Path, data: str, recipe: str | None) -> tuple[Json, list[list[float]] | None]:
    """The mean and std of `recipe`, or of the shipped recipe that names this very file, or of one of the data set.

    And those that the file itself wants, where it is the recipe's teacher and has its own.
    """
    candidates = [load_recipe(name) for name in ([recipe] if recipe else recipe_names())]
    fitting = [(name, found) for name, found in candidates if found.data.name == data]
    named = [(name, found) for name, found in fitting if Path(getattr(found.teacher, "weights", "")).name == path.name]
    if not fitting:
        raise UserError("E_EVALUATE", f"no recipe says how {data} is normalised: name one of {data} with --recipe")
    name, chosen = (named or fitting)[0]
    own = network_of(chosen, "teacher")["own"] if named else None
    mean, std = map(tuple, own) if own else (chosen.data.mean, chosen.data.std)
    whose = "its teacher" if own else "it"
    sys.stderr.write(f"normalised as recipe {name} has {whose}: mean {mean}, std {std}\n")
    return {"mean": chosen.data.mean, "std": chosen.data.std}, own
