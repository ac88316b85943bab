"""A run's records written by hand from their contracts, and readers for what the report makes of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from afpkd.record import Json, write_record
from pipeline.report import KINDS
from pipeline.report.records import Records, read_records
from pipeline.report.writing import write_report

ROLES: dict[str, Json] = {
    "teacher": {"arch": "resnet20", "method": "none", "num_params": 272_000, "top1": 89.5, "last": 89.25},
    "student": {"arch": "resnet8", "method": "afpkd", "num_params": 80_000, "top1": 86.4, "last": 86.1},
    "undistilled": {"arch": "resnet8", "method": "none", "num_params": 80_000, "top1": 85.2, "last": 85.2},
}
SIZES: dict[str, Json] = {
    "teacher": {"p50": 1.5, "macs": 40_000_000, "size_bytes": 1_120_000},
    "student": {"p50": 0.6, "macs": 12_500_000, "size_bytes": 330_000},
    "undistilled": {"p50": 0.61234567, "macs": 12_500_000, "size_bytes": 330_000},
}
MACHINE = {"system": "Linux-6.1-x86_64", "processor": "Example CPU @ 2 GHz", "num_cpus": 2}
VERSIONS = {"python": "3.11.2", "torch": "2.14.1"}
PROTOCOL = {
    "version": 1,
    "quantity": "t_e2e: input in host memory to output in host memory",
    "percentiles": "nearest rank",
    "outliers": "none removed",
    "preset": {
        "name": "quick",
        "min_seconds": 5,
        "min_count": 200,
        "warm_up": {"min_seconds": 1, "min_count": 50, "window": 50, "tolerance": 0.02, "max_seconds": 5},
    },
}


@dataclass(frozen=True)
class HandMadeRun:
    folder: Path

    def put_record(self, role: str, **changes: Any) -> None:
        write_record(self.folder / role / "record.json", role_record(role) | changes)

    def put_profile(self, role: str, folder: str = "local", **changes: Any) -> None:
        """Write a profile; changes go to its top level, and where its headline row has the key, to that too."""
        profile = profile_record(role) | changes
        profile["rows"][0] |= {key: value for key, value in changes.items() if key in profile["rows"][0]}
        write_record(self.folder / "profiles" / folder / f"{role}-{profile['precision']}.json", profile)

    def put_manifest(self, role: str, sha256: str, note: str | None = None) -> None:
        write_record(self.folder / role / "bundle" / "manifest.json", bundle_manifest(sha256, note))

    def records(self, **options: Any) -> Records:
        return read_records(self.folder, self.folder.name, **{"description": "A tiny recipe", **options})

    def report(self, **options: Any) -> Report:
        """Write the report; options: of `read_records`, and `budget`."""
        budget = options.pop("budget", None)
        paths = write_report([self.records(**options)], self.folder, budget)
        assert paths == {kind: self.folder / f"report.{kind}" for kind in KINDS}
        return report_at(self.folder)


@dataclass(frozen=True)
class Report:
    html: str
    md: str
    csv: str
    json: Json

    def page(self) -> Page:
        return Page(self.html)

    def tables(self) -> dict[str, list[dict[str, str]]]:
        """Read Markdown's tables: heading -> rows by column."""
        tables = {}
        for heading, block in re.findall(r"^## (.+)\n\n((?:\|.*\n)+)", self.md, flags=re.MULTILINE):
            cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
            tables[heading] = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
        return tables


