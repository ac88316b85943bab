"""A trained detector as a bundle: every file held to AP, one suppression for torch, ONNX Runtime and the agent."""

import copy
import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afpkd.data.batches import Augmentation
from afpkd.data.coco import CocoSplit, read_canvas
from afpkd.data.coco_batches import Scenes
from afpkd.errors import UserError
from afpkd.learners import plain_learner
from afpkd.models.fcos import FcosDetector
from afpkd.record import Json
from afpkd.settings import TrainSettings
from afpkd.tasks.detection import Detection
from afpkd.tasks.task import model_scores
from afpkd.train import Fitting
from deploy.agent import objects, runtimes
from deploy.agent.bundle import Bundle
from deploy.agent.detections import Rule, agreement, box_error, detections_of
from deploy.agent.golden import golden_check
from deploy.build_check import build_check
from deploy.found import average_precision_of
from export.calibration import Calibration
from export.detector import PREDICTIONS, DetectorChecker, EvaluatedScenes, Reading, build_detector_bundle
from export.making import Order
from export.quantize import Int8
from export.sealed import verify_bundle
from export.to_onnx import graph_from_model
from export.verify import onnx_forward
from tests.scenes import CANVAS, NAMES, write_scenes

RULE = Rule()
MEAN = STD = (0.5, 0.5, 0.5)
READING = Reading(partial(detections_of, rule=RULE), agreement, box_error, RULE._asdict())
TASK = Detection(partial(detections_of, rule=RULE))


@pytest.fixture(autouse=True, scope="module")
def _exported_once() -> Iterator[None]:
    """The one detector of this module goes through torch's exporter once: it takes a quarter of a minute."""
    example = torch.zeros(1, 3, *CANVAS)
    once = functools.cache(lambda model, opset: graph_from_model(model, example, opset=opset))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("export.making.graph_from_model", lambda model, _, *, opset: copy.deepcopy(once(model, opset)))
        yield


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CocoSplit:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 10)


@pytest.fixture(scope="module")
def scenes(split: CocoSplit) -> Scenes:
    return Scenes(split, CANVAS, MEAN, STD, torch.device("cpu"))


