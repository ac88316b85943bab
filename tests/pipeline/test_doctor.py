"""`afpkd doctor`: every red line provoked, each with its mend; it speaks where packages are missing or crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afpkd.data import DATASETS, fashion_mnist
from afpkd.record import Json, write_record
from pipeline import doctor, doctor_machine, doctor_packages, doctor_places
from pipeline.doctor import Finding, Level, can_run
from pipeline.holder import HOLDER
from tests.pipeline.terminal import Terminal

ROOT = Path(__file__).parent.parent.parent
TOPICS = [
    "Python",
    "packages",
    "imports",
    "recipe",
    "GPU",
    "TensorRT",
    "ssh",
    "disk",
    "memory",
    "data",
    "devices",
    "runs",
]


def examined(
    python: str = sys.executable, *, folder: Path, before: str = "", **environment: str
) -> tuple[int, Json, str]:
    """Exit code, document and stderr of `afpkd doctor --json`; `before`: what the shell does first."""
    command = f"{before} exec '{python}' -m pipeline doctor --json"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, cwd=folder, env=variables
    )
    assert "Traceback" not in done.stderr
    document: Json = json.loads(done.stdout)
    return done.returncode, document, done.stderr


def of_level(document: Json, level: Level) -> dict[str, str]:
    found = [row for row in document["findings"] if row["level"] == level]
    assert all(row["mend"] and "\n" not in row["mend"] + row["found"] for row in found)
    return {row["topic"]: row["found"] for row in found}


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_a_healthy_machine(tmp_path: Path) -> None:
    code, document, errors = examined(folder=tmp_path)
    assert (code, errors) == (0, "")
    assert document["can_run"] is True
    assert list(dict.fromkeys(row["topic"] for row in document["findings"])) == TOPICS
    assert of_level(document, Level.bad) == {}
    of_level(document, Level.warn)
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing
    done = subprocess.run([sys.executable, "-m", "pipeline", "doctor"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "the main job can run: make distill export profile"
    assert done.stdout.splitlines()[0].split()[:2] == ["ok", "Python"]


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_has_colours_unless_nobody_wants_them(environment: dict[str, str], coloured: bool) -> None:
    code = """
