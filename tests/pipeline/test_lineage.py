"""`afpkd verify`: what is changed, cut short or swapped is named; a stage takes nothing but what was recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from afpkd.errors import UserError
from afpkd.record import Json, read_record, sha256_of, write_record
from pipeline.cli import app
from pipeline.lineage import lineage, require_recorded
from tests.export.conftest import _written

DATA = "da7a" * 16


def put(run: Path, stage: str, weights: bytes, *made_from: str) -> None:
    """A finished stage as the stages leave it."""
    path = run / stage / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(weights)
    inputs: Json = {"data": DATA, **{kind: sha256_of(run / kind / path.name) for kind in made_from}}
    left = [file for file in sorted(path.parent.iterdir()) if file.is_file() and file.name != "record.json"]
    outputs = {file.name: sha256_of(file) for file in left}
    facts = {"recipe": run.name} if stage == "prompts" else {"recipe": run.name, "role": stage}  # phase 1 is no role
    write_record(path.parent / "record.json", {**facts, "inputs": inputs, "outputs": outputs})


def change(path: Path, **keys: object) -> None:
    write_record(path, {**read_record(path), **keys})


@pytest.fixture(name="run")
def _run(tmp_path: Path) -> Path:
    run = tmp_path / "tiny"
    (run / "prompts").mkdir(parents=True)
    for name in PICTURES:
        (run / "prompts" / name).write_bytes(name.encode())
    put(run, "teacher", b"teacher's weights")
    put(run, "prompts", b"prompts", "teacher")
    (run / "student").mkdir()
    (run / "student" / "metrics.jsonl").write_text('{"epoch": 1}\n')
    put(run, "student", b"student's weights", "teacher", "prompts")
    put(run, "undistilled", b"other weights")
    export(run, "student")
    profile(run, "student")
    return run


PICTURES = ("level0.png", "level1.png")
WHOLE = 8 + len(PICTURES) + 1 + 6 + 2  # weights and records, pictures, curves, a bundle, a profile with its samples


def export(run: Path, role: str) -> None:
    """A bundle of the role's weights."""
    bundle = run / role / "bundle"
    (run.parent / "new").mkdir(exist_ok=True)
    _written(run.parent / "new" / "bundle", np.zeros((2, 3, 8, 8), np.uint8))
    shutil.copytree(run.parent / "new" / "bundle", bundle)
    lineage = {"weights": sha256_of(run / role / "model.safetensors"), "record": "0" * 64, "calibration": None}
    change(bundle / "manifest.json", role=role, lineage=lineage)


def profile(run: Path, role: str, precision: str = "fp32", device: str = "local") -> Path:
    """A measurement of the role's file."""
    path = run / "profiles" / device / f"{role}-{precision}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".npz").write_bytes(f"samples of {role}".encode())
    facts = {"recipe": run.name, "role": role, "precision": precision, "device": device}
    measured = {name: sha256_of(run / role / "bundle" / name) for name in ("manifest.json", "fp32.onnx")}
    outputs = {f"{path.stem}.npz": sha256_of(path.with_suffix(".npz"))}
    write_record(path, {**facts, "inputs": measured, "outputs": outputs})
    return path


def test_a_whole_run_has_no_faults(run: Path) -> None:
    assert lineage(run) == (WHOLE, [])


@pytest.mark.parametrize(
    "file",
    [
        *("teacher/model.safetensors", "prompts/model.safetensors", "student/metrics.jsonl"),
        "profiles/local/student-fp32.npz",
    ],
)
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_spoilt_artifact_is_named(run: Path, file: str, how: str) -> None:
    path = run / file
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(content[:-1] if how == "cut" else content[:-1] + b"?")
    faults = lineage(run).faults
    state = "missing" if how == "gone" else "its bytes are not those that were recorded"
    assert faults[0] == f"{path}: {state}: run its stage again [E_RUN_CHANGED]"
    assert all("made from" in fault for fault in faults[1:]), "what was made from it is named too"


def test_swapped_artifacts_are_named(run: Path) -> None:
    student, other = run / "student", run / "undistilled"
    swap = student.with_name("swap")
    for old, new in ((student, swap), (other, student), (swap, other)):
        old.rename(new)
    for role, found in (("student", "undistilled"), ("undistilled", "student")):
        told = f"{run / role / 'record.json'}: the record of {found} lies in the folder of {role} [E_RUN_CHANGED]"
        assert told in lineage(run).faults
    assert f"{other / 'bundle'}: the bundle of student lies in the folder of undistilled [E_RUN_CHANGED]" in (
        lineage(run).faults
    )


