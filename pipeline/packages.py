"""The packages a run rests on, with their licences: what goes into its SBOM, and what a licence check reads."""

from __future__ import annotations

import functools
import importlib.metadata
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from afpkd.record import OURS, our_version, write_text

_NO_TIME = datetime.fromtimestamp(0, UTC)  # a document of the packages, not of the day

SHIPPED = ("train", "timm", "rtx")
"""The extras that `make setup` installs for users; what only developers need (`dev`) is not shipped with."""

_FROM_THE_LICENCE_FILE = {
    "conda-inject": "MIT",
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "faster-coco-eval": "Apache-2.0",
    "snakemake-interface-common": "MIT",
    "snakemake-interface-logger-plugins": "MIT",
    "snakemake-interface-report-plugins": "MIT",
    "snakemake-interface-scheduler-plugins": "MIT",
    "snakemake-interface-storage-plugins": "MIT",
}
"""Packages whose metadata names none; read in the LICENSE file that each of them carries."""


class Package(NamedTuple):
    """One installed distribution; `licence` as its metadata says it, an SPDX expression where it has one."""

    name: str
    version: str
    licence: str


def shipped_packages(extras: tuple[str, ...] = SHIPPED) -> list[Package]:
    """Everything our own requirements bring in here, sorted by name; ourselves first."""
    found: dict[str, Package] = {}
    waiting = [Requirement(f"{OURS}[{','.join(extras)}]")]
    asked: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        new = {extra for extra in (*wanted.extras, "") if (name, extra) not in asked}
        asked |= {(name, extra) for extra in new}
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system or Python
        found[name] = Package(name, distribution.version, _licence(name, distribution.metadata))
        waiting += _required(distribution.requires or [], new)
    ours = found.pop(OURS)._replace(version=our_version())
    return [ours, *sorted(found.values())]


def write_sbom(path: Path) -> None:
    """Write the CycloneDX 1.6 document of `shipped_packages`. The same packages, the same bytes."""
    write_text(path, _sbom() + "\n")


@functools.cache  # reading what lies installed takes longer than all else of a report
def _sbom() -> str:
    packages = shipped_packages()
    ours, *others = map(_component, packages)
    ours.type = ComponentType.APPLICATION
    serial = uuid.uuid5(uuid.NAMESPACE_URL, str([tuple(package) for package in packages]))
    bom = Bom(components=others, serial_number=serial, metadata=BomMetaData(component=ours, timestamp=_NO_TIME))
    bom.register_dependency(ours, others)
    return JsonV1Dot6(bom).output_as_string(indent=2)


def _component(package: Package) -> Component:
    return Component(
        name=package.name,
        version=package.version,
        purl=PackageURL("pypi", name=package.name, version=package.version),
        bom_ref=f"{package.name}=={package.version}",
        licenses=[LicenseFactory().make_from_string(package.licence)],
    )


def _required(requirements: list[str], extras: set[str]) -> Iterator[Requirement]:
    environment = {key: str(value) for key, value in default_environment().items()}
    for requirement in map(Requirement, requirements):
        markers = requirement.marker
        if markers is None or any(markers.evaluate({**environment, "extra": extra}) for extra in extras):
            yield requirement


def _licence(name: str, metadata: importlib.metadata.PackageMetadata) -> str:
    classified = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    expression, free = ((metadata.get_all(key) or [""])[0] for key in ("License-Expression", "License"))
    said = expression or " OR ".join(classified) or free
    line = (said.strip().splitlines() or [""])[0].strip()
    return line if line and line != "UNKNOWN" else _FROM_THE_LICENCE_FILE.get(name, "unknown")
