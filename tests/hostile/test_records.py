"""Records of a stranger's run: the code that they name is not run, weights that they do not know are not scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

from afpkd.errors import UserError
from afpkd.models import build_model
from afpkd.record import Json, write_record
from deploy.profile_record import SCHEMA as PROFILE
from pipeline import summary
from pipeline.evaluation import evaluate_path
from pipeline.lineage import WEIGHTS, lineage
from pipeline.networks import recorded_network
from pipeline.plan import Named
from pipeline.recipe_reader import load_recipe
from pipeline.recorded import checked, recorded
from pipeline.report import writing
from pipeline.report.records import read_profile, read_records
from pipeline.report.regression import compare_runs
from pipeline.reproduce import CHECKPOINT, NEEDED, _differs, profiles_compared, reproduce
from pipeline.sharing import share_stage, shared_stages
from tests.hostile.mutations import broken_document, one_line
from tests.pipeline.conftest import bundle_manifest, hand_made_run, profile_record, role_record

MANIFEST = "student/bundle/manifest.json"
OWN = "from torch import nn\ndef make(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))\n"


@pytest.fixture(name="evil")
def _evil(tmp_path: Path, trap: Path) -> Path:
    """A stranger's file, which would leave its mark."""
    path = tmp_path / "theirs" / "net.py"
    path.parent.mkdir()
    path.write_text(f"import pathlib\npathlib.Path({str(trap)!r}).touch()\n{OWN}")
    return path


def record_of(arch: str) -> Json:
    network: Json = {"arch": arch, "stages": [], "own": None}
    facts = {"num_classes": 10, "in_channels": 1, "image_size": [28, 28], "data": "fashion_mnist_5k"}
    return {"arch": "net.py:make", "network": network, "preprocessing": {"mean": [0.0], "std": [1.0]}, **facts}


@pytest.mark.parametrize("arch", [None, "resnet8", "other.py:make"])
def test_a_file_that_a_record_names_is_not_run(evil: Path, tmp_path: Path, arch: str | None) -> None:
    write_record(tmp_path / "student" / "record.json", record_of(f"{evil}:make"))
    with pytest.raises(UserError, match=r"net\.py:make, whose code would be run: if it is yours, name it: --arch net"):
        evaluate_path(tmp_path / "student", arch=arch, data=None, recipe=None)


def test_a_file_that_the_caller_names_is_run_in_its_place(evil: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OWN)
    made = recorded_network(record_of(f"{evil}:make"), f"{tmp_path / 'net.py'}:make")
    assert sum(isinstance(module, nn.Linear) for module in made.modules()) == 1


def test_weights_that_are_not_the_recorded_ones_are_not_scored(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    write_record(folder / "record.json", {**record_of("resnet8"), "outputs": {WEIGHTS: "0" * 64}})
    with pytest.raises(UserError, match=r"model\.safetensors: not there, though .*record\.json is"):
        evaluate_path(folder, arch=None, data=None, recipe=None)
    save_file(build_model("resnet8", num_classes=10, in_channels=1).state_dict(), folder / WEIGHTS)
    with pytest.raises(UserError, match=r"model\.safetensors: its bytes are not those that were recorded"):
        evaluate_path(folder, arch=None, data=None, recipe=None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "nix"}, r"record\.json: unknown data set 'nix'"),
        ({"folder": {"path": 5}}, r"the record's folder\.name: .*: was it made by another version"),
        ({"folder": {}}, r"the record's folder\.name: .*: was it made by another version"),
    ],
)
def test_images_that_nobody_knows_are_one_line(tmp_path: Path, changes: Json, said: str) -> None:
    write_record(tmp_path / "student" / "record.json", {**record_of("resnet8"), **changes})
    with pytest.raises(UserError, match=said) as raised:
        evaluate_path(tmp_path / "student", arch=None, data=None, recipe=None)
    assert raised.value.code == "E_RECORD"


