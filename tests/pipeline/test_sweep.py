"""Sweeps: every combination is a recipe that was read before anything runs, and that can be read again alone."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afpkd.errors import UserError
from afpkd.record import Json
from pipeline import graph, sweep
from pipeline.cli import app
from pipeline.recipe_reader import load_recipe, teacher_weights
from pipeline.sweep import Point, points_of, rows_of, table_of, write_points
from tests.pipeline.conftest import hand_made_run
from tests.pipeline.recipe_files import written
from tests.stories import commands


def read_again(points: list[Point], runs: Path) -> list[tuple[str, Json]]:
    found = [load_recipe(file) for file in write_points(points, runs)]
    return [(name, dataclasses.asdict(recipe)) for name, recipe in found]


def test_every_combination_with_every_seed_is_a_point_and_a_recipe(tmp_path: Path) -> None:
    base = written(tmp_path, 'extends = "default"\n[prompts]\nunited = false\ngate = false\n', "base.toml")
    points = points_of(base, ["distill.mu=1,2.5", "distill.method=afpkd,freekd"], 3)
    assert [point.name for point in points][:4] == [
        "base.mu=1.method=afpkd.seed=0",
        "base.mu=1.method=afpkd.seed=1",
        "base.mu=1.method=afpkd.seed=2",
        "base.mu=1.method=freekd.seed=0",
    ]
    assert len({point.name for point in points}) == 2 * 2 * 3
    found = read_again(points, tmp_path)
    assert [name for name, _ in found] == [point.name for point in points]
    wanted = [(mu, method, seed) for mu in (1, 2.5) for method in ("afpkd", "freekd") for seed in (0, 1, 2)]
    assert [(r["distill"]["mu"], r["distill"]["method"], r["seed"]) for _, r in found] == wanted
    default = dataclasses.asdict(load_recipe("default")[1])
    assert all(recipe["teacher"] == default["teacher"] for _, recipe in found)


def test_a_sweep_over_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to sweep: give --set"):
        points_of("default", [], 1)


def test_one_seed_needs_no_name_and_seeds_start_at_the_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('extends = "default"\nseed = 7\n')
    assert [(point.name, point.seed) for point in points_of(str(recipe), [], 1)] == [("mine", 7)]
    assert [(point.name, point.seed) for point in points_of(str(recipe), [], 2)] == [
        ("mine.seed=7", 7),
        ("mine.seed=8", 8),
    ]
    chosen = points_of(str(recipe), ["seed=3,1"], 1)
    assert [(point.name, point.seed) for point in chosen] == [("mine.seed=3", 3), ("mine.seed=1", 1)]


def test_values_have_the_types_of_toml(tmp_path: Path) -> None:
    points = points_of("default", ['export.precisions=["fp32"],["fp32", "int8"]', "data.flip=true,false"], 1)
    found = [recipe for _, recipe in read_again(points, tmp_path)]
    assert [(tuple(r["export"]["precisions"]), r["data"]["flip"]) for r in found] == [
        (("fp32",), True),
        (("fp32",), False),
        (("fp32", "int8"), True),
        (("fp32", "int8"), False),
    ]


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ('"x,y",z', ["x,y", "z"]),
        ("z,'x,y'", ["z", "x,y"]),
        ("z,[1,2],[[3,4],5]", ["z", [1, 2], [[3, 4], 5]]),
        ('["a,b", "c"],1e-3,word, two words ,true', [["a,b", "c"], 1e-3, "word", "two words", True]),
        ("1,,2,", [1, 2]),
        ("2020-01-01,a'b", ["2020-01-01", "a'b"]),
        ("a\nb = 1,1\nc = 2", ["a\nb = 1", "1\nc = 2"]),
    ],
)
def test_commas_in_quotes_and_brackets_part_nothing(given: str, values: list[object]) -> None:
    assert sweep._settings([f"a.b={given}"]) == {"a.b": values}


def test_points_of_another_recipe_of_the_same_name_are_not_lost(tmp_path: Path) -> None:
    runs, files = tmp_path / "runs", dict[str, str]()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files[folder] = written(tmp_path / folder, f'extends = "default"\nseed = {len(files)}\n', "photos.toml")
    swept = {folder: points_of(file, ["distill.mu=1,2"], 1) for folder, file in files.items()}
    write_points(swept["a"], runs)
    write_points(swept["a"], runs)
    before = {path: path.read_bytes() for path in runs.rglob("*.toml")}
    with pytest.raises(UserError, match=r"mu=1\.toml: of a sweep of .*/a/photos\.toml, not of .*/b/photos\.toml"):
        write_points(swept["b"], runs)
    assert {path: path.read_bytes() for path in runs.rglob("*.toml")} == before
    Path(files["a"]).unlink()
    assert len(write_points(swept["b"], runs)) == 2


def test_a_project_that_is_copied_with_its_points_sweeps_on(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    written(tmp_path / "old", 'extends = "default"\nseed = 5\n', "photos.toml")
    for project in (tmp_path / "old", tmp_path / "new"):
        (point,) = write_points(points_of(str(project / "photos.toml"), ["distill.mu=1"], 1), project / "runs")
        assert load_recipe(point)[1].seed == 5
        if project.name == "old":
            shutil.copytree(project, tmp_path / "new")


def test_points_in_a_folder_of_runs_that_is_a_link_find_their_recipe(tmp_path: Path) -> None:
    (tmp_path / "disk" / "runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "runs")
    base = written(tmp_path, 'extends = "default"\nseed = 5\n', "photos.toml")
    for _ in range(2):
        (point,) = write_points(points_of(base, ["distill.mu=1"], 1), tmp_path / "runs")
        assert load_recipe(point)[1].seed == 5


def test_names_are_legal_names_of_files_and_differ() -> None:
    values = [f'["a/{"x" * 30}{end}:b"]' for end in "yz"]
    points = points_of("default", [f"export.int8_exclude={','.join(values)}"], 1)
    names = [point.name for point in points]
    assert len(set(names)) == 2
    assert all(re.fullmatch(r"[A-Za-z0-9.=+_-]{1,80}", name) for name in names)


def test_keys_with_one_last_word_keep_their_sections() -> None:
    points = points_of("default", ["teacher.epochs=1", "distill.epochs=2"], 1)
    assert points[0].name == "default.teacher.epochs=1.distill.epochs=2"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "distill.mux=1"], "default.toml: distill.mux: unknown key: did you mean 'mu'?"),
        (["--set", "distill.mu=1,fast"], "default.toml: distill.mu: "),
        (["--set", "distill.mu=-1"], "default.toml: distill.mu"),
        (["--set", "teacher.arch=resnet9"], "unknown model 'resnet9'"),
        (["--set", "distil.mu=1"], "default.toml: distil: unknown key: did you mean 'distill'?"),
        (["--set", "distill.mu"], "--set distill.mu: KEY=VALUE,VALUE was expected"),
        (["--set", "distill.mu="], "one value at least"),
        (
            ["--set", 'description="x,y'],
            '--set description="x,y: "x,y is no value of TOML: is a quote or a bracket missing?',
        ),
        (["--set", "distill.mu=1,[2,3"], "--set distill.mu=1,[2,3: [2,3 is no value of TOML"),
        (["--set", "distill.mu=1,1.0"], "default.mu=1.0 and default.mu=1 are one recipe: leave one of the two"),
        (["--seeds", "100000000"], "100,000,000 points, each of them a training: 1,000 at most"),
        (["--set", "distill.mu=1,2", "--seeds", "501"], "1,002 points"),
        (["--seeds", "2", "--snakemake", "-n '"], "--snakemake -n ': no closing quotation: close it"),
        (["--set", "distill.mu=1,1"], "a value is there twice"),
        (["--set", "distill.mu=nan,1"], "inf and nan are no values of a recipe"),
        (["--set", "distill.mu=1", "--set", "distill.mu=2"], "--set distill.mu: given twice"),
        (["--set", "expected={a=1}"], "none of them a table"),
        (["--set", "seed=1,2", "--seeds", "2"], "give one of them"),
        (["--set", "description=a", "--set", "description.x=b"], "description has a value of its own"),
        (["--seeds", "0"], "--seeds: at least 1"),
        (["--seeds", "2", "--cluster", "slrum"], "unknown cluster 'slrum': did you mean 'slurm'?"),
        (["--seeds", "2", "--device", "jetson9"], "jetson9"),
    ],
)
def test_a_mistake_names_its_key_and_nothing_starts(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["sweep", "default", *arguments])
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_lists_the_points_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["sweep", "default", "--set", "distill.mu=1,2", "--seeds", "2", "--dry-run"]
    done = CliRunner().invoke(app, arguments)
    assert done.stdout.splitlines()[1] == "default.mu=1.seed=1  distill.mu=1 seed=1"
    listed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [(row["settings"], row["seed"]) for row in listed][2:] == [({"distill.mu": 2}, 0), ({"distill.mu": 2}, 1)]
    (line,) = commands("cluster.md")
    told = CliRunner().invoke(app, line.partition("#")[0].split()[1:]).stdout.splitlines()
    assert [point.partition("  ")[0] for point in told] == [
        f"default.mu={mu}.seed={seed}" for mu in (5, 20, 60) for seed in range(3)
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_ends_as_a_run_with_the_report_that_is_there_and_what_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(goals: list[str], *, recipes: list[str], runs: Path, **given: object) -> list[Path]:
        return [hand_made_run(runs / Path(file).stem).folder for file in recipes]

    monkeypatch.setattr(graph, "run_goals", made)
    (tmp_path / "comparison").mkdir()
    given = ["--runs", str(tmp_path), "--train-device", "cpu"]

    def said(values: str, *more: str) -> str:
        words = ["sweep", "default", "--set", f"distill.mu={values}", *given, *more]
        return CliRunner().invoke(app, words, catch_exceptions=False).stdout

    file = points_of("default", ["distill.mu=1"], 1)[0].file(tmp_path)
    again = f"one point again: make distill RECIPE={file} TRAIN_DEVICE=cpu RUNS={tmp_path}"
    assert said("1").splitlines()[-2:] == ["", again]
    (tmp_path / "default.mu=1" / "report.html").touch()  # of an earlier run up to `profile`
    assert json.loads(said("1", "--json"))["report"] is None
    report = tmp_path / "default.mu=1" / "report.html"
    assert f"report: {report}" in said("1", "--goal", "profile").splitlines()
    assert said("1,2").splitlines()[-2:] == [f"report: {tmp_path / 'comparison' / 'report.html'}", again]


def test_files_beside_the_recipe_are_found_from_the_points_too(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def student(): pass")
    for name in ("teacher.pt", "start.pt"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "foreign.toml").write_text(
        'extends = "default"\n[teacher]\narch = "resnet56"\nweights = "teacher.pt"\n'
        '[distill]\nstudent = "net.py:student"\n'
    )
    trained = 'extends = "default"\n[teacher]\nweights = "start.pt"\nepochs = 9\n'
    (tmp_path / "trained.toml").write_text(trained)
    for name in ("foreign", "trained"):
        base = load_recipe(str(tmp_path / f"{name}.toml"))[1]
        points = points_of(str(tmp_path / f"{name}.toml"), ["distill.mu=1,2"], 1)
        for point, file in zip(points, write_points(points, tmp_path / "runs"), strict=True):
            recipe = load_recipe(file)[1]
            assert recipe.distill.student == base.distill.student
            assert (recipe.stage_digest("teacher"), recipe.seed) == (base.stage_digest("teacher"), base.seed)
            if name == "foreign":
                assert teacher_weights(recipe, Path(file)) == tmp_path / "teacher.pt"
            assert recipe.distill.options()["mu"] == point.settings["distill.mu"]


def facts(student: float, undistilled: float | None = None, teacher: float | None = None) -> Json:
    """Scores on test; those on held-out images are 2.5 points higher, and a foreign teacher has none."""
    given = {"teacher": teacher, "student": student, "undistilled": undistilled}
    roles = {
        role: {
            "metrics": {
                "test_top1_last": 0.0,
                "test_top1_selected": top1,
                "heldout_top1": None if role == "teacher" else top1 + 2.5,
            }
        }
        for role, top1 in given.items()
        if top1 is not None
    }
    return {"roles": roles}


def test_a_row_is_the_mean_and_the_spread_over_its_seeds() -> None:
    points = points_of("default", ["distill.mu=1,2"], 3)
    scores = [80.0, 81.0, 85.0, 70.0, 70.5, 71.0]
    rows = rows_of(points, [facts(score, 60.0) for score in scores[:5]] + [facts(scores[5])])
    assert [(row["settings"], row["seeds"]) for row in rows] == [
        ({"distill.mu": 1}, [0, 1, 2]),
        ({"distill.mu": 2}, [0, 1, 2]),
    ]
    assert rows[0]["roles"]["student"] == {"mean": 82.0, "std": statistics.stdev(scores[:3]), "n": 3}
    assert rows[0]["heldout"]["student"] == {"mean": 84.5, "std": statistics.stdev(scores[:3]), "n": 3}
    assert rows[1]["roles"]["undistilled"]["n"] == 2
    assert "teacher" not in rows[0]["roles"]
    assert rows_of(points[:1], [facts(80.0)])[0]["roles"]["student"] == {"mean": 80.0, "std": None, "n": 1}


def test_the_table_shows_the_score_to_choose_by_before_the_one_on_test() -> None:
    points = points_of("default", ["distill.mu=1,20"], 2)
    rows = rows_of(points, [facts(80.0, 60.0, 90.0), facts(81.0, 60.0, 90.0), facts(70.0), facts(70.5)])
    assert table_of(rows) == [
        "                          held-out      held-out          test          test          test",
        "               seeds       student   undistilled       teacher       student   undistilled",
        "distill.mu=1       2  83.00 ± 0.71  62.50 ± 0.00  90.00 ± 0.00  80.50 ± 0.71  60.00 ± 0.00",
        "distill.mu=20      2  72.75 ± 0.35             -             -  70.25 ± 0.35             -",
    ]


def test_detectors_are_swept_by_ap() -> None:
    metrics = {"test_ap_selected": 20.0, "heldout_ap": 21.0, "test_ap50_selected": 40.0, "heldout_ap50": 41.0}
    (row,) = rows_of(points_of("default", ["distill.mu=1"], 1), [{"roles": {"student": {"metrics": metrics}}}])
    assert (row["heldout"]["student"]["mean"], row["roles"]["student"]["mean"]) == (21.0, 20.0)
