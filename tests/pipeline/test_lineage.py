"""`afpkd verify`: what is changed, cut short or swapped is named; a stage takes nothing but what was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afpkd.errors import UserError
from afpkd.record import Json, read_record, sha256_of, write_record
from pipeline.cli import app
from pipeline.lineage import lineage, require_recorded

DATA = "da7a" * 16


def put(run: Path, stage: str, weights: bytes, *made_from: str) -> None:
    """A finished stage as the stages leave it."""
    path = run / stage / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(weights)
    inputs: Json = {"data": DATA, **{kind: sha256_of(run / kind / path.name) for kind in made_from}}
    role = {} if stage == "prompts" else {"role": stage}  # phase 1 is no role
    write_record(path.parent / "record.json", {**role, "inputs": inputs, "outputs": {path.name: sha256_of(path)}})


def change(path: Path, **keys: object) -> None:
    write_record(path, {**read_record(path), **keys})


@pytest.fixture(name="run")
def _run(tmp_path: Path) -> Path:
    run = tmp_path / "tiny"
    put(run, "teacher", b"teacher's weights")
    put(run, "prompts", b"prompts", "teacher")
    put(run, "student", b"student's weights", "teacher", "prompts")
    put(run, "undistilled", b"other weights")
    profile = run / "profiles" / "local" / "student-fp32.json"
    profile.parent.mkdir(parents=True)
    profile.with_suffix(".npz").write_bytes(b"samples")
    outputs = {"student-fp32.npz": sha256_of(profile.with_suffix(".npz"))}
    write_record(profile, {"role": "student", "inputs": {}, "outputs": outputs})
    return run


def test_a_whole_run_has_no_faults(run: Path) -> None:
    assert lineage(run) == (10, [])


@pytest.mark.parametrize(
    "file", ["teacher/model.safetensors", "prompts/model.safetensors", "profiles/local/student-fp32.npz"]
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
    assert lineage(run).faults == [
        f"{student / 'record.json'}: the record of undistilled lies in the folder of student [E_RUN_CHANGED]",
        f"{other / 'record.json'}: the record of student lies in the folder of undistilled [E_RUN_CHANGED]",
    ]


def test_a_stage_made_from_another_teacher_is_named(run: Path) -> None:
    first = sha256_of(run / "teacher" / "model.safetensors")[:12]
    put(run, "teacher", b"a better teacher")
    said = f"made from teacher {first}, which is not what lies there: run the stage again [E_RUN_CHANGED]"
    assert lineage(run).faults == [f"{run / stage / 'record.json'}: {said}" for stage in ("prompts", "student")]


def test_an_export_that_never_came_to_write_is_no_fault_and_half_of_one_is(run: Path) -> None:
    bundle = run / "student" / "bundle"
    bundle.mkdir()
    assert lineage(run).faults == []
    (bundle / "fp32.onnx").write_bytes(b"a graph")
    assert any(str(bundle / "manifest.json") in fault for fault in lineage(run).faults)


def test_prompts_of_an_earlier_method_are_no_part_of_the_run(run: Path) -> None:
    put(run, "student", b"student's weights", "teacher")
    put(run, "teacher", b"another teacher")
    put(run, "student", b"student's weights", "teacher")
    assert lineage(run).faults == []


def test_stages_that_saw_different_data_are_named(run: Path) -> None:
    change(run / "undistilled" / "record.json", inputs={"data": "0" * 64})
    (fault,) = lineage(run).faults
    assert (
        "stages saw different data: teacher, prompts, student on da7ada7ada7a and undistilled on 000000000000" in fault
    )


def test_a_profile_of_another_file_is_named(run: Path) -> None:
    path = run / "profiles" / "local" / "student-fp32.json"
    change(path, inputs={"fp32.onnx": "1" * 64})
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
        CliRunner().invoke(app, ["verify", str(run)]).output == f"{run}: whole: 10 files are what their records say\n"
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