def test_a_recipe_that_a_record_names_is_not_read(evil: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "theirs" / "evil.toml"
    recipe.write_text(f'extends = "default"\n[distill]\nstudent = "{evil}:make"\n')
    path = tmp_path / "undistilled" / "record.json"
    facts: Json = {
        "schema": "afpkd.checkpoint/1",
        "role": "undistilled",
        "recipe": str(recipe),
        "outputs": {},
        "inputs": {},
    }
    facts |= {"device": "cpu", "threads": 1, "config_digest": "d", "metrics": {"test_top1_selected": 1.0}}
    write_record(path, {**facts, "versions": {}, "machine": {"system": "", "processor": "", "num_cpus": 1}})
    with pytest.raises(UserError, match=r"which is not a shipped one: name its file, --recipe FILE"):
        reproduce(path, None, tmp_path / "work")


@pytest.fixture(name="run")
def _run(tmp_path: Path) -> Path:
    """A run as it is left, with a profile in it; its bundles are gone."""
    return hand_made_run(tmp_path / "tiny").folder


@pytest.fixture(autouse=True)
def _without_bill_of_materials(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of this environment's packages, whatever the records say."""
    monkeypatch.setattr(writing, "write_sbom", lambda path: None)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", ["student/record.json", "profiles/local/student-fp32.json", MANIFEST])
def test_a_record_of_junk_is_one_line_for_whoever_reads_it(run: Path, name: str, seed: int, tmp_path: Path) -> None:
    """Those who verify, report, compare, score, share and do it again: none of them ends in a traceback."""
    write_record(run / MANIFEST, bundle_manifest("bb" * 32))
    path = run / name
    path.write_text(json.dumps(broken_document(json.loads(path.read_text()), seed)))
    asked: list[Callable[[], object]] = [
        lambda: [UserError("E", fault) for fault in lineage(run).faults],
        lambda: summary.closing([summary.facts(run)], ["distill"], {}),
        lambda: writing.write_report([read_records(run, "tiny")], tmp_path / "report"),
        lambda: compare_runs(run, run, threshold=5, max_drop=1),
        lambda: evaluate_path(path.parent, arch=None, data=None, recipe=None),
        lambda: reproduce(path, "default", tmp_path / "work"),
        lambda: share_stage("student", load_recipe("default")[1], run, run),
        lambda: shared_stages([Named("tiny", load_recipe("default")[1], path, None)], run.parent),
    ]
    for ask in asked:
        try:
            found = ask()
        except UserError as error:
            one_line(error)
        else:
            for fault in found if isinstance(found, list) else []:
                if isinstance(fault, UserError):
                    one_line(fault)


@pytest.mark.parametrize("manifest", [{}, {"macs": {"macs": 5}, "evaluation": 3}])
def test_a_manifest_of_nothing_that_we_know_is_one_line(run: Path, manifest: Json, tmp_path: Path) -> None:
    path = run / "student" / "bundle" / "manifest.json"
    write_record(path, manifest)
    asked: list[Callable[[], object]] = [
        lambda: writing.write_report([read_records(run, "tiny")], tmp_path / "report"),
        lambda: compare_runs(run, run, threshold=5, max_drop=1),
        lambda: read_profile(run / "profiles" / "local" / "student-fp32.json"),
    ]
    for ask in asked:
        with pytest.raises(UserError, match=r"manifest\.json: schema None, expected .*: export it again"):
            ask()


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("student/record.json", key) for key in role_record("student")),
        *(("profiles/local/student-fp32.json", key) for key in profile_record("student")),
    ],
)
def test_a_record_without_a_key_is_reported_or_one_line(
    run: Path, name: str, key: str, null: bool, tmp_path: Path
) -> None:
    document = json.loads((run / name).read_text())
    del document[key]
    (run / name).write_text(json.dumps({**document, key: None} if null else document))
    try:
        assert summary.closing([summary.facts(run)], ["distill"], {})
        assert writing.write_report([read_records(run, "tiny")], tmp_path / "report")
    except UserError as error:
        one_line(error)


@pytest.mark.parametrize("seed", range(40))
def test_what_a_record_says_of_then_is_compared_or_one_line(seed: int, tmp_path: Path) -> None:
    """A trained network's record and a profile that were found sound, beside today's."""
    needed = {"student": CHECKPOINT, "profile": PROFILE}
    for kind, schema in needed.items():
        whole = (role_record if kind == "student" else profile_record)("student")
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps(broken_document(whole, seed)))
        try:
            before = checked(recorded(path), path, *NEEDED[schema])
        except UserError as error:
            one_line(error)
            continue
        if kind == "profile":
            assert profiles_compared(before, whole)
        else:
            assert isinstance(_differs(before, whole), list)
