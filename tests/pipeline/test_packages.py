"""What we ship with: every package known by its licence, none of them GPL, and an SBOM that is one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from afpkd.record import OURS
from pipeline.packages import SHIPPED, shipped_packages, write_sbom

PERMITTED = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL|Mozilla|Zlib|CC0|BSL|HPND|Unlicense|NVIDIA|Proprietary|0BSD"
)
MIXED = {"docutils": "its library is in the public domain or BSD; one Emacs file in its sources is GPL"}


def test_every_package_we_ship_with_has_a_licence_that_permits_it() -> None:
    packages = {package.name: package.licence for package in shipped_packages()}
    assert {"torch", "onnx", "onnxruntime", "fvcore", "safetensors", "numpy", "snakemake"} <= packages.keys()
    refused = {name: said for name, said in packages.items() if "GPL" in said and name not in MIXED}
    assert refused == {}, "AGPL and GPL are not shipped with; LGPL asks for a look"
    unknown = {name: said for name, said in packages.items() if not PERMITTED.search(said)}
    assert unknown == {}, "read its LICENSE file, then name it in pipeline/packages.py"


def test_proprietary_packages_are_nvidias_alone() -> None:
    proprietary = [package.name for package in shipped_packages() if re.search("NVIDIA|Proprietary", package.licence)]
    assert [name for name in proprietary if not name.startswith(("nvidia-", "tensorrt-rtx", "cuda-toolkit"))] == []


def test_the_list_is_what_pip_would_install() -> None:
    """Against pip's own reading of our requirements in this environment."""
    names = {package.name for package in shipped_packages()}
    command = [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    developers = {package.name for package in shipped_packages((*SHIPPED, "dev"))} - names
    assert {"ruff", "mypy", "pytest"} <= developers
    assert not names & {"ruff", "mypy", "pytest", "torchdistill"}


def test_the_sbom_is_cyclonedx_and_the_same_each_time(tmp_path: Path) -> None:
    num = write_sbom(tmp_path / "sbom.cdx.json")
    text = (tmp_path / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    assert document["metadata"]["component"]["name"] == OURS
    assert len(document["components"]) == num - 1 > 100
    found = {component["name"]: component["purl"] for component in document["components"]}
    assert found["torch"].startswith("pkg:pypi/torch@2.")
    write_sbom(tmp_path / "again.cdx.json")
    assert (tmp_path / "again.cdx.json").read_text() == text


def test_a_package_without_a_licence_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.packages._FROM_THE_LICENCE_FILE", {})
    assert "unknown" in {package.licence for package in shipped_packages()}
