"""`afpkd reproduce`: trained again, measured again: what comes back, what does not, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from afpkd.errors import UserError
from afpkd.record import Json, read_record, write_record
from deploy.profile_record import SCHEMA as PROFILE
from deploy.statistics import top1_interval
from pipeline import stages
from pipeline.cli import app
from pipeline.recipe_reader import load_recipe
from pipeline.record_keys import EPOCH, NETWORK
from pipeline.reproduce import CHECKPOINT, NEEDED, exit_code, profiles_compared, reproduce
from pipeline.workspace import open_run
from tests.deploy.conftest import hand_made_bundle, instant  # noqa: F401 (a fixture)
from tests.deploy.test_measure import measured
from tests.record_tables import missing, untold

RECIPE = """
extends = "default"
[data]
heldout = 100
[teacher]
epochs = 0.1
min_top1 = 0.0
[distill]
epochs = 0.1
"""


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose undistilled network was trained for a moment; beside it the recipe."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.toml").write_text(RECIPE)
    stages.train_undistilled(open_run(str(folder / "tiny.toml"), folder / "runs", device="cpu", threads=1))
    return folder


def test_each_key_of_a_networks_record_is_in_the_reference(trained: Path) -> None:
    made = trained / "runs" / "tiny" / "undistilled"
    record, epoch = read_record(made / "record.json"), json.loads((made / "metrics.jsonl").read_text().splitlines()[0])
    assert untold(record, NETWORK) == missing(record, NETWORK) == []
    assert untold(epoch, EPOCH) == missing(epoch, EPOCH) == []


@pytest.fixture(name="record")
def _record(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose record may be changed."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy" / "runs" / "tiny" / "undistilled" / "record.json"


def told(record: Path, *options: str) -> tuple[int, str]:
    recipe = record.parents[3] / "tiny.toml"
    done = CliRunner().invoke(app, ["reproduce", str(record), "--recipe", str(recipe), *options])
    return done.exit_code, done.stdout


def test_the_same_seed_gives_the_same_bytes(record: Path) -> None:
    before = record.read_bytes()
    code, shown = told(record)
    assert code == 0, shown
    rows = [line.split() for line in shown.splitlines()]
    assert [row[0] for row in rows] == ["weights", "test"]
    assert "to the byte" in shown
    assert shown.count(" within ") == 2
    assert record.read_bytes() == before


def test_what_does_not_come_back_is_said_with_what_differs(record: Path) -> None:
    """An accuracy and weights that this recipe never gave, on a machine of another version."""
    changed = read_record(record)
    changed["metrics"]["test_top1_selected"] = 99.0
    changed["outputs"] = {"model.safetensors": "0" * 64}
    changed["versions"]["torch"] = "1.0"
    write_record(record, changed)
    code, shown = told(record, "--json")
    found = json.loads(shown)
    assert (code, found["exit"]) == (1, 1)
    by_name = {row["quantity"]: row for row in found["quantities"]}
    assert by_name["weights"]["within"] is None
    assert "torch 1.0 then" in by_name["weights"]["note"]
    assert (by_name["test top-1 (%)"]["within"], by_name["test top-1 (%)"]["before"]) == (False, "99.00")


def test_another_recipe_is_refused(record: Path) -> None:
    assert load_recipe("default")[0] == "default"
    with pytest.raises(UserError, match="recipe default says something else by now"):
        reproduce(record, "default", record.parent / "work")


def test_a_changed_teacher_is_refused(record: Path) -> None:
    folder = record.parents[1] / "teacher"
    shutil.copytree(record.parent, folder)
    write_record(record, {**read_record(record), "inputs": {"teacher": "0" * 64}})
    with pytest.raises(UserError, match="made from another teacher than lies in"):
        reproduce(record, str(record.parents[3] / "tiny.toml"), record.parent / "work")


def test_an_own_network_is_made_again_from_its_recipes_file(tmp_path: Path) -> None:
    net = "from torch import nn\ndef make(num_classes):\n    maps = [nn.Conv2d(1, 4, 3, 2), nn.Conv2d(4, 8, 3, 2)]\n"
    net += "    return nn.Sequential(*maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    (tmp_path / "net.py").write_text(net)
    (tmp_path / "tiny.toml").write_text(f'{RECIPE}student = "net.py:make"\n[export]\nprecisions = ["fp32"]\n')
    run = open_run(str(tmp_path / "tiny.toml"), tmp_path / "runs", device="cpu", threads=1)
    stages.train_undistilled(run)
    code, shown = told(run.role("undistilled") / "record.json")
    assert (code, shown.count(" within ")) == (0, 2), shown


def test_a_teacher_of_another_file_is_refused(record: Path) -> None:
    folder = record.parents[3]
    (folder / "w.pt").write_bytes(b"now")
    (folder / "tiny.toml").write_text('extends = "default"\n[teacher]\narch = "resnet8"\nweights = "w.pt"\n')
    digest = load_recipe(str(folder / "tiny.toml"))[1].stage_digest("teacher")
    taken = {"role": "teacher", "config_digest": digest, "inputs": {"data": "d", "weights": "0" * 64}}
    write_record(record, {**read_record(record), **taken})
    with pytest.raises(UserError, match=r"taken from another weights file than .*w\.pt is now"):
        reproduce(record, str(folder / "tiny.toml"), record.parent / "work")


@pytest.mark.parametrize("document", [{}, {"schema": "afpkd.prompts/1", "outputs": {}}, {"schema": []}])
def test_what_is_no_such_record_is_refused(document: Json, tmp_path: Path) -> None:
    write_record(tmp_path / "x.json", document)
    with pytest.raises(UserError, match="neither a profile nor a network's record"):
        reproduce(tmp_path / "x.json", None, tmp_path / "work")


def test_a_record_without_what_is_needed_or_outside_a_run_is_refused(profile: Path, record: Path) -> None:
    """Each key that is read, left out; a device that is none of torch's; a file that lies nowhere."""
    for path, schema in ((profile, PROFILE), (record, CHECKPOINT)):
        whole = read_record(path)
        for key in NEEDED[schema]:
            write_record(path, {name: value for name, value in whole.items() if name != key})
            with pytest.raises(UserError, match=rf"'{key}' is missing: name another record"):
                reproduce(path, None, path.parent / "work")
    write_record(record, {**whole, "role": None})
    with pytest.raises(UserError, match="'role' is missing"):
        reproduce(record, None, record.parent / "work")
    write_record(record, {**whole, "device": "npu"})
    with pytest.raises(UserError, match="trained on 'npu', not on cpu or cuda"):
        reproduce(record, str(record.parents[3] / "tiny.toml"), record.parent / "work")
    with NamedTemporaryFile(suffix=".json", dir="/tmp") as file:  # two folders above it there is none
        write_record(Path(file.name), whole)
        with pytest.raises(UserError, match="neither a profile nor a network's record"):
            reproduce(Path(file.name), None, record.parent / "work")


