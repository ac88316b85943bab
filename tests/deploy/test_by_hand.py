"""`python3 agent.pyz profile BUNDLE` on a copied bundle: no host, no installation, the same code and keys."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afpkd.errors import UserError
from afpkd.record import read_record, sha256_of
from deploy import statistics
from deploy.adopted import adopt_record
from deploy.agent import by_hand
from deploy.pack import agent_archive
from deploy.presets import find_preset
from tests.deploy.conftest import HandMadeBundle, hand_made_bundle
from tests.deploy.test_measure import measured

ROW = "device role precision mode scenario batch threads clocks power_mode n latency_ms throughput_ips macs num_params"
ROW += " size_bytes top1 verdict reasons"
FACTS = "arch preset peak_memory_bytes memory runtime timing golden machine inputs outputs rows finished_at schema"
"""What the device itself knows; intervals, energy and verdicts are made of these by the host."""

QUICK = find_preset("quick")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A folder with the agent, as it was carried there."""
    folder = tmp_path / "stick"
    folder.mkdir()
    (folder / "agent.pyz").write_bytes(agent_archive())
    return folder


def by_hand_at(board: Path, *words: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-I", "agent.pyz", "profile", *words]
    done = subprocess.run(command, cwd=board, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.usefixtures("instant")
def test_the_record_has_the_hosts_keys_and_the_numbers_of_its_samples(
    board: Path, bundle: HandMadeBundle, tmp_path: Path
) -> None:
    shutil.copytree(bundle.folder, board / "bundle")
    code, record = by_hand_at(board, "bundle", "--out", "results")
    assert code == 0
    assert json.loads((board / "results" / "student-fp32.json").read_text()) == record
    host = measured(bundle, tmp_path / "host.json")
    assert set(record["rows"][0]) == set(ROW.split()) <= set(host["rows"][0])
    assert set(record) - {"by_hand"} == {*ROW.split(), *FACTS.split()} <= set(host)
    for key in ("role", "precision", "scenario", "batch", "macs", "num_params", "size_bytes", "arch", "top1", "inputs"):
        assert record[key] == host[key], key
    assert set(record["timing"]) <= set(host["timing"])
    assert {"cold_load_ms", "first_inference_ms", "warm_up", "wall_s"} <= set(record["timing"])
    with np.load(board / "results" / "student-fp32.npz") as arrays:
        samples = arrays["samples_ns"]
    assert record["n"] == len(samples) >= 200
    assert {key: record["latency_ms"][key] for key in ("p50", "p90")} == {
        f"p{percent}": statistics.nearest_rank(samples, percent) / 1e6 for percent in (50, 90)
    }
    assert record["throughput_ips"] == pytest.approx(1e9 / samples.mean())
    assert record["outputs"] == {"student-fp32.npz": sha256_of(board / "results" / "student-fp32.npz")}
    assert (record["verdict"], "afpkd devices adopt" in record["reasons"][0]) == ("WARN", True)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose student has a bundle, and a record made by hand of it."""
    folder = tmp_path_factory.mktemp("made")
    hand_made_bundle(folder / "run" / "student" / "bundle")
    (folder / "agent.pyz").write_bytes(agent_archive())
    assert by_hand_at(folder, "run/student/bundle")[0] == 0
    return folder


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Path:
    """The record, which may be changed; `run` lies in the test's folder."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "student-fp32.json"


def adopted(made: Path, tmp_path: Path, device: str = "orin1") -> dict[str, Any]:
    return adopt_record(made, tmp_path / "run", device=device, recipe="r", config_digest="0")


def changed(made: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    record = json.loads(made.read_text())
    change(record)
    made.write_text(json.dumps(record))
    return made


@pytest.mark.usefixtures("instant")
def test_a_host_judges_it_as_its_own(made: Path, tmp_path: Path) -> None:
    """Every key of a record made through a host, the same numbers from the same samples, a verdict of the same kind."""
    last_week = "2026-01-02T03:04:05+00:00"
    made = changed(made, lambda record: record.update(finished_at=last_week))
    record = adopted(made, tmp_path)
    assert record["finished_at"] == last_week
    assert read_record(tmp_path / "run" / "profiles" / "orin1" / "student-fp32.json") == record
    host = measured(HandMadeBundle(tmp_path / "run" / "student" / "bundle", 0), tmp_path / "host.json")
    assert set(record) == set(host)
    assert set(record["rows"][0]) == set(host["rows"][0])
    by_hand = json.loads(made.read_text())
    with np.load(made.with_suffix(".npz")) as arrays:
        samples = arrays["samples_ns"]
    assert record["latency_ms"] == statistics.of_runs([statistics.latency_ms(samples)])
    assert (record["device"], record["top1"], record["n"]) == ("orin1", by_hand["top1"], len(samples))
    assert record["protocol"]["preset"] == asdict(QUICK)
    assert not any("device alone" in reason or "by hand" in reason for reason in record["reasons"])
    assert sha256_of(tmp_path / "run" / "profiles" / "orin1" / "student-fp32.npz") in record["outputs"].values()


def test_what_a_host_would_not_believe_it_does_not_believe_here(made: Path, tmp_path: Path) -> None:
    def busy(record: dict[str, Any]) -> None:
        record["timing"]["foreign_cpus"] = 0.9 * record["machine"]["num_cpus"]
        record["preset"] = "standard"

    record = adopted(changed(made, busy), tmp_path)
    assert record["verdict"] != "VALID"
    told = " | ".join(record["reasons"])
    assert "foreign load: other processes" in told
    assert "by hand: one process, where the preset has 3 in turns" in told


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another schema": (lambda record: record.update(schema="afpkd.profile/1"), "not a record that `agent.pyz profile`"),
    "an older agent": (lambda record: record["by_hand"].update(protocol=0), "take a new agent there"),
    "another bundle": (lambda record: record["inputs"].update({"manifest.json": "0" * 64}), "measured another bundle"),
    "other samples": (lambda record: record.update(outputs={"x": "0" * 64}), "not the samples that"),
    "no such preset": (lambda record: record.update(preset="quik"), "quick"),
    "no such precision": (lambda record: record.update(precision="../fp32"), "no ../fp32 file"),
    "no timing": (lambda record: record.pop("timing"), "not one of this program's agent"),
    "junk": (lambda record: record.update(golden=3), "not one of this program's agent"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_record_that_does_not_fit_is_one_line_and_nothing_is_written(what: str, made: Path, tmp_path: Path) -> None:
    change, told = REFUSED[what]
    with pytest.raises(UserError) as caught:
        adopted(changed(made, change), tmp_path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "profiles").exists()


def test_samples_must_come_along_and_boards_need_names(made: Path, tmp_path: Path) -> None:
    for name in ("local", "../up"):
        with pytest.raises(UserError, match="make a device's name"):
            adopted(made, tmp_path, name)
    with pytest.raises(UserError, match="from the board"):
        adopted(tmp_path / "none.json", tmp_path)
    made.with_suffix(".npz").unlink()
    with pytest.raises(UserError, match="bring the samples along"):
        adopted(made, tmp_path)


def test_what_computes_something_else_is_invalid_and_not_timed(board: Path, bundle: HandMadeBundle) -> None:
    with np.load(bundle.folder / "golden.npz") as arrays:
        images, logits = arrays["images"], arrays["logits"]
    np.savez(bundle.folder / "golden.npz", images=images, logits=logits + 1)
    bundle.replace("golden.npz", (bundle.folder / "golden.npz").read_bytes())
    (bundle.folder / "eval_labels.npy").unlink()  # what a job sends holds none
    code, record = by_hand_at(board, str(bundle.folder), "--runtime", "onnxruntime")
    assert code == 1
    assert (record["verdict"], record["n"], record["top1"]) == ("INVALID", 0, None)
    assert record["latency_ms"] == {"p50": None, "p90": None, "p99": None}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--preset", "quick"], "E_USAGE"),
        (["a", "b"], "E_USAGE"),
        (["nowhere"], "E_BUNDLE"),
        (["nowhere", "--precison", "fp16"], "E_USAGE"),
        (["nowhere", "--threads", "all"], "E_USAGE"),
        (["nowhere", "--preset"], "E_USAGE"),
        (["nowhere", "--preset", "mlperf"], "E_USAGE"),
        (["bundle", "--out", "/proc/nowhere"], "E_DISK"),
    ],
)
def test_a_mistake_is_one_error(board: Path, bundle: HandMadeBundle, words: list[str], code: str) -> None:
    shutil.copytree(bundle.folder, board / "bundle")
    returned, answer = by_hand_at(board, *words)
    assert (returned, answer["error"]["code"]) == (1, code)
    assert not list(board.glob("*.json"))


def test_what_nobody_foresaw_is_one_error_too(board: Path, bundle: HandMadeBundle) -> None:
    manifest = bundle.manifest()
    del manifest["files"][0]["tolerances"], manifest["golden"]["tolerances"]
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    returned, answer = by_hand_at(board, str(bundle.folder), "--runtime", "onnxruntime")
    assert (returned, answer["error"]["code"]) == (1, "E_UNEXPECTED")
    assert answer["error"]["message"].startswith("KeyError: 'tolerances' (")


def test_its_rules_are_the_hosts() -> None:
    for name, ours in by_hand.PRESETS.items():
        assert ours == {key: value for key, value in asdict(find_preset(name)).items() if key in ours}
    assert {percent: statistics.smallest_count(percent) for percent in (50, 90, 99)} == by_hand.SMALLEST_COUNTS


@pytest.mark.parametrize("num", [1, 10, 11, 63, 64, 100, 200, 661, 662, 1000])
def test_its_percentiles_are_the_hosts(num: int) -> None:
    samples = np.random.default_rng(num).permutation(num) * 1_000_000
    host = statistics.latency_ms(samples)
    ours = {f"p{percent}": by_hand._percentile_ms(samples, percent) for percent in by_hand.SMALLEST_COUNTS}
    assert ours == {key: host[key] for key in ours}


def test_the_agent_is_written_by_a_verb(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "devices", "agent", str(tmp_path / "agent.pyz")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert (tmp_path / "agent.pyz").read_bytes() == agent_archive()
    assert "python3 agent.pyz profile BUNDLE" in done.stdout
