"""What we ship with: every package known by its licence, none of them GPL, and an SBOM that is one."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

from afpkd.record import OURS
from pipeline.packages import SHIPPED, _licence, _sbom, shipped_packages, write_sbom

PERMITTED = re.compile(
    r"\b(MIT|MIT-0|0?BSD|Apache|ISC|PSF|Python Software Foundation|MPL|Mozilla|Zlib|CC0|BSL|HPND|Unlicense|NVIDIA"
    r"|Proprietary)\b"
)
CLUSTER = {
    "cffi==2.1.1": "MIT-0",
    "cryptography==50.0.2": "Apache-2.0 OR BSD-3-Clause",
    "durationpy==0.11": "MIT",
    "google-auth==2.63.0": "Apache Software License",
    "kubernetes==32.0.1": "Apache Software License",
    "oauthlib==4.0.1": "BSD-3-Clause",
    "pandas==3.1.1": "BSD-3-Clause",
    "pyasn1==0.6.5": "BSD-2-Clause",
    "pyasn1-modules==0.4.2": "BSD License",
    "pycparser==3.12": "BSD-3-Clause",
    "requests-oauthlib==2.0.0": "BSD License",
    "six==1.17.0": "MIT License",
    "snakemake-executor-plugin-kubernetes==0.5.1": "MIT License",
    "snakemake-executor-plugin-slurm==2.8.0": "MIT",
    "snakemake-executor-plugin-slurm-jobstep==0.6.1": "MIT License",
    "websocket-client==1.9.2": "Apache-2.0",
}
"""What `make setup-cluster` adds, as the metadata of these versions say it: they are not installed here."""
ROOT = Path(__file__).parents[2]
MIXED = {"docutils": "its library is in the public domain or BSD; one Emacs file in its sources is GPL"}


def test_every_package_we_ship_with_has_a_licence_that_permits_it() -> None:
    packages = {package.name: package.licence for package in shipped_packages()}
    assert {"torch", "onnx", "onnxruntime", "fvcore", "safetensors", "numpy", "snakemake"} <= packages.keys()
    refused = {name: said for name, said in packages.items() if "GPL" in said and name not in MIXED}
    assert refused == {}, "AGPL and GPL are not shipped with; LGPL asks for a look"
    unknown = {name: said for name, said in packages.items() if not PERMITTED.search(said)}
    assert unknown == {}, "read its LICENSE file, then name it in pipeline/packages.py"


def locked(name: str) -> set[str]:
    return set(re.findall(r"^[a-z0-9-]+==[\w.]+", (ROOT / name).read_text(), flags=re.MULTILINE))


def test_what_a_cluster_adds_has_a_licence_that_permits_it_too() -> None:
    added = locked("requirements-cluster.lock") - locked("requirements.lock")
    assert added == CLUSTER.keys(), "look at the new version's metadata, then write down what it says"
    assert [said for said in CLUSTER.values() if "GPL" in said or not PERMITTED.search(said)] == []


@pytest.mark.skipif("AFPKD_CLUSTER" not in os.environ, reason="needs the cluster's packages, in the folder it names")
def test_the_clusters_packages_say_so_themselves() -> None:
    found = {
        f"{canonicalize_name(one.name)}=={one.version}": _licence(one.name, one.metadata)
        for one in importlib.metadata.distributions(path=[os.environ["AFPKD_CLUSTER"]])
    }
    assert {name: found[name] for name in CLUSTER} == CLUSTER


@pytest.mark.parametrize("said", ["LIMITED", "SUBMIT", "Unlimited use", "BSDL-like", "nobody knows"])
def test_a_licence_is_no_part_of_a_word(said: str) -> None:
    assert not PERMITTED.search(said)


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
    write_sbom(tmp_path / "sbom.cdx.json")
    text = (tmp_path / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    assert document["metadata"]["component"]["name"] == OURS
    assert len(document["components"]) == len(shipped_packages()) - 1 > 100
    found = {component["name"]: component["purl"] for component in document["components"]}
    assert found["torch"].startswith("pkg:pypi/torch@2.")
    _sbom.cache_clear()
    write_sbom(tmp_path / "again.cdx.json")
    assert (tmp_path / "again.cdx.json").read_text() == text


def test_a_package_without_a_licence_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.packages._FROM_THE_LICENCE_FILE", {})
    assert "unknown" in {package.licence for package in shipped_packages()}
