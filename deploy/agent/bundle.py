"""A bundle on the device: its manifest, its files (each checked against the manifest's hash), its preprocessing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import AgentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Json = dict[str, Any]

SCHEMA = "afpkd.bundle/1"


class Bundle:
    """Reads `folder`, a bundle; AgentError E_BUNDLE or E_HASH where it is not what its manifest says."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self.manifest = _read_manifest(self._folder / "manifest.json")

    def model_path(self, precision: str, runtime: str) -> Path:
        """Give the checked path of the file for `precision` that `runtime` can load."""
        files = self.manifest["files"]
        for entry in files:
            if entry["precision"] == precision and entry["runtime"] in ("any", runtime):
                return self._checked(entry["path"])
        known = ", ".join("{} ({})".format(entry["precision"], entry["runtime"]) for entry in files)
        raise AgentError("E_BUNDLE", f"no {precision} file for {runtime}: the bundle has {known}")

    def golden(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Give the golden images (uint8, N,C,H,W) and the logits they must produce (float32, N,K)."""
        with np.load(self._checked(self.manifest["golden"]["path"])) as arrays:
            return arrays["images"], arrays["logits"]

    def evaluation_images(self) -> NDArray[np.uint8]:
        """Give the evaluation set (uint8, N,C,H,W), mapped: it may be larger than the device's memory."""
        images: NDArray[np.uint8] = np.load(self._checked(self.manifest["evaluation"]["images"]), mmap_mode="r")
        return images

    def preprocess(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn pixels (uint8, N,C,H,W) into the network's input: `(pixels * scale - mean) / std` per channel."""
        rule = self.manifest["preprocessing"]
        mean = np.asarray(rule["mean"], dtype=np.float32).reshape(-1, 1, 1)
        std = np.asarray(rule["std"], dtype=np.float32).reshape(-1, 1, 1)
        return (images.astype(np.float32) * np.float32(rule["scale"]) - mean) / std

    def _checked(self, name: str) -> Path:
        path = self._folder / name
        try:
            actual = _sha256_of(path)
        except OSError as error:
            raise AgentError("E_BUNDLE", f"{path}: {error.strerror}: send the bundle again") from None
        if actual != self.manifest["hashes"].get(name):
            raise AgentError("E_HASH", f"{path}: its bytes are not those of the manifest: export it again")
        return path


def _read_manifest(path: Path) -> Json:
    try:
        with path.open(encoding="utf-8") as file:
            manifest = json.load(file)
    except (OSError, ValueError) as error:
        raise AgentError("E_BUNDLE", f"{path}: not a readable manifest ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise AgentError("E_BUNDLE", f"{path}: not a manifest of schema {SCHEMA}: export it again")
    return manifest


def _sha256_of(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            sha256.update(block)
    return sha256.hexdigest()