def report_at(folder: Path) -> Report:
    texts = [(folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md", "csv", "json")]
    return Report(texts[0], texts[1], texts[2], json.loads(texts[3]))


@pytest.fixture
def made(tmp_path: Path) -> HandMadeRun:
    return hand_made_run(tmp_path / "tiny")


def hand_made_run(folder: Path) -> HandMadeRun:
    run = HandMadeRun(folder)
    for role in ROLES:
        run.put_record(role)
        run.put_profile(role)
        epochs: list[Json] = [{"epoch": n, "step": 10 * n, "lr": 0.1, "heldout_top1": 80.0 + n} for n in (1, 2, 3)]
        (run.folder / role / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    prompts = {"schema": "afpkd.prompts/1", "metrics": {"prompted_heldout_top1": 88.25, "masks": {"mean": [0.5]}}}
    write_record(run.folder / "prompts" / "record.json", prompts)
    return run


class Page(HTMLParser):
    """What a browser sees: start tags with their attributes, and the text by kind of element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._into = self.words
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._into = {"script": self.scripts, "style": self.styles}.get(tag, self.words)

    def handle_endtag(self, tag: str) -> None:
        self._into = self.words

    def handle_data(self, data: str) -> None:
        self._into.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def role_record(role: str) -> Json:
    facts = ROLES[role]
    return {
        "schema": "afpkd.checkpoint/1",
        "role": role,
        "recipe": "tiny",
        "arch": facts["arch"],
        "method": facts["method"],
        "metrics": {"test_top1_last": facts["last"], "test_top1_selected": facts["top1"], "heldout_top1": 87.75},
        "selected_epoch": 2,
        "epochs": 3,
        "num_params": facts["num_params"],
        "num_classes": 10,
        "in_channels": 1,
        "image_size": [28, 28],
        "data": "fashion_mnist_5k",
        "seed": 17,
        "config_digest": "c0ffee" * 10 + "abcd",
        "inputs": {"data": "da7a" * 16, **({"prompts": "9a9e" * 16} if role == "student" else {})},
        "outputs": {"model.safetensors": "beef" * 16},
        "versions": VERSIONS,
        "git_commit": "0123456789abcdef0123456789abcdef01234567+",
        "machine": MACHINE,
        "wall_s": 12.5,
        "finished_at": "2026-01-02T03:04:05+00:00",
    }


def profile_record(role: str) -> Json:
    sizes = SIZES[role]
    row = {
        "device": "local",
        "role": role,
        "precision": "fp32",
        "scenario": "single_stream",
        "batch": 1,
        "threads": 2,
        "n": 431,
        "latency_ms": {"p50": sizes["p50"], "p90": sizes["p50"] + 0.25, "p99": None},
        "throughput_ips": 1234.5678901234,
        "macs": sizes["macs"],
        "num_params": ROLES[role]["num_params"],
        "size_bytes": sizes["size_bytes"],
        "top1": ROLES[role]["top1"],
        "verdict": "VALID",
        "reasons": [],
    }
    offline = {**row, "scenario": "offline", "batch": 8, "throughput_ips": 4000.25}
    return {
        "schema": "afpkd.profile/1",
        **row,
        "rows": [row, offline],
        "arch": ROLES[role]["arch"],
        "preset": "quick",
        "peak_memory_bytes": 84_000_000,
        "runtime": {"name": "onnxruntime", "version": "1.32.0", "providers": ["CPUExecutionProvider"], "threads": 2},
        "protocol": PROTOCOL,
        "golden": {"before": {"ok": True}, "after": {"ok": True}},
        "machine": MACHINE,
        "inputs": {"manifest.json": "aa" * 32, "fp32.onnx": "bb" * 32},
        "outputs": {f"{role}-fp32.npz": "cc" * 32},
        "versions": {"python": "3.11.2", "onnxruntime": "1.32.0"},
        "git_commit": None,
        "config_digest": "dd" * 32,
        "finished_at": "2026-01-02T03:10:05+00:00",
    }


def bundle_file(precision: str, sha256: str, **facts: Any) -> Json:
    """An entry of a manifest's `files`."""
    entry: Json = {"path": f"{precision}.onnx", "precision": precision, "sha256": sha256, "size_bytes": 315_000}
    entry |= {"runtime": "any", "min_version": None, "max_version": None, "opset": 18, "status": "ok", "reason": None}
    return {**entry, "tolerances": {"max_abs": 1e-3, "cosine": 0.999, "argmax_agreement": 99.0}, **facts}


def bundle_check(**facts: Any) -> Json:
    """What a manifest's `verification` says of a file."""
    errors = dict.fromkeys(("max_abs_error", "max_rel_error", "sqnr_db", "cosine"))
    return {**errors, "num_not_finite": 0, "num": 1234, "ties": [], "max_drop": 1.0, **facts}


def bundle_manifest(sha256: str, note: str | None = None) -> Json:
    """One that holds by its schema."""
    value = {"name": "input", "shape": ["batch", 1, 28, 28], "dtype": "float32"}
    return {
        "schema": "afpkd.bundle/1",
        "role": "student",
        "arch": "resnet8",
        "task": "classification",
        "num_classes": 10,
        "num_params": 75_000,
        "input": value,
        "output": {**value, "name": "logits", "shape": ["batch", 10]},
        "preprocessing": {"layout": "NCHW", "scale": 1 / 255, "mean": [0.5], "std": [0.5]},
        "verification": {},
        "build_check": {},
        "sensitivity": [],
        "torch_top1": 86.4,
        "golden": {"path": "golden.npz", "num": 64, "tolerances": {}},
        "labels": "labels.txt",
        "hashes": {},
        "lineage": {"calibration": None},
        "versions": {},
        "git_commit": None,
        "machine": {},
        "files": [bundle_file("fp32", sha256)],
        "macs": {"macs": 12_500_000, "fvcore": 12_500_000, "torch": 12_500_000, "agree": note is None, "note": note},
        "evaluation": {"images": "eval.npy", "labels": "eval_labels.npy", "num": 1234},
    }


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `photos` of two classes, four images each: what `PHOTOS` of recipe_files reads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for value in range(4):
            Image.new("RGB", (16, 8), (value,) * 3).save(tmp_path / "photos" / name / f"{value}.png")
    return tmp_path