def test_a_stage_made_from_another_teacher_is_named(run: Path) -> None:
    first = sha256_of(run / "teacher" / "model.safetensors")[:12]
    put(run, "teacher", b"a better teacher")
    said = f"made from teacher {first}, which is not what lies there: run the stage again [E_RUN_CHANGED]"
    assert lineage(run).faults == [f"{run / stage / 'record.json'}: {said}" for stage in ("prompts", "student")]


def test_an_export_that_never_came_to_write_is_no_fault_and_half_of_one_is(run: Path) -> None:
    bundle = run / "undistilled" / "bundle"
    bundle.mkdir()
    assert lineage(run).faults == []
    (bundle / "fp32.onnx").write_bytes(b"a graph")
    told = f"{bundle}: there is no manifest.json that vouches for it: export it again [E_RUN_CHANGED]"
    assert told in lineage(run).faults


def test_prompts_of_an_earlier_method_are_no_part_of_the_run(run: Path) -> None:
    put(run, "student", b"student's weights", "teacher")
    put(run, "teacher", b"another teacher")
    put(run, "student", b"student's weights", "teacher")
    assert lineage(run).faults == []
    (run / "prompts" / "record.json").unlink()  # as a recipe of another method leaves them
    assert lineage(run).faults == []


@pytest.mark.parametrize("stage", ["teacher", "prompts", "student", "undistilled"])
def test_results_that_no_record_vouches_for_are_named(run: Path, stage: str) -> None:
    (run / stage / "record.json").unlink()
    weights = run / stage / "model.safetensors"
    told = f"there is no {run / stage / 'record.json'} that vouches for it: run its stage again [E_RUN_CHANGED]"
    assert f"{weights}: {told}" in lineage(run).faults
    manifest = run / "student" / "bundle" / "manifest.json"
    assert (f"{manifest}: {told}" in lineage(run).faults) == (stage == "student")
    weights.unlink()
    assert f"{weights}: {told}" not in lineage(run).faults, "a stage that has not run yet is no fault of its own"


def test_a_record_in_the_place_of_another_is_named(run: Path) -> None:
    export(run, "undistilled")
    first, second = profile(run, "student"), profile(run, "undistilled")
    swapped = {first: second.read_bytes(), second: first.read_bytes()}
    for path, content in swapped.items():
        path.write_bytes(content)
    faults = lineage(run).faults
    assert f"{first}: the record of local/undistilled-fp32.json: measure it again [E_RUN_CHANGED]" in faults
    assert f"{second}: the record of local/student-fp32.json: measure it again [E_RUN_CHANGED]" in faults


@pytest.mark.parametrize("place", ["orin1/student-fp32.json", "local/student-int8.json"])
def test_a_profile_of_another_device_or_precision_is_named(run: Path, place: str) -> None:
    own, other = run / "profiles" / "local" / "student-fp32.json", run / "profiles" / place
    other.parent.mkdir(exist_ok=True)
    shutil.copy(own, other)
    if other.parent != own.parent:
        shutil.copy(own.with_suffix(".npz"), other.parent)
    assert lineage(run).faults == [f"{other}: the record of local/student-fp32.json: measure it again [E_RUN_CHANGED]"]


@pytest.mark.parametrize("left", [{}, {"manifest.json": ""}, {"fp32.onnx": ""}])
def test_a_profile_that_hides_what_it_measured_is_named(run: Path, left: Json) -> None:
    path = run / "profiles" / "local" / "student-fp32.json"
    measured = read_record(path)["inputs"]
    change(path, inputs={name: measured[name] for name in left})
    told = f"does not say which file of {run / 'student' / 'bundle'} it measured: measure it again [E_RUN_CHANGED]"
    assert lineage(run).faults == [f"{path}: {told}"]


@pytest.mark.parametrize("stage", ["prompts", "student"])
def test_a_stage_that_hides_its_teacher_is_named(run: Path, stage: str) -> None:
    path = run / stage / "record.json"
    inputs = read_record(path)["inputs"]
    del inputs["teacher"]
    change(path, inputs=inputs)
    (fault,) = lineage(run).faults
    assert fault == f"{path}: does not say from which teacher it was made: run the stage again [E_RUN_CHANGED]"