@pytest.fixture(name="profile")
def _profile(instant: str, tmp_path: Path) -> Path:  # noqa: F811 (that fixture)
    """A profile in a run of its own, measured by a preset that takes no time."""
    run = tmp_path / "runs" / "tiny"
    out = run / "profiles" / "local" / "student-fp32.json"
    measured(hand_made_bundle(run / "student" / "bundle"), out, preset=instant)
    return out


def test_a_profile_is_measured_again_by_its_own_rules(profile: Path, tmp_path: Path) -> None:
    before = profile.read_bytes()
    found = {one.quantity: one for one in reproduce(profile, None, tmp_path / "work")}
    again = read_record(tmp_path / "work" / profile.name)
    record = read_record(profile)
    assert profile.read_bytes() == before
    assert again["runtime"]["threads_asked"] == record["runtime"]["threads_asked"] == 1
    for key in ("preset", "inputs", "device", "precision", "config_digest"):
        assert again[key] == record[key], key
    assert found["p50 (ms)"].before == f"{record['latency_ms']['p50']:,.4f}"
    assert found["p50 (ms)"].now == f"{again['latency_ms']['p50']:,.4f}"
    assert (found["top-1 (%)"].within, found["top-1 (%)"].before) == (True, "90.00")


def test_another_bundle_is_refused(profile: Path, tmp_path: Path) -> None:
    manifest = profile.parents[2] / "student" / "bundle" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(UserError, match="is not the bundle that was measured"):
        reproduce(profile, None, tmp_path / "work")


def row(p50: float | None, low: float | None, high: float | None, **changes: Any) -> Json:
    latency = {"p50": p50, "p50_lo": low, "p50_hi": high}
    return {"verdict": "VALID", "latency_ms": latency, "num_runs": 3, "top1": None, "top1_interval": None, **changes}


