"""Which board, which system: L4T, JetPack, CUDA and TensorRT as their packages say.

A release this code has never heard of is no error: what its files say is passed on as it is.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from .kernel_files import text_of

if TYPE_CHECKING:
    from pathlib import Path

    Json = dict[str, Any]


def describe(root: Path) -> Json:
    """Give `board`, `system`, `l4t`, `jetpack`, `cuda`, `libnvinfer`; None for what is not there."""
    packages = _installed(root)
    l4t = _l4t(text_of(root / "etc/nv_tegra_release"), packages)
    jetpack = packages.get("nvidia-jetpack")
    return {
        "board": text_of(root / "proc/device-tree/model").strip("\0 \n") or None,
        "system": _os_name(text_of(root / "etc/os-release")),
        "l4t": l4t,
        "jetpack": _upstream(jetpack) if jetpack else _jetpack_of(l4t),
        "cuda": _cuda(root, packages),
        "libnvinfer": _first_version(packages, r"libnvinfer\d+"),
    }


def _l4t(release: str, packages: dict[str, str]) -> str | None:
    """Such as 36.4.3, from `# R36 (release), REVISION: 4.3, …`, or else from the version of nvidia-l4t-core."""
    found = re.search(r"R(\d+)\b.*?REVISION:\s*([\d.]+)", release)
    if found:
        return f"{found[1]}.{found[2]}"
    core = packages.get("nvidia-l4t-core")
    return _upstream(core) if core else None


def _jetpack_of(l4t: str | None) -> str | None:
    """Guess the JetPack, which boards flashed without the meta-package do not name. None for an L4T not listed here."""
    if l4t is None:
        return None
    version = [int(part) for part in l4t.split(".") if part]
    for prefix, jetpack in _JETPACKS:
        if version[: len(prefix)] == list(prefix):
            return jetpack
    return None


_JETPACKS = (
    ((32,), "4.x"),
    ((35, 1), "5.0.2"),
    ((35,), "5.1.x"),
    ((36, 2), "6.0 DP"),
    ((36, 3), "6.0"),
    ((36, 4, 0), "6.1"),
    ((36,), "6.2.x"),
    ((38, 2), "7.0"),
    ((38, 4), "7.1"),
    ((39,), "7.2.x"),
)
"""L4T to JetPack, the first match; from NVIDIA's archive and jetson-containers' table."""


def _cuda(root: Path, packages: dict[str, str]) -> str | None:
    try:
        version: str = json.loads(text_of(root / "usr/local/cuda/version.json"))["cuda"]["version"]
    except (ValueError, KeyError, TypeError):
        return _first_version(packages, r"cuda-cudart-\d+-\d+")
    return version


def _installed(root: Path) -> dict[str, str]:
    """Package -> version of every package that dpkg calls installed."""
    packages = {}
    for paragraph in text_of(root / "var/lib/dpkg/status").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.+)$", paragraph, flags=re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and "Package" in fields:
            packages[fields["Package"]] = fields.get("Version", "")
    return packages


def _first_version(packages: dict[str, str], pattern: str) -> str | None:
    """The newest of the packages whose whole name matches, as its upstream version."""
    found = [_upstream(version) for name, version in packages.items() if re.fullmatch(pattern, name)]
    return max(found, key=lambda version: [int(part) for part in re.findall(r"\d+", version)], default=None)


def _upstream(version: str) -> str:
    """`8.5.2-1+cuda11.4` -> `8.5.2`, `6.2+b77` -> `6.2`, `36.4.3-20250107174145` -> `36.4.3`."""
    return re.split(r"[-+]", version)[0]


def _os_name(text: str) -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', text, flags=re.MULTILINE)
    return found[1] if found else None