import sys
from pipeline.cli_doctor import _lines
from pipeline.doctor import bad
sys.stdout.write("\\n".join(_lines(bad("disk", "full", "free some"))))
"""
    with Terminal([sys.executable, "-c", code], cwd=ROOT, **environment) as terminal:
        assert terminal.ended() == 0
    assert ("\x1b[31mFAIL \x1b[0m disk" in terminal.text) is coloured
    assert ("FAIL  disk      full" in terminal.text) is not coloured
    assert terminal.text.splitlines()[-1].strip() == "-> free some"


@pytest.fixture(name="interpreter")
def _interpreter(tmp_path: Path) -> Callable[..., Path]:
    """A Python whose site-packages are those here, less some."""

    def make(without: tuple[str, ...]) -> Path:
        venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
        (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            left = any(path.name == name or path.name.startswith(f"{name}-") for name in without)
            if not left and not (site / path.name).exists():
                (site / path.name).symlink_to(path)
        return tmp_path / "venv" / "bin" / "python"

    return make


def test_without_torch_it_still_speaks(tmp_path: Path, interpreter: Callable[..., Path]) -> None:
    code, document, _ = examined(str(interpreter(("torch",))), folder=tmp_path)
    red = of_level(document, Level.bad)
    assert code == 2
    assert document["can_run"] is False
    assert red == {"packages": "missing: torch", "imports": "torch: ModuleNotFoundError: No module named 'torch'"}
    assert all(row["mend"] == "make clean setup" for row in document["findings"] if row["level"] == "bad")


def test_a_torch_that_crashes_is_named(tmp_path: Path, interpreter: Callable[..., Path]) -> None:
    python = interpreter(("torch",))
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    (site / "torch-1.0.dist-info").mkdir()
    (site / "torch-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    code, document, _ = examined(str(python), folder=tmp_path)
    red = of_level(document, Level.bad)
    assert code == 2
    assert red["imports"] == "torch: died of SIGSEGV while it was imported"
    assert red["packages"].startswith("of a version that does not do: torch 1.0 (>=")
    assert "torch 1.0 (locked: " in of_level(document, Level.warn)["packages"]


def test_with_hardly_any_package_it_still_speaks(tmp_path: Path, interpreter: Callable[..., Path]) -> None:
    python = interpreter(("packaging", "numpy", "onnxruntime", "cyclonedx"))
    code, document, _ = examined(str(python), folder=tmp_path)
    red = of_level(document, Level.bad)
    assert code == 2
    assert {"packages", "imports", "recipe", "disk"} <= set(red)
    rows = [row for row in document["findings"] if row["topic"] == "disk"]
    assert [row["level"] for row in rows] == ["ok", "ok", "bad"]  # what was found before the fault stays
    assert {"Python", "ssh", "memory"} <= {row["topic"] for row in document["findings"] if row["level"] == "ok"}
    assert red["packages"] == "cannot be looked at: ModuleNotFoundError: No module named 'packaging'"
    assert red["imports"] == "numpy: ModuleNotFoundError: No module named 'numpy'"


def test_a_verb_without_its_package_names_the_doctor(tmp_path: Path, interpreter: Callable[..., Path]) -> None:
    command = [str(interpreter(("numpy",))), "-m", "pipeline", "recipes"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    mend = "a package is missing: `afpkd doctor` says what mends it"
    assert done.stderr == f"error: No module named 'numpy': {mend} [E_PACKAGE]\n"


def test_a_small_limit_of_memory_is_red(tmp_path: Path) -> None:
    code, document, _ = examined(folder=tmp_path, before="ulimit -v 1900000;")
    assert code == 2
    assert of_level(document, Level.bad)["memory"].startswith("1.9 GB allowed by ulimit, ")


def test_a_container_limits_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  99999999 kB\nMemAvailable:    3000000 kB\n")
    assert only(list(doctor_machine.memory(meminfo)))[:2] == ("memory", Level.warn)
    (tmp_path / "memory.max").write_text("2500000000\n")
    finding = only(list(doctor_machine.memory(meminfo)))
    assert finding.level is Level.bad
    assert finding.found.startswith("1.5 GB left to the container")
    meminfo.write_text("MemAvailable:    9000000 kB\n")
    (tmp_path / "memory.stat").write_text("anon 100000000\ninactive_file 800000000\nslab_reclaimable 700000000\n")
    finding = only(list(doctor_machine.memory(meminfo)))
    assert (finding.level, finding.found[:29]) == (Level.warn, "3.0 GB left to the container,"), "files make way"
    (tmp_path / "memory.max").write_text("99000000000\n")
    assert only(list(doctor_machine.memory(meminfo))).level is Level.ok


def test_an_old_python_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_packages, "OLDEST", (sys.version_info[0], sys.version_info[1] + 1))
    finding = only(list(doctor_packages.python()))
    assert finding.level is Level.bad
    assert f"PYTHON=python3.{sys.version_info[1] + 1}" in finding.mend


def test_other_versions_than_the_locked_are_yellow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = doctor_packages.LOCK.read_text().replace("\nrich==", "\nrich==0.")
    for pin in ("no-such-package==1.0", "for-windows==1.0 ; sys_platform == 'win32'"):
        lock += f"{pin} \\\n    --hash=sha256:0\n"
    (tmp_path / "lock").write_text(lock)
    monkeypatch.setattr(doctor_packages, "LOCK", tmp_path / "lock")
    found = list(doctor_packages.packages())
    assert {finding.level for finding in found} == {Level.warn}
    words = " ".join(finding.found for finding in found)
    assert "rich " in words
    assert "no-such-package" in words
    assert "for-windows" not in words
    monkeypatch.setattr(doctor_packages, "LOCK", tmp_path / "none")
    assert "no none beside the program" in only(list(doctor_packages.packages())).found


def test_no_ssh_is_yellow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = only(list(doctor_machine.ssh()))
    assert finding.level is Level.warn
    assert finding.found == "ssh and ssh-keygen not on PATH: boards cannot be reached"
    assert can_run([finding])


def test_a_full_disk_is_red_for_runs_and_yellow_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFPKD_DATA", str(tmp_path / "data"))
    found = list(doctor_machine.disk(tmp_path / "runs", free=lambda path: 150_000_000))
    assert [finding.level for finding in found] == [Level.bad, Level.bad, Level.warn]
    assert found[0].found == f"runs: 0.15 GB free at {tmp_path}: 0.2 are needed"
    assert [finding.mend.rpartition(" ")[2] for finding in found] == ["RUNS", "TMPDIR", "AFPKD_DATA"]
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_a_temporary_file_is_no_bad_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Any:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    _, second, _ = doctor_machine.disk(tmp_path)
    assert (second.level, second.mend) == (Level.bad, "free some room, or name a place with TMPDIR")
    for topic, level in (("imports", Level.bad), ("GPU", Level.warn)):  # the main job does without the latter
        (found,) = doctor._findings(topic, nowhere)
        assert (found.level, found.mend) == (level, "free some room, or name another TMPDIR")


def test_a_folder_of_runs_that_cannot_be_written_is_red() -> None:
    runs, *_ = doctor_machine.disk(Path("/proc/runs"))
    assert runs.level is Level.bad
    assert runs.found.startswith("runs: /proc cannot be written (")
    assert runs.mend == "name another with RUNS"


def test_data_sets_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFPKD_DATA", str(tmp_path))
    assert all(spec.place.name and spec.how_to_get for spec in DATASETS.values()), "the doctor asks for both"
    found = {finding.found.partition(":")[0]: finding for finding in doctor_places.data_sets()}
    assert found["fashion_mnist_5k"].level is Level.ok
    assert found["cifar100"] == Finding(
        "data", Level.warn, f"cifar100: not at {tmp_path / 'cifar-100-binary'}", found["cifar100"].mend
    )
    assert "tiny-imagenet-200.zip" in found["tiny_imagenet"].mend
    assert found["cifar100-resnet56-resnet20-cpu.toml"].mend.startswith("only RECIPE=cifar100-resnet56-resnet20-cpu ")
    assert "bccd-fcos-cpu.toml" in found
    (tmp_path / "cifar-100-binary").mkdir()
    assert next(f for f in doctor_places.data_sets() if f.found.startswith("cifar100:")).level is Level.ok


def test_lost_images_of_the_default_recipe_are_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "FILE", tmp_path / "gone.npz")
    finding = only(doctor._findings("recipe", doctor_places.default_recipe))
    assert finding.level is Level.bad
    assert "gone.npz" in finding.found
    assert finding.mend


def test_devices_are_listed_and_reached_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "devices.toml"
    monkeypatch.setenv("AFPKD_DEVICES", str(path))
    assert only(list(doctor_places.devices(False))).found == (
        f"{path}: no such file: AFPKD_DEVICES names it [E_DEVICES_FILE]"
    )
    path.write_text('[orin1]\nhost = "127.0.0.1:1"\n')
    listed = only(list(doctor_places.devices(False)))
    assert listed.level is Level.ok
    assert listed.found.startswith("orin1 (127.0.0.1:1); not contacted")
    probed = only(list(doctor_places.devices(True)))
    assert probed.level is Level.warn
    assert probed.found.startswith("device orin1: ")
    assert probed.mend.endswith("afpkd devices probe orin1")
    path.write_text("[orin1]\nhots = 1\n")
    broken = only(list(doctor_places.devices(True)))
    assert broken.level is Level.warn
    assert "orin1.hots: unknown key: did you mean 'host'?" in broken.found


def test_runs_in_use_are_red_and_what_was_cut_short_is_yellow(tmp_path: Path) -> None:
    assert only(list(doctor_places.unfinished(tmp_path / "runs"))).level is Level.ok
    holder = {"pid": os.getpid(), "host": os.uname().nodename, "since": "2026-01-02T03:04:05+00:00"}
    write_record(tmp_path / HOLDER, holder)
    used = only(list(doctor_places.unfinished(tmp_path)))
    assert used.level is Level.bad
    assert f"is in use by pid {os.getpid()} on " in used.found
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    write_record(tmp_path / HOLDER, {**holder, "pid": int(ended.stdout)})
    (tmp_path / "mine" / "student").mkdir(parents=True)
    (tmp_path / "mine" / "student" / "checkpoint.pt").touch()
    left, cut = doctor_places.unfinished(tmp_path)
    assert (left.level, cut.level) == (Level.ok, Level.warn)
    assert "it locks nothing" in left.found
    assert cut.found == "mine: training of student was cut short"
    assert "make distill RECIPE=mine" in cut.mend