@pytest.fixture(scope="module")
def detector(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> FcosDetector:
    """A detector that has learnt something."""
    torch.manual_seed(0)
    network = FcosDetector("mobilenet_v3_small", width=64, num_convs=1, num_classes=len(NAMES))
    settings = TrainSettings(epochs=40, batch_size=5, optimizer="adam", lr=2e-3, weight_decay=0, schedule="onecycle")
    folder = tmp_path_factory.mktemp("training")
    Fitting(
        dataclasses.replace(plain_learner(network, scenes, TASK), metric=lambda: 0.0),
        scenes,
        settings,
        augmentation=Augmentation(),
        seed=0,
        checkpoint=folder / "c.pt",
        digest="d",
    ).run(lambda *_: None)
    network.eval()
    return network


def evaluated(split: CocoSplit) -> EvaluatedScenes:
    canvases, scales = zip(*(read_canvas(scene, CANVAS) for scene in split.scenes), strict=True)
    return EvaluatedScenes(np.stack(canvases), scales, split)


def build(detector: FcosDetector, split: CocoSplit, out: Path, precisions: tuple[str, ...], **options: Any) -> Json:
    test = evaluated(split)
    calibration = Calibration(test.canvases, list(range(len(test.canvases))))
    wanted: Json = {"role": "student", "arch": "tiny", "mean": MEAN, "std": STD, "opset": 18, "lineage": {}, "out": out}
    order = Order(**wanted, precisions=precisions, calibration=calibration, **options)
    return build_detector_bundle(detector, order, test=test, reading=READING)


@pytest.fixture(scope="module")
def folder(detector: FcosDetector, split: CocoSplit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of all precisions, each file looked at by NVIDIA's parser and builder."""
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    checked = partial(build_check, capabilities=("8.6",))
    build(detector, split, out, ("fp32", "fp16", "int8"), build_check=checked, int8=Int8(method="minmax"))
    return out


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Json:
    return verify_bundle(folder)


def test_the_manifest_says_what_the_files_take_and_give(manifest: Json) -> None:
    locations = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1
    assert manifest["task"] == "detection"
    assert manifest["num_classes"] == 3
    assert manifest["input"]["shape"] == ["batch", 3, *CANVAS]
    assert manifest["output"] == {"name": "detections", "shape": ["batch", locations, 4 + 3], "dtype": "float32"}
    assert manifest["preprocessing"]["fit"] == "letterbox"
    assert manifest["postprocessing"] == RULE._asdict()


def test_every_file_has_the_ap_that_torch_has(manifest: Json, detector: FcosDetector, scenes: Scenes) -> None:
    torch_ap = model_scores(TASK, detector, scenes)
    assert manifest["torch_ap"] == pytest.approx(torch_ap)
    assert torch_ap["ap"] is not None
    assert torch_ap["ap"] > 60
    found = manifest["verification"]
    assert found.keys() == {"fp32.onnx", "fp16.onnx", "int8.onnx", "int8-tensorrt.onnx"}
    assert found["fp32.onnx"]["ap"] == pytest.approx(torch_ap["ap"], abs=0.01)
    assert found["fp32.onnx"]["max_box_error"] < 0.01
    assert found["fp16.onnx"]["ap"] == pytest.approx(torch_ap["ap"], abs=5)
    assert found["int8.onnx"]["ap"] == pytest.approx(torch_ap["ap"], abs=20)
    assert all(row["drop"] == pytest.approx(torch_ap["ap"] - row["ap"]) for row in found.values())


def test_nvidias_builder_takes_every_file_for_it(manifest: Json) -> None:
    assert {name: row["status"] for name, row in manifest["build_check"].items()} == {
        "fp32.onnx": "ok",
        "fp16.onnx": "ok",
        "int8.onnx": None,
        "int8-tensorrt.onnx": "ok",
    }


def test_predictions_stay_float_in_int8_on_every_level(folder: Path, manifest: Json) -> None:
    import onnx

    proto = onnx.load(folder / "int8.onnx")
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    floats = {node.input[1] for node in convolutions if node.input[1] in weights}
    assert floats == {f"model.{name}.weight" for name in PREDICTIONS}
    heads = [node for node in convolutions if node.input[1] in floats]
    assert len(heads) == 3 * 5
    assert len(convolutions) - len(heads) > 40
    layers = [row["layer"] for row in manifest["sensitivity"]]
    assert len(layers) == len(set(layers))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_agent_finds_what_was_verified(folder: Path, manifest: Json, precision: str) -> None:
    bundle = Bundle(str(folder))
    path = bundle.model_path(precision, "onnxruntime", "1.32.0")
    runtime = runtimes.load("onnxruntime", runtimes.Loading(path, "input", "detections", 1))
    images, expected = bundle.golden()
    entry = bundle.entry(precision, "onnxruntime", "1.32.0")
    check = golden_check(runtime.infer(bundle.preprocess(images)), expected, bundle.tolerances(entry))
    assert check["ok"], check
    arrays = objects.found_in_evaluation(runtime, bundle)
    scores = average_precision_of(arrays, folder / manifest["evaluation"]["labels"])
    verified = manifest["verification"][f"{precision}.onnx"]
    assert scores == pytest.approx({name: verified[name] for name in scores}, abs=0.5, nan_ok=True)


def test_the_golden_check_sees_wrong_scores_and_wrong_boxes(folder: Path) -> None:
    bundle = Bundle(str(folder))
    _, expected = bundle.golden()
    tolerances = bundle.tolerances(bundle.entry("fp32", "onnxruntime", "1.32.0"))
    assert golden_check(expected, expected, tolerances)["ok"]
    for part, amount in ((slice(0, 4), 3.0), (slice(4, None), 0.02)):
        wrong = expected.copy()
        wrong[..., part] += amount
        assert not golden_check(wrong, expected, tolerances)["ok"]
    shuffled = np.ascontiguousarray(expected[:, ::-1])
    assert golden_check(shuffled, expected, tolerances)["argmax_agreement"] == 100  # the same objects, elsewhere listed
    assert not golden_check(shuffled, expected, tolerances)["ok"]
    assert not golden_check(expected[:, :-1], expected, tolerances)["ok"]
    assert not golden_check(np.full_like(expected, np.nan), expected, tolerances)["ok"]


def test_boxes_return_to_the_pixels_of_the_photo(folder: Path, split: CocoSplit, tmp_path: Path) -> None:
    """A scene drawn on a larger photo: the agent letterboxes as training did, and boxes come back in its pixels."""
    from PIL import Image

    scene = split.scenes[0]
    with Image.open(scene.path) as opened:
        opened.resize((288, 192), Image.Resampling.NEAREST).save(tmp_path / "photo.png")
    bundle = Bundle(str(folder))
    path = bundle.model_path("fp32", "onnxruntime", "1.32.0")
    runtime = runtimes.load("onnxruntime", runtimes.Loading(path, "input", "detections", 1))
    asked = (runtime, bundle, NAMES, str(tmp_path / "photo.png"))
    (answer,) = objects.seen_objects(*asked, 1, objects.Drawings(tmp_path / "drawn"))
    (best,) = answer["boxes"]
    truth = scene.boxes[NAMES.index(best["label"])] * 3
    assert np.abs(np.array(best["box"]) - truth).max() < 15
    assert best["class"] == NAMES.index(best["label"])
    assert answer["ms"] > 0
    assert answer["post_ms"] > 0
    with Image.open(answer["drawn"]) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (*CANVAS, 3)
    left, top = (round(edge / 3) for edge in best["box"][:2])
    assert tuple(pixels[top + 12, left]) == (0, 200, 60)
    every = next(iter(objects.seen_objects(*asked, None, None)))
    assert len(every["boxes"]) > 1
    assert "drawn" not in every
    json.dumps(every)


def test_the_agents_letterbox_is_the_trainings(split: CocoSplit) -> None:
    from deploy.agent.images import read_letterboxed

    for canvas in ((64, 96), (50, 60), (90, 70), (200, 500)):
        ours, scale = read_canvas(split.scenes[1], canvas)
        (theirs,) = read_letterboxed(str(split.scenes[1].path), (3, *canvas))
        assert np.array_equal(ours, theirs.pixels)
        assert (theirs.size, theirs.scale) == (split.scenes[1].size, scale)


def test_a_file_that_loses_ap_is_over_budget(
    detector: FcosDetector, split: CocoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = onnx_forward

    def worse(path: Path, *, as_written: bool = False) -> Any:
        forward = half(path, as_written=as_written)
        return lambda images: forward(images) * (0.5 if path.name == "fp16.onnx" else 1)

    monkeypatch.setattr("export.detector.onnx_forward", worse)
    manifest = build(detector, split, tmp_path / "bundle", ("fp32", "fp16"), max_drop=2.0)
    assert [entry["status"] for entry in manifest["files"]] == ["ok"] * 2 + ["over budget"] * 2
    assert "points of AP against float32" in manifest["verification"]["fp16.onnx"]["reason"]


def test_a_float32_file_that_moves_boxes_is_not_written(
    detector: FcosDetector, split: CocoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = onnx_forward

    def moved(path: Path, *, as_written: bool = False) -> Any:
        forward, offset = right(path, as_written=as_written), np.zeros(7, np.float32)
        offset[:4] = 0.5
        return lambda images: forward(images) + offset

    monkeypatch.setattr("export.detector.onnx_forward", moved)
    with pytest.raises(UserError, match=r"fp32\.onnx: moves boxes by 0\.5 pixels"):
        build(detector, split, tmp_path / "bundle", ("fp32",))
    assert not (tmp_path / "bundle").exists()


def test_a_changed_truth_breaks_the_seal(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(folder, copy)
    with (copy / "eval_boxes.json").open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match=r"eval_boxes\.json: its bytes are not"):
        verify_bundle(copy)


def test_a_profile_says_ap_and_times_the_suppression(folder: Path, manifest: Json, tmp_path: Path) -> None:
    from deploy.measure import profile_bundle

    how = {"device": "local", "preset": "quick", "threads": 1, "recipe": "r", "config_digest": "d"}
    record = profile_bundle(folder, precision="fp32", out=tmp_path / "student-fp32.json", **how)
    assert record["top1"] is None
    assert record["top1_interval"] is None
    assert record["ap"] == pytest.approx(manifest["verification"]["fp32.onnx"]["ap"], abs=0.5)
    assert record["golden"]["after"]["ok"]
    assert record["quantities_ms"]["post"]["p50"] > 0


def test_raw_outputs_of_the_test_scenes_lie_on_the_disk(
    detector: FcosDetector, split: CocoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's, and those of each file beside them: gigabytes of a large test set."""
    seen: list[Any] = []
    compared = DetectorChecker._compared

    def spied(self: DetectorChecker, reference: Any, raw: Any) -> Json:
        seen.extend((reference, raw) if len(raw) == len(split.scenes) else ())
        return compared(self, reference, raw)

    monkeypatch.setattr(DetectorChecker, "_compared", spied)
    monkeypatch.setattr("export.detector.NUM_GOLDEN", 2)
    build(detector, split, tmp_path / "bundle", ("fp32",))
    assert [type(raw) for raw in seen] == [np.memmap, np.memmap]
