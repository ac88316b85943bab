"""A model that the pipeline did not train, as a bundle with the same files and the same checks."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from afpkd.data.folder import FolderSplit, read_folder
from afpkd.errors import UserError
from afpkd.record import Json, digest, expanded, sha256_of
from export.bundle import require_place
from pipeline.foreign_spec import Spec, read_spec
from pipeline.progress import StageProgress
from pipeline.screen import waiting

if TYPE_CHECKING:
    from export.calibration import Calibration
    from export.making import Source

_SEED = 0  # of the calibration images


@waiting("export", "making and checking the files")
def export_foreign(
    *, onnx: Path | None, weights: Path | None, arch: str | None, spec_file: Path | None, out: Path | None
) -> Json:
    """Make the bundle `out` from an ONNX file, or from weights and the function that makes their network."""
    from deploy.build_check import build_check
    from export.build import build_bundle
    from export.making import Order
    from export.quantize import Int8

    _check_options(onnx, weights, arch, spec_file, out)
    assert spec_file is not None, "checked"
    assert out is not None, "checked"
    spec = read_spec(spec_file)
    progress = StageProgress("export")
    images = _read(spec, spec_file, spec.data.split)
    for note in images.others:
        progress.say(note)
    name, source, files = _source(spec, onnx, weights, arch, progress)
    wanted = spec.export
    order = Order(
        role="foreign",
        arch=name,
        mean=spec.input.mean,
        std=spec.input.std,
        precisions=wanted.precisions,
        opset=wanted.opset,
        lineage={
            "config_digest": digest(dataclasses.asdict(spec)),
            "data": hashlib.sha256(images.split.images.tobytes() + images.split.labels.tobytes()).hexdigest(),
            "unreadable_images": images.unreadable,
            **{kind: sha256_of(file) for kind, file in files.items()},
        },
        out=out,
        calibration=_calibration(spec, spec_file, images, progress) if "int8" in wanted.precisions else None,
        int8=Int8(wanted.quantizer, wanted.calibration, wanted.int8_exclude),
        legacy=wanted.legacy,
        max_drop=wanted.max_drop,
        build_check=build_check,
        say=progress.say,
    )
    split = images.split
    return build_bundle(source, order, images=split.images, labels=split.labels, label_names=images.label_names)


def _check_options(
    onnx: Path | None, weights: Path | None, arch: str | None, spec: Path | None, out: Path | None
) -> None:
    if (onnx is None) == (weights is None):
        raise UserError(
            "E_USAGE", "a foreign model is --onnx MODEL.onnx, or --weights W.pth with --arch FILE.py:FUNCTION"
        )
    if (weights is None) != (arch is None):
        raise UserError(
            "E_USAGE", "--weights W.pth and --arch FILE.py:FUNCTION go together: the file holds numbers, no network"
        )
    if spec is None or out is None:
        raise UserError(
            "E_USAGE", "a foreign model needs --spec SPEC.toml (its input, classes and images) and --out FOLDER"
        )
    for path in (onnx, weights):
        if path is not None and not path.is_file():
            raise UserError("E_FILE", f"{path}: no such file: check the path")
    require_place(out)
    for path in (onnx, weights):
        if path is not None and path.resolve().parent == out.resolve():
            raise UserError("E_OUT", f"{path}: lies in {out}, which is replaced: name another folder")


def _read(spec: Spec, spec_file: Path, split: str, num: int | None = None) -> FolderSplit:
    folder = spec_file.parent / expanded(spec.data.path) / split
    found = read_folder(folder, size=spec.input.image_size, channels=len(spec.input.mean), num=num, seed=_SEED)
    if len(found.label_names) != spec.num_classes:
        raise UserError(
            "E_DATA_CLASSES", f"{folder}: {len(found.label_names)} classes, but num_classes = {spec.num_classes}"
        )
    return found


def _source(
    spec: Spec, onnx: Path | None, weights: Path | None, arch: str | None, progress: StageProgress
) -> tuple[str, Source, dict[str, Path]]:
    """(name, the network, the files it comes from)."""
    from afpkd.checkpoint import load_weights
    from afpkd.models.user_file import cause_of, model_from_file
    from export.foreign_graph import at_opset, graph_from_file
    from export.graph_cost import graph_cost
    from export.making import Source, source_from_model
    from export.verify import graph_forward

    shape = len(spec.input.mean), *spec.input.image_size
    if onnx is not None:
        proto = graph_from_file(onnx, channels=shape[0], image_size=spec.input.image_size, num_classes=spec.num_classes)
        graphs = Source(graph_forward(proto), lambda opset: at_opset(proto, opset, onnx), graph_cost(proto, shape))
        return onnx.stem, graphs, {"weights": onnx}
    assert weights is not None, "checked"
    assert arch is not None, "checked"
    model = model_from_file(arch).eval()
    progress.say(load_weights(model, weights, key=spec.weights.key, strip_prefix=spec.weights.strip_prefix))
    file, _, function = arch.rpartition(":")
    try:
        source = source_from_model(model, shape)
    except Exception as error:  # whatever a stranger's forward raises
        told = f"{function}, on images of {'x'.join(map(str, shape))}, as the spec says: {cause_of(error)}"
        raise UserError("E_NETWORK_FIT", told) from error
    return function, source, {"weights": weights, "architecture": expanded(file)}


def _calibration(spec: Spec, spec_file: Path, images: FolderSplit, progress: StageProgress) -> Calibration:
    """Images of the calibration split; of the evaluated one where the spec names none, which the manifest says."""
    from export.calibration import Calibration, calibration_images

    num, split = spec.export.calibration_images, spec.data.calibration_split
    if split is not None:
        found = _read(spec, spec_file, split, num)
        if len(found.ids) < num:
            raise UserError(
                "E_DATA_LITTLE",
                f"data.calibration_split '{split}' has {len(found.ids)} images, int8 takes {num}: leave int8 out",
            )
        return Calibration(found.split.images, found.ids, split)
    warning = f"calibrated on images of the evaluated split '{spec.data.split}': its int8 accuracy is flattering"
    progress.say(f"{warning}: name a data.calibration_split")
    return calibration_images(images.split.images, _SEED, num)._replace(source=spec.data.split, warning=warning)
