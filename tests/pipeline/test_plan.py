"""Several recipes in one graph: what is the same is made once, and taken only where it is the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afpkd.errors import UserError
from afpkd.record import Json, read_record, sha256_of, write_record
from deploy.devices import find_device
from pipeline.cli import app
from pipeline.lineage import lineage
from pipeline.plan import Named, claim_folder, outdated_records, plan_of, read_recipes, roles_in_turns, targets_of
from pipeline.recipe_reader import load_recipe
from pipeline.sharing import share_stage, shared_stages


def recipes(folder: Path, **bodies: str) -> list[Named]:
    """Variants of the default recipe by name; a body is TOML."""
    for name, body in bodies.items():
        (folder / f"{name}.toml").write_text(f'extends = "default"\n{body}\n')
    return read_recipes([str(folder / f"{name}.toml") for name in bodies])


def finished(run: Path, one: Named, stage: str, weights: bytes, *made_from: str) -> Path:
    """The record of a finished stage as the stages leave it."""
    path = run / stage / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(weights)
    (run / stage / "metrics.jsonl").write_text('{"epoch": 1}\n')
    if stage == "prompts":
        (run / stage / f"level{len(weights) % 2}.png").write_bytes(weights)
    inputs: Json = {"data": "d", **{kind: sha256_of(run / kind / path.name) for kind in made_from}}
    outputs = {file.name: sha256_of(file) for file in (path, *path.parent.glob("*.png"))}
    made = {"inputs": inputs, "outputs": outputs, "recipe": run.name, "config_digest": one.recipe.stage_digest(stage)}
    write_record(record := run / stage / "record.json", made)
    return record


def test_points_that_differ_in_the_method_share_all_but_the_student(tmp_path: Path) -> None:
    found = recipes(tmp_path, a="", b="[distill]\nmu = 1", c="[distill]\nmu = 2")
    taken = {"b": "a", "c": "a"}
    assert shared_stages(found, tmp_path) == {"teacher": taken, "prompts": taken, "undistilled": taken}


@pytest.mark.parametrize(
    ("body", "shared"),
    [
        ("seed = 1", []),
        ("[data]\nheldout = 500", []),
        ("[teacher]\nlr = 0.01", ["undistilled"]),  # the same prompts of another teacher are others
        ("[prompts]\nepochs = 1", ["teacher", "undistilled"]),
        ("[distill]\nepochs = 1", ["teacher", "prompts"]),
        ('[distill]\nmethod = "kd"', ["teacher", "prompts", "undistilled"]),
        ('[export]\nprecisions = ["fp32"]', ["teacher", "prompts", "student", "undistilled"]),
    ],
)
def test_a_stage_is_shared_where_settings_and_inputs_are_the_same(body: str, shared: list[str], tmp_path: Path) -> None:
    assert list(shared_stages(recipes(tmp_path, a="", b=body), tmp_path)) == shared


def test_foreign_teachers_are_the_same_where_their_files_are(tmp_path: Path) -> None:
    bodies = {}
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / f"{name}.pt").write_bytes(content)
        bodies[name] = f'[teacher]\narch = "resnet56"\nweights = "{name}.pt"'
    assert shared_stages(recipes(tmp_path, **bodies), tmp_path)["teacher"] == {"b": "a"}


def test_what_is_there_stays_its_own_and_is_taken_by_the_others(tmp_path: Path) -> None:
    found = recipes(tmp_path, a="", b="[distill]\nmu = 1", c="[distill]\nmu = 2")
    finished(tmp_path / "b", found[1], "teacher", b"teacher of b")
    assert shared_stages(found, tmp_path)["teacher"] == {"a": "b", "c": "b"}
    finished(tmp_path / "c", found[2], "teacher", b"teacher of c, from another machine")
    shared = shared_stages(found, tmp_path)
    assert shared["teacher"] == {"a": "b"}
    assert shared["prompts"] == {"b": "a"}, "c's teacher is another, so its prompts are"


def test_what_was_begun_goes_on_where_it_was_begun(tmp_path: Path) -> None:
    found = recipes(tmp_path, a="", b="[distill]\nmu = 1", c="[distill]\nmu = 2")
    (tmp_path / "b" / "teacher").mkdir(parents=True)
    (tmp_path / "b" / "teacher" / "checkpoint.pt").touch()
    assert shared_stages(found, tmp_path)["teacher"] == {"a": "b", "c": "b"}
    finished(tmp_path / "c", found[2], "teacher", b"teacher of c")
    assert shared_stages(found, tmp_path)["teacher"] == {"a": "c", "b": "c"}, "what is done needs no training at all"


def test_a_shared_stage_is_the_makers_and_its_run_is_whole(tmp_path: Path) -> None:
    a, b = recipes(tmp_path, a="", b="[distill]\nmu = 1")
    finished(tmp_path / "a", a, "teacher", b"teacher")
    finished(tmp_path / "a", a, "prompts", b"prompts", "teacher")
    finished(tmp_path / "b", b, "teacher", b"an older teacher")
    finished(tmp_path / "b", b, "prompts", b"prompts of before", "teacher")
    for left in ("checkpoint.pt", "progress.json", "progress.jsonl"):  # of a training that was cut short
        (tmp_path / "b" / "prompts" / left).touch()
    for stage in ("teacher", "prompts"):
        share_stage(stage, b.recipe, tmp_path / "b", tmp_path / "a")
        record = read_record(tmp_path / "b" / stage / "record.json")
        assert (record["recipe"], record["shared_from"]) == ("b", "a")
        made = read_record(tmp_path / "a" / stage / "record.json")
        assert {key: record[key] for key in made if key != "recipe"} == {k: v for k, v in made.items() if k != "recipe"}
        assert sorted(p.name for p in (tmp_path / "b" / stage).iterdir()) == sorted(
            p.name for p in (tmp_path / "a" / stage).iterdir()
        )
    assert lineage(tmp_path / "b").faults == []


def test_nothing_is_shared_that_is_not_the_same(tmp_path: Path) -> None:
    a, b, c = recipes(tmp_path, a="", b="[distill]\nmu = 1", c="[teacher]\nlr = 0.01")
    finished(tmp_path / "a", a, "teacher", b"teacher")
    finished(tmp_path / "a", a, "prompts", b"prompts", "teacher")
    finished(tmp_path / "b", b, "teacher", b"another teacher")
    with pytest.raises(UserError, match="made by other settings than those of c"):
        share_stage("teacher", c.recipe, tmp_path / "c", tmp_path / "a")
    with pytest.raises(UserError, match="made from another teacher than that of b"):
        share_stage("prompts", b.recipe, tmp_path / "b", tmp_path / "a")
    (tmp_path / "a" / "teacher" / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(UserError, match="its bytes are not those that were recorded"):
        share_stage("teacher", b.recipe, tmp_path / "b", tmp_path / "a")
    assert not (tmp_path / "c").exists()
    assert not (tmp_path / "b" / "prompts").exists()


@pytest.mark.parametrize("maker", ["a", "linked"])
def test_a_stage_is_not_shared_with_itself(maker: str, tmp_path: Path) -> None:
    (a,) = recipes(tmp_path, a="")
    finished(tmp_path / "a", a, "teacher", b"teacher")
    (tmp_path / "linked").symlink_to("a")
    with pytest.raises(UserError, match="is that stage itself"):
        share_stage("teacher", a.recipe, tmp_path / "a", tmp_path / maker)
    assert lineage(tmp_path / "a").faults == [], "it was copied from what was deleted first"


def test_a_foreign_teacher_of_other_weights_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    body = '[teacher]\narch = "resnet56"\nweights = "{}.pt"'
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / f"{name}.pt").write_bytes(content)
    a, _, _ = recipes(tmp_path, **{name: body.format(name) for name in "abc"})
    record = finished(tmp_path / "a", a, "teacher", b"teacher")
    write_record(record, read_record(record) | {"inputs": {"data": "d", "weights": a.weights}})
    asked = ["share-stage", "teacher", "--from", "a", "--runs", str(tmp_path), "--recipe"]
    told = str(CliRunner().invoke(app, [*asked, "b.toml"]).exception)
    assert ("taken from another weights file than that of b" in told, (tmp_path / "b").exists()) == (True, False)
    finished(tmp_path / "a", a, "undistilled", b"made from no file")
    for stage in ("teacher", "undistilled"):
        assert CliRunner().invoke(app, [asked[0], stage, *asked[2:], "c.toml"]).exit_code == 0


def test_two_recipes_of_one_name_are_refused_and_one_named_twice_is_one(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (first,) = recipes(tmp_path, a="")
    (tmp_path / "x" / "a.toml").write_text('extends = "default"\n')
    assert [one.name for one in read_recipes([str(first.file), "default", str(first.file)])] == ["a", "default"]
    with pytest.raises(UserError, match=r"a\.toml: .*a\.toml has the same name"):
        read_recipes([str(first.file), str(tmp_path / "x" / "a.toml")])


def put_recipe(folder: Path, body: str = "") -> Named:
    folder.mkdir(exist_ok=True, parents=True)
    (one,) = recipes(folder, photos=body)
    return one


def begun(runs: Path, one: Named) -> list[Path]:
    """What a run does before its graph: outdated records go, the folder is its own."""
    outdated = outdated_records(runs, one)
    for path in outdated:
        path.unlink()
    claim_folder(runs, one)
    return outdated


def test_records_of_another_recipe_of_the_same_name_are_not_lost(tmp_path: Path) -> None:
    runs, first = tmp_path / "runs", put_recipe(tmp_path / "a")
    (runs / "photos").mkdir(parents=True)
    assert begun(runs, first) == []
    finished(runs / "photos", first, "teacher", b"teacher")
    record = runs / "photos" / "teacher" / "record.json"
    assert begun(runs, put_recipe(tmp_path / "b")) == [], "the same recipe, elsewhere"
    other = put_recipe(tmp_path / "b", "seed = 3")
    told = rf"b/photos\.toml: the records in .*photos are of {tmp_path}/a/photos\.toml, which has the same name"
    with pytest.raises(UserError, match=told):
        outdated_records(runs, other)
    changed = put_recipe(tmp_path / "a", "seed = 3")
    assert begun(runs, changed) == [record], "its own recipe has changed"
    finished(runs / "photos", changed, "teacher", b"teacher")
    first.file.unlink()
    moved = put_recipe(tmp_path / "b", "seed = 4")
    assert begun(runs, moved) == [record], "it was renamed or moved"
    finished(runs / "photos", moved, "teacher", b"teacher")
    with pytest.raises(UserError, match=r"a/photos\.toml: the records in .* are of .*b/photos\.toml"):
        outdated_records(runs, put_recipe(tmp_path / "a", "seed = 5"))


def test_a_folder_in_which_the_first_left_no_record_is_the_seconds(tmp_path: Path) -> None:
    runs, first, second = tmp_path / "runs", put_recipe(tmp_path / "a"), put_recipe(tmp_path / "b", "seed = 3")
    (runs / "photos").mkdir(parents=True)
    begun(runs, first)  # and its teacher diverges
    begun(runs, second)
    finished(runs / "photos", second, "teacher", b"teacher")
    with pytest.raises(UserError, match=r"a/photos\.toml: the records in .* are of .*b/photos\.toml"):
        outdated_records(runs, first)
    assert len(outdated_records(runs, put_recipe(tmp_path / "b", "seed = 4"))) == 1


def test_a_project_that_is_copied_with_its_runs_stays_its_own(tmp_path: Path) -> None:
    runs, one = tmp_path / "old" / "runs", put_recipe(tmp_path / "old")
    (runs / "photos").mkdir(parents=True)
    begun(runs, one)
    finished(runs / "photos", one, "teacher", b"teacher")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    changed = put_recipe(tmp_path / "new", "seed = 3")
    copied = tmp_path / "new" / "runs"
    assert outdated_records(copied, changed) == [copied / "photos" / "teacher" / "record.json"]


def test_a_shipped_recipe_is_its_own_wherever_this_program_lies(tmp_path: Path) -> None:
    (one,) = read_recipes(["default"])
    path = tmp_path / "runs" / "default" / "teacher" / "record.json"
    write_record(path, {"config_digest": "of another version"})
    put_recipe(tmp_path / "old")
    note = tmp_path / "runs" / "default" / ".recipe"
    note.write_text("../old/photos.toml")
    assert begun(tmp_path / "runs", one) == [path]
    assert note.read_text() == "../old/photos.toml"


def test_a_record_of_no_identity_is_outdated(tmp_path: Path) -> None:
    one = put_recipe(tmp_path / "a")
    path = tmp_path / "photos" / "student" / "bundle" / "manifest.json"
    for lineage_of in (list[str](), None, "x", dict[str, str]()):
        write_record(path, {"lineage": lineage_of})
        assert outdated_records(tmp_path, one) == [path]


def test_a_teacher_taken_from_a_file_is_outdated_once_its_file_is_another(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / f"{name}.pt").write_text(name)
    body = '[teacher]\narch = "resnet56"\nweights = "{}.pt"'
    (before,) = recipes(tmp_path, a=body.format("old"))
    record = finished(tmp_path / "a", before, "teacher", b"teacher")  # by a verb: Snakemake knows nothing of it
    write_record(record, read_record(record) | {"inputs": {"data": "d", "weights": before.weights}})
    assert outdated_records(tmp_path, before) == []
    (now,) = recipes(tmp_path, a=body.format("new"))
    assert outdated_records(tmp_path, now) == [record]


def test_names_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"comparison\.toml: runs/comparison is the folder of reports"):
        recipes(tmp_path, comparison="")
    done = CliRunner().invoke(app, ["share-stage", "teachr", "--from", "a", "--runs", str(tmp_path)])
    assert str(done.exception) == "unknown stage 'teachr': did you mean 'teacher'? [E_UNKNOWN_NAME]"


def test_goals_name_their_files() -> None:
    (one,) = read_recipes(["default"])
    assert targets_of("distill", one, ["local"]) == ["default/student/record.json", "default/undistilled/record.json"]
    assert "default/profiles/b/student-fp32.json" in targets_of("profile", one, ["a", "b"])
    assert targets_of("profile", one, ["local"])[-1] == "default/report.html"


def test_where_a_recipe_lies_and_what_it_is_called_is_no_part_of_a_comparison(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    plans = [
        plan_of(recipes(folder, a="", b="seed = 1"), tmp_path, ["distill"], []) for folder in (tmp_path, tmp_path / "x")
    ]
    assert plans[0]["comparison"] == plans[1]["comparison"]
    assert plans[0]["comparison"] != plan_of(recipes(tmp_path, a=""), tmp_path, ["distill"], [])["comparison"]


def test_roles_take_turns_where_each_takes_several_processes(tmp_path: Path) -> None:
    assert roles_in_turns(load_recipe("default")[1]) == [("teacher",), ("student",), ("undistilled",)]
    longer = tmp_path / "longer.toml"
    longer.write_text('extends = "default"\n[profile]\npreset = "standard"\n')
    assert roles_in_turns(load_recipe(str(longer))[1]) == [("teacher", "student", "undistilled")]


def test_measurements_are_outdated_where_they_are_made_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another [profile] or another devices.toml; a board that no host reaches is measured by nobody again."""
    inventory = tmp_path / "devices.toml"
    inventory.write_text('[orin1]\nhost = "a"\n')
    monkeypatch.setenv("AFPKD_DEVICES", str(inventory))
    one = put_recipe(tmp_path / "a")
    made = {"config_digest": one.recipe.stage_digest("profile"), "device_digest": find_device("orin1").digest}
    there, by_hand = (tmp_path / "photos" / "profiles" / name / "student-fp32.json" for name in ("orin1", "attic"))
    write_record(there, made)
    write_record(by_hand, made | {"config_digest": "of another preset"})
    assert outdated_records(tmp_path, one, ["orin1"]) == []
    inventory.write_text('[orin1]\nhost = "a"\nclocks = "locked"\n')
    assert outdated_records(tmp_path, one, ["orin1"]) == [there]
    assert outdated_records(tmp_path, one, ["local"]) == outdated_records(tmp_path, one) == []
    write_record(there, made | {"config_digest": "of another preset"})
    assert outdated_records(tmp_path, one, ["orin1"]) == [there]