@pytest.mark.parametrize(("key", "value"), [("arch", "vgg8"), ("seed", 1), ("epochs", 9)])
def test_a_control_of_another_run_is_named(run: Path, key: str, value: object) -> None:
    """No hash ties it to the student."""
    own = read_record(run / "student" / "record.json").get(key)
    change(run / "undistilled" / "record.json", **{key: value})
    (fault,) = lineage(run).faults
    told = f"{key} of the student is {own} and of undistilled, its control, {value}: run them again [E_RUN_CHANGED]"
    assert fault == f"{run}: {told}"


def test_a_run_that_was_renamed_is_whole(run: Path) -> None:
    """Its records name the recipe as it was called when each was made."""
    change(run / "teacher" / "record.json", recipe="as it was called")
    change(run / "profiles" / "local" / "student-fp32.json", recipe="another")
    assert lineage(run.rename(run.with_name("archive"))).faults == []


def test_pictures_of_the_prompts_are_theirs(run: Path) -> None:
    first, second = (run / "prompts" / name for name in PICTURES)
    outputs = read_record(run / "prompts" / "record.json")["outputs"]
    change(run / "prompts" / "record.json", outputs={"model.safetensors": outputs["model.safetensors"]})
    assert lineage(run).faults == [], "an older record names no pictures"
    change(run / "prompts" / "record.json", outputs=outputs)
    first.unlink()
    second.write_bytes(b"another picture")
    (run / "prompts" / "level7.png").write_bytes(b"nobody's")
    named = "not one of those that record.json names: delete it, or run its stage again"
    assert lineage(run).faults == [
        f"{first}: missing: run its stage again [E_RUN_CHANGED]",
        f"{second}: its bytes are not those that were recorded: run its stage again [E_RUN_CHANGED]",
        f"{run / 'prompts' / 'level7.png'}: {named} [E_RUN_CHANGED]",
    ]


def test_stages_that_saw_different_data_are_named(run: Path) -> None:
    change(run / "undistilled" / "record.json", inputs={"data": "0" * 64})
    (fault,) = lineage(run).faults
    assert (
        "stages saw different data: teacher, prompts, student on da7ada7ada7a and undistilled on 000000000000" in fault
    )


def test_a_profile_of_another_file_is_named(run: Path) -> None:
    path = run / "profiles" / "local" / "student-fp32.json"
    change(path, inputs={**read_record(path)["inputs"], "fp32.onnx": "1" * 64})
    bundle = run / "student" / "bundle" / "fp32.onnx"
    assert lineage(run).faults == [f"{path}: measured on another {bundle}: measure it again [E_RUN_CHANGED]"]


def test_a_record_that_is_broken_or_names_nothing_is_a_fault(run: Path) -> None:
    (run / "teacher" / "record.json").write_text('{"role": "tea')
    change(run / "undistilled" / "record.json", outputs={})
    first, second = lineage(run).faults
    assert "teacher/record.json: not a readable record" in first
    assert second == f"{run / 'undistilled' / 'record.json'}: names no outputs: run its stage again [E_RUN_CHANGED]"


def test_the_verb_names_every_fault_and_fails(run: Path) -> None:
    assert (
        CliRunner().invoke(app, ["verify", str(run)]).output
        == f"{run}: whole: {WHOLE} files are what their records say\n"
    )
    (run / "student" / "model.safetensors").write_bytes(b"trojan")
    spoilt = CliRunner().invoke(app, ["verify", str(run), "--json"])
    assert spoilt.exit_code == 2
    assert json.loads(spoilt.stdout)["faults"] == lineage(run).faults
    assert spoilt.stderr.startswith(f"error: {run / 'student' / 'model.safetensors'}: its bytes are not")


def test_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no record of a stage here: name a run"):
        lineage(tmp_path)


def test_a_stage_takes_only_what_was_recorded(run: Path) -> None:
    folder = run / "teacher"
    assert require_recorded(folder, "model.safetensors") == sha256_of(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(b"another teacher")
    with pytest.raises(UserError, match=r"its bytes are not those that were recorded: delete .*record\.json and run"):
        require_recorded(folder, "model.safetensors")


def test_a_bundle_that_was_judged_on_other_data_is_named(run: Path) -> None:
    path = run / "student" / "bundle" / "manifest.json"
    lineage_there = read_record(path)["lineage"]
    change(path, lineage={**lineage_there, "data": DATA})
    profile(run, "student")
    assert lineage(run).faults == []
    change(path, lineage={**lineage_there, "data": "0dda" * 16})
    profile(run, "student")
    told = "exported with data 0dda0dda0dda, its network was trained on da7ada7ada7a: export it again"
    assert lineage(run).faults == [f"{path.parent}: {told} [E_RUN_CHANGED]"]
