"""A bundle on the device: its manifest, its files (each checked against the manifest's hash), its preprocessing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import AgentError
from .runtimes import files_of
from .store import sha256_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Json = dict[str, Any]

SCHEMA = "afpkd.bundle/1"


class Bundle:
    """Reads `folder`, a bundle; AgentError E_BUNDLE or E_HASH where it is not what its manifest says."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self.manifest = _read_manifest(self._folder / "manifest.json")
        self._sound: set[str] = set()

    def entry(self, precision: str, runtime: str, version: str | None = None) -> Json:
        """Give the manifest's entry of the file for `precision` that this version of `runtime` can load.

        The first that is for this runtime or for any, and whose bounds hold the version: inclusive, and "8.6" includes
        8.6.1. version None (not known, or TensorRT-RTX, whose numbers begin anew): only entries without an upper bound.
        """
        files: list[Json] = self.manifest["files"]
        for entry in files:
            if entry["precision"] == precision and _takes(entry, files_of(runtime), version):
                return entry
        known = ", ".join(map(_named, files))
        told = f"no {precision} file for {runtime} {version or ''}".rstrip() + f": the bundle has {known}"
        if files_of(runtime) == "tensorrt" and (version or "").startswith("8."):
            told += ": export again with `legacy = true` under [export], which TensorRT 8.5 and 8.6 read"
        raise AgentError("E_BUNDLE", told)

    def model_path(self, precision: str, runtime: str, version: str | None = None) -> Path:
        """Give the checked path of the file that `entry` names."""
        return self._checked(self.entry(precision, runtime, version)["path"])

    def tolerances(self, entry: Json) -> dict[str, float]:
        """How far the golden logits of this file may stray: its own tolerances, else those of its precision."""
        found: dict[str, float] = entry.get("tolerances") or self.manifest["golden"]["tolerances"][entry["precision"]]
        return found

    def golden(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Give the golden images (uint8, N,C,H,W) and the logits they must produce (float32, N,K)."""
        path = self._checked(self.manifest["golden"]["path"])
        try:
            with np.load(path) as arrays:
                return arrays["images"], arrays["logits"]
        except Exception as error:  # zipfile and numpy raise a dozen kinds for an archive that is none of ours
            raise AgentError("E_BUNDLE", f"{path}: not an archive of arrays ({error}): export it again") from None

    def evaluation_images(self) -> NDArray[np.uint8]:
        """Give the evaluation set (uint8, N,C,H,W), mapped: it may be larger than the device's memory."""
        images: NDArray[np.uint8] = np.load(self._checked(self.manifest["evaluation"]["images"]), mmap_mode="r")
        return images

    def evaluation_scenes(self) -> list[tuple[tuple[int, int], float]]:
        """Give of each evaluation image of a detector its height and width, and its scale on the canvas."""
        text = self._checked(self.manifest["evaluation"]["labels"]).read_text(encoding="utf-8")
        return [((image["height"], image["width"]), image["scale"]) for image in json.loads(text)["images"]]

    def evaluation_labels(self) -> NDArray[np.int64] | None:
        """Give the evaluation set's labels (int64, N); None where the host has them, or they are boxes."""
        name = self.manifest["evaluation"]["labels"]
        if self.manifest["task"] == "detection" or not (self._folder / name).exists():
            return None
        labels: NDArray[np.int64] = np.load(self._checked(name))
        return labels

    def preprocess(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn pixels (uint8, N,C,H,W) into the network's input: `(pixels * scale - mean) / std` per channel."""
        rule = self.manifest["preprocessing"]
        mean = np.asarray(rule["mean"], dtype=np.float32).reshape(-1, 1, 1)
        std = np.asarray(rule["std"], dtype=np.float32).reshape(-1, 1, 1)
        return (images.astype(np.float32) * np.float32(rule["scale"]) - mean) / std

    def _checked(self, name: str) -> Path:
        if Path(name).name != name:
            raise AgentError("E_BUNDLE", f"{name} leaves the bundle's folder: do not trust this bundle")
        path = self._folder / name
        if name in self._sound:  # an evaluation set may take minutes to hash
            return path
        _require_file(path)
        try:
            actual = sha256_of(path)
        except OSError as error:
            raise AgentError("E_BUNDLE", f"{path}: {error.strerror}: send the bundle again") from None
        if actual != self.manifest["hashes"].get(name):
            raise AgentError("E_HASH", f"{path}: its bytes are not those of the manifest: export it again")
        self._sound.add(name)
        return path


def _named(entry: Json) -> str:
    """Say for what a file is: `fp16 (tensorrt from 10.0 to 10.16)`."""
    bounds = [f" {word} {entry[key]}" for key, word in (("min_version", "from"), ("max_version", "to")) if entry[key]]
    return "{} ({}{})".format(entry["precision"], entry["runtime"], "".join(bounds))


def _takes(entry: Json, runtime: str, version: str | None) -> bool:
    if entry["runtime"] not in ("any", runtime):
        return False
    low, high = entry["min_version"], entry["max_version"]
    if version is None:
        return high is None
    return (low is None or _cut(version, low) >= _numbers(low)) and (
        high is None or _cut(version, high) <= _numbers(high)
    )


def _cut(version: str, bound: str) -> list[int]:
    """A version to the precision of a bound: 8.6.1 against "8.6" is 8.6."""
    return _numbers(version)[: len(_numbers(bound))]


def _numbers(version: str) -> list[int]:
    found = re.match(r"\d+(?:\.\d+)*", version)  # what follows (b1, +cu12) is not compared
    return [int(part) for part in found.group().split(".")] if found else []


def _require_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise AgentError("E_BUNDLE", f"{path}: is no file: do not trust this bundle")


def _read_manifest(path: Path) -> Json:
    _require_file(path)
    try:
        with path.open(encoding="utf-8") as file:
            manifest = json.load(file)
    except (OSError, ValueError) as error:
        raise AgentError("E_BUNDLE", f"{path}: not a readable manifest ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise AgentError("E_BUNDLE", f"{path}: not a manifest of schema {SCHEMA}: export it again")
    return manifest