@pytest.mark.parametrize(
    ("before", "now", "within"),
    [
        (row(1.0, 0.9, 1.1), row(1.2, 1.1, 1.3), True),
        (row(1.0, 0.9, 1.1), row(1.3, 1.11, 1.4), False),
        (row(1.0, 0.9, 1.1), row(0.8, 0.7, 0.89), False),
        (row(1.0, None, None), row(1.0, 0.9, 1.1), None),
        (row(1.0, 0.9, 1.1), row(1.0, None, None), None),
        (row(1.0, 0.9, 1.1), row(1.0, 0.9, 1.1, verdict="INVALID"), None),
        (row(1.0, 0.9, 1.1, num_runs=1), row(1.3, 1.17, 1.4, num_runs=1), True),  # the next process lies elsewhere
        (row(1.0, 0.9, 1.1, num_runs=1), row(1.4, 1.22, 1.5, num_runs=1), False),
    ],
)
def test_intervals_decide(before: Json, now: Json, within: bool | None) -> None:
    (found,) = profiles_compared(before, now)
    assert (found.quantity, found.within) == ("p50 (ms)", within)
    assert exit_code([found]) == {True: 0, False: 1, None: 3}[within]


def test_an_accuracy_that_comes_back_does_not_vouch_for_a_latency() -> None:
    scored = {"top1": 90.0, "top1_interval": [88.0, 92.0]}
    sound, invalid = row(1.0, 0.9, 1.1, **scored), row(1.0, 0.9, 1.1, **scored, verdict="INVALID")
    assert exit_code(profiles_compared(sound, sound)) == 0
    assert exit_code(profiles_compared(sound, invalid)) == 3
    assert exit_code(profiles_compared(sound, {**invalid, "top1": 10.0, "top1_interval": [8.0, 12.0]})) == 1


def test_an_accuracy_that_four_points_are_missing_of_does_not_come_back(profile: Path, tmp_path: Path) -> None:
    """Of 1,000 images Wilson's two intervals still meet: what an undistilled student had passed for a distilled one."""
    was, now = (
        row(1.0, 0.9, 1.1, top1=top1, top1_interval=top1_interval(round(top1 * 10), 1000)) for top1 in (84.8, 80.5)
    )
    assert was["top1_interval"][0] < now["top1_interval"][1]
    assert [one.within for one in profiles_compared(was, now)] == [True, False]
    assert [one.within for one in profiles_compared(was, {**was, "top1": 84.0})] == [True, True]
    with np.load(profile.with_suffix(".npz")) as arrays:
        kept = dict(arrays)
    np.savez(profile.with_suffix(".npz"), **{**kept, "logits": -kept["logits"]}, allow_pickle=False)
    found = {one.quantity: one for one in reproduce(profile, None, tmp_path / "work")}
    assert found["top-1 (%)"].within is False
    assert "image by image" in found["top-1 (%)"].note


def test_a_record_without_a_latency_never_comes_back() -> None:
    """Golden outputs were wrong then, and are now: nothing was timed."""
    broken = row(None, None, None, verdict="INVALID")
    (found,) = profiles_compared(broken, broken)
    assert (found.quantity, found.within, found.note) == ("p50 (ms)", None, "then: INVALID; now: INVALID")
    scored = {**broken, "top1": 90.0, "top1_interval": [88.0, 92.0]}
    assert [exit_code(profiles_compared(one, one)) for one in (broken, scored)] == [3, 3]


def test_an_accuracy_without_its_interval_is_not_judged() -> None:
    known, unknown = (row(1.0, 0.9, 1.1, top1=90.0, top1_interval=ends) for ends in ([88.0, 92.0], None))
    for before, now in ((known, unknown), (unknown, known)):
        assert [one.within for one in profiles_compared(before, now)] == [True, None]
    del unknown["top1_interval"]
    assert exit_code(profiles_compared(unknown, known)) == 3


def test_the_ap_of_a_detector_is_compared() -> None:
    found = profiles_compared(row(1.0, 0.9, 1.1, ap=30.0), row(1.0, 0.9, 1.1, ap=30.5))
    assert [(one.quantity, one.within) for one in found] == [("p50 (ms)", True), ("AP (%)", None)]
    assert exit_code(found) == 3
