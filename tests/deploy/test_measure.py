"""The stage end to end: bundle -> agent in a fresh process -> record and samples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import deploy.measure
from afpkd.errors import UserError
from afpkd.record import sha256_of
from deploy import jobs, presets
from deploy.devices import find_device
from deploy.measure import profile_bundle
from deploy.presets import Preset, WarmUp, find_preset
from deploy.statistics import latency_ms, nearest_rank
from deploy.target import Target
from pipeline.record_keys import PROFILE
from tests.deploy.conftest import linear_weight, reference_logits
from tests.record_tables import missing, untold

if TYPE_CHECKING:
    from tests.deploy.conftest import HandMadeBundle

HEADLINE = {
    "mode",
    "device",
    "role",
    "precision",
    "scenario",
    "batch",
    "threads",
    "n",
    "latency_ms",
    "throughput_ips",
    "macs",
    "num_params",
    "size_bytes",
    "top1",
    "verdict",
    "reasons",
    "clocks",
    "power_mode",
    "quantities_ms",
    "energy",
    "num_runs",
    "spread_percent",
    "fps",
    "missed_percent",
    "sustainable_fps",
}


def measured(bundle: HandMadeBundle, out: Path, **changes: Any) -> dict[str, Any]:
    arguments = {
        "device": "local",
        "precision": "fp32",
        "preset": "instant",
        "threads": 1,
        "recipe": "tiny",
        "config_digest": "0123",
    }
    return profile_bundle(bundle.folder, out=out, **{**arguments, **changes})


@pytest.mark.usefixtures("instant")
def test_record_holds_the_row_and_where_it_comes_from(bundle: HandMadeBundle, tmp_path: Path) -> None:
    out = tmp_path / "profiles" / "local" / "student-fp32.json"
    record = measured(bundle, out)
    assert json.loads(out.read_text()) == record
    assert record["schema"] == "afpkd.profile/1"
    assert [set(row) for row in record["rows"]] == [HEADLINE]
    assert {key: record[key] for key in HEADLINE} == record["rows"][0]
    assert (record["device"], record["role"], record["precision"]) == ("local", "student", "fp32")
    assert (record["scenario"], record["batch"], record["threads"]) == ("single_stream", 1, 1)
    assert record["macs"] == record["num_params"] == 240
    assert record["size_bytes"] == (bundle.folder / "fp32.onnx").stat().st_size
    low, high = record["top1_interval"]
    assert low < record["top1"] == 100 * (80 - bundle.wrong) / 80 < high
    assert record["golden"]["before"]["ok"]
    assert record["golden"]["after"]["ok"]
    assert record["peak_memory_bytes"] > 1 << 20
    assert record["runtime"]["threads_asked"] == 1
    assert record["inputs"] == {
        "manifest.json": sha256_of(bundle.folder / "manifest.json"),
        "fp32.onnx": sha256_of(bundle.folder / "fp32.onnx"),
    }
    assert (record["recipe"], record["config_digest"], record["preset"]) == ("tiny", "0123", "instant")
    assert untold(record, PROFILE) == missing(record, PROFILE) == []


@pytest.mark.usefixtures("instant")
def test_numbers_are_those_of_the_raw_samples_beside_it(bundle: HandMadeBundle, tmp_path: Path) -> None:
    record = measured(bundle, tmp_path / "row.json")
    assert record["outputs"] == {"row.npz": sha256_of(tmp_path / "row.npz")}
    with np.load(tmp_path / "row.npz") as arrays:
        samples = arrays["samples_ns"]
        assert len(arrays["warmup_ns"]) >= 30
        expected = reference_logits(np.load(bundle.folder / "eval.npy"), linear_weight())
        np.testing.assert_allclose(arrays["logits"], expected, rtol=1e-4, atol=1e-4)
    assert record["n"] == len(samples) == 200
    table = record["latency_ms"]
    assert table == latency_ms(samples)
    assert (table["p50"], table["p90"]) == (nearest_rank(samples, 50) / 1e6, nearest_rank(samples, 90) / 1e6)
    known = [table[key] for key in ("p50_lo", "p50", "p50_hi", "p90", "p90_hi", "max") if table[key] is not None]
    assert known == sorted(known)  # a busy machine's samples hang together: a bound may not exist
    assert (table["p99"], table["p99_lo"], table["p99_hi"], table["p99_bound"]) == (None,) * 4  # 200 < 662
    assert record["timing"]["num_effective"] <= 200
    assert record["timing"]["wander_percent"] >= 0
    low, high = record["timing"]["drift_interval_percent"]
    assert low <= record["timing"]["drift_percent"] <= high
    assert record["throughput_ips"] == pytest.approx(1e9 / samples.mean())


@pytest.mark.usefixtures("instant")
def test_a_golden_mismatch_is_invalid_and_not_timed(bundle: HandMadeBundle, tmp_path: Path) -> None:
    with np.load(bundle.folder / "golden.npz") as arrays:
        images, logits = arrays["images"], arrays["logits"]
    logits[3, 2] += 0.1
    np.savez(bundle.folder / "golden.npz", images=images, logits=logits)
    bundle.replace("golden.npz", (bundle.folder / "golden.npz").read_bytes())
    record = measured(bundle, tmp_path / "row.json")
    assert record["verdict"] == "INVALID"
    assert len(record["reasons"]) == 1
    assert record["reasons"][0].startswith("golden mismatch")
    assert record["n"] == 0
    assert set(record["latency_ms"].values()) == {None}
    assert record["timing"]["drift_percent"] is record["timing"]["num_effective"] is None
    assert record["throughput_ips"] is None
    assert record["golden"]["after"] is None
    assert record["golden"]["before"]["max_abs"] == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device": "locl"}, r"unknown device 'locl': did you mean 'local'\?"),
        ({"device": "orin1"}, r"unknown device 'orin1': known are local"),
        ({"preset": "quik"}, r"unknown preset 'quik': did you mean 'quick'\?"),
        ({"precision": "int8"}, r"no int8 file for onnxruntime \(it has: fp32\)"),
        ({"threads": -1}, r"threads = -1"),
    ],
)
def test_a_users_mistake_is_one_line_and_leaves_nothing(
    bundle: HandMadeBundle, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        measured(bundle, tmp_path / "row.json", **{"preset": "quick", **changes})
    assert not list(tmp_path.glob("row*"))


@pytest.mark.usefixtures("instant")
def test_a_failed_measurement_leaves_no_record(bundle: HandMadeBundle, tmp_path: Path) -> None:
    out, bundle_labels = tmp_path / "row.json", np.load(bundle.folder / "eval_labels.npy")
    measured(bundle, out)
    (bundle.folder / "fp32.onnx").write_bytes(b"other")
    with pytest.raises(UserError, match=r"its bytes are not those of the manifest: export it again \[E_HASH\]"):
        measured(bundle, out)
    assert not out.exists()
    labels = bundle.folder / "eval_labels.npy"
    np.save(labels, np.load(labels)[::-1])  # which the device never sees
    with pytest.raises(UserError, match=r"eval_labels\.npy: its bytes are not those of the manifest"):
        measured(bundle, out)
    labels.unlink()
    with pytest.raises(UserError, match=r"eval_labels\.npy: missing from the bundle"):
        measured(bundle, out)
    np.save(labels, bundle_labels)
    (bundle.folder / "eval.npy").unlink()
    with pytest.raises(UserError, match=r"eval\.npy: missing from the bundle"):
        measured(bundle, out)
    (bundle.folder / "manifest.json").write_text('{"schema": "afpkd.bundle/9"}')
    with pytest.raises(UserError, match=r"schema 'afpkd\.bundle/9', expected"):
        measured(bundle, out)


def as_int8(bundle: HandMadeBundle, **entry: Any) -> None:
    """List the same file as int8 for ONNX Runtime."""
    manifest = bundle.manifest()
    manifest["files"].append({**manifest["files"][0], "precision": "int8", "runtime": "onnxruntime", **entry})
    manifest["golden"]["tolerances"]["int8"] = manifest["golden"]["tolerances"]["fp32"]
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.usefixtures("instant")
def test_int8_is_measured_in_both_modes_of_onnx_runtime(bundle: HandMadeBundle, tmp_path: Path) -> None:
    as_int8(bundle)
    record = measured(bundle, tmp_path / "row.json", precision="int8")
    assert [row["mode"] for row in record["rows"]] == ["default", "precise"]
    assert {key: record[key] for key in HEADLINE} == record["rows"][0]
    assert record["runtime"]["x64quantprecision"] == "0"
    assert {mode: found["golden"]["before"]["ok"] for mode, found in record["modes"].items()} == {
        "default": True,
        "precise": True,
    }
    with np.load(tmp_path / "row.npz") as arrays:
        assert {"samples_ns", "logits", "samples_ns_precise", "logits_precise"} <= set(arrays)
        assert record["rows"][1]["latency_ms"]["p50"] == nearest_rank(arrays["samples_ns_precise"], 50) / 1e6
    assert [row["mode"] for row in measured(bundle, tmp_path / "fp32.json")["rows"]] == ["default"]


@pytest.mark.usefixtures("instant")
def test_a_mode_whose_sums_saturate_is_not_the_one_to_quote(
    bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_int8(bundle)
    run = jobs.run_job

    def saturating(target: Target, work: jobs.Work, progress: jobs.Progress) -> dict[str, Any]:
        answer = run(target, work, progress)
        if work.request["mode"] == "default":  # what an x86 without VNNI makes of a symmetric int8 network
            answer["golden"]["before"]["ok"] = False
        return answer

    monkeypatch.setattr("deploy.turns.run_job", saturating)
    record = measured(bundle, tmp_path / "row.json", precision="int8")
    assert [row["mode"] for row in record["rows"]] == ["precise", "default"]
    assert [any("golden" in reason[:6] for reason in row["reasons"]) for row in record["rows"]] == [False, True]
    assert (record["mode"], record["runtime"]["x64quantprecision"]) == ("precise", "1")
    assert any("in mode default this processor's int8 sums saturate" in reason for reason in record["reasons"])
    assert not any(reason.startswith("a comparison") for reason in record["reasons"])


def test_of_two_right_modes_the_second_is_a_comparison(
    bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_int8(bundle)
    brief = WarmUp(min_seconds=0, min_count=30, window=10, tolerance=1e9, max_seconds=10)
    preset = Preset(name="brief", min_seconds=0.5, min_count=200, warm_up=brief)
    monkeypatch.setitem(presets._PRESETS, "brief", preset)
    first, second = measured(bundle, tmp_path / "row.json", precision="int8", preset="brief")["rows"]
    assert not any(reason.startswith("a comparison") for reason in first["reasons"])
    assert "a comparison: timed for 0.1 s, not 0.5 s" in second["reasons"]
    assert second["verdict"] != "VALID"


@pytest.mark.usefixtures("instant")
def test_a_file_over_its_budget_says_so_beside_every_number(bundle: HandMadeBundle, tmp_path: Path) -> None:
    as_int8(bundle, status="over budget", reason="int8 loses 9.00 points of top-1")
    record = measured(bundle, tmp_path / "row.json", precision="int8")
    assert record["verdict"] in ("WARN", "INVALID")
    assert "over budget: int8 loses 9.00 points of top-1" in record["reasons"]
    assert not any("over budget" in reason for reason in measured(bundle, tmp_path / "fp32.json")["reasons"])


@pytest.mark.usefixtures("instant")
def test_a_file_has_tolerances_of_its_own(bundle: HandMadeBundle, tmp_path: Path) -> None:
    as_int8(bundle, tolerances={"max_abs": 0.0, "cosine": 1.0, "argmax_agreement": 100.0})
    assert measured(bundle, tmp_path / "row.json", precision="int8")["verdict"] == "INVALID"
    assert measured(bundle, tmp_path / "fp32.json")["golden"]["before"]["ok"]


@pytest.mark.usefixtures("instant")
def test_the_version_of_the_runtime_there_chooses_the_file(bundle: HandMadeBundle, tmp_path: Path) -> None:
    """Both travel: which one fits is known on the device alone."""
    (bundle.folder / "new.onnx").write_bytes((bundle.folder / "fp32.onnx").read_bytes())
    bundle.replace("fp32.onnx", b"for an ONNX Runtime of long ago")
    manifest = bundle.manifest()
    old = manifest["files"][0] | {"max_version": "0.9"}
    sha256 = sha256_of(bundle.folder / "new.onnx")
    manifest["files"] = [old, {**old, "path": "new.onnx", "min_version": "1.0", "max_version": None, "sha256": sha256}]
    manifest["hashes"]["new.onnx"] = sha256
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    record = measured(bundle, tmp_path / "row.json")
    assert record["golden"]["after"]["ok"]
    assert record["inputs"]["new.onnx"] == sha256


def test_presets_are_the_protocols() -> None:
    table = {name: find_preset(name) for name in ("quick", "standard", "mlperf")}
    assert {name: (preset.min_seconds, preset.min_count) for name, preset in table.items()} == {
        "quick": (5, 200),
        "standard": (30, 2010),
        "mlperf": (600, 24576),
    }
    assert table["standard"].warm_up == table["mlperf"].warm_up
    assert table["standard"].warm_up.min_seconds == 2
    assert table["standard"].warm_up.max_seconds == 30


def test_local_runs_onnx_runtime_under_this_interpreter() -> None:
    local = find_device("local")
    assert (local.name, local.runtime, local.python) == ("local", "onnxruntime", (sys.executable,))


def test_importing_the_layer_loads_no_torch() -> None:
    code = (
        "import pkgutil, importlib, sys, deploy;"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(deploy.__path__, 'deploy.')];"
        "assert 'deploy.agent.profiling' in sys.modules;"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    root = Path(deploy.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
