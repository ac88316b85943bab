"""The detection bench's own code: what is missing, what stops it, a run's recipe, which weights win, the tables."""

from pathlib import Path
from typing import Any

import pytest

from afpkd import learners
from afpkd.distillers.distiller import Distiller
from afpkd.errors import UserError
from afpkd.record import Json, provenance, read_record, write_record
from bench import detection, rows
from pipeline.recipe_reader import load_recipe
from pipeline.workspace import Run
from tests.scenes import write_scenes

TINY = """extends = "bccd-fcos-cpu"
[data]
train = { annotations = "mine/train/instances.json", images = "mine/train" }
test = { annotations = "mine/test/instances.json", images = "mine/test" }
heldout = 4
image_size = [64, 96]
repeat = 1
[teacher]
arch = "fcos-mobilenetv3-64"
min_ap50 = 0.0
epochs = 1
[prompts]
epochs = 1
[distill]
epochs = 2
lr = 1e-3
"""


@pytest.fixture(autouse=True)
def _results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A protocol of a few steps on drawn scenes, whose teacher may be anything."""
    write_scenes(tmp_path / "mine" / "train", 20)
    write_scenes(tmp_path / "mine" / "test", 4, seed=1)
    (tmp_path / "tiny.toml").write_text(TINY.replace("mine/", f"{tmp_path}/mine/"))
    monkeypatch.setattr(detection, "PROTOCOL", detection.PROTOCOL._replace(recipe=str(tmp_path / "tiny.toml")))
    monkeypatch.setattr(detection, "HEADROOM", -100.0)
    return tmp_path / "runs"


def _row(name: str, seed: int, ap: float, **more: object) -> Json:
    method, variant = ("afpkd", name) if name == "no mask" else (name, "default")
    scores = {"ap": ap, "ap50": ap + 20, "ap75": ap - 5, "heldout_ap": ap, "cpu_s": 600.0}
    return {"method": method, "variant": variant, "seed": seed, **scores, **more}


def _taught(folder: Path, monkeypatch: pytest.MonkeyPatch, ap50: float = 60.0, heldout_ap: float = 45.0) -> None:
    """Records of a teacher and of prompts in place of hours of training."""

    def made(run: Run) -> Json:
        for role in ("teacher", "prompts"):
            metrics = {"test_ap50_selected": ap50, "heldout_ap": heldout_ap}
            write_record(run.role(role) / "record.json", {"metrics": metrics})
        return {}

    monkeypatch.setattr(detection, "train_teacher", made)
    monkeypatch.setattr(detection, "tune_prompts", made)


@pytest.mark.slow
def test_trials_and_rows_come_from_one_teacher_and_what_is_done_is_not_done_again(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    real = learners.start_adapters

    def counted(distiller: Distiller, *others: Any) -> None:
        started.append(type(distiller).__name__)
        real(distiller, *others)

    monkeypatch.setattr(learners, "start_adapters", counted)
    monkeypatch.setattr(detection, "TRIALS", {"none": [{"lr": 2e-3}], "imitation": [{"gamma": 0.5}]})
    for _ in range(2):
        detection.try_weights(["none", "imitation"], tiny)
    trials = rows.read(detection.TUNING)
    assert [(row["method"], row["options"], row["epochs"]) for row in trials] == [
        ("none", {"lr": 2e-3}, 1.5),
        ("imitation", {"lr": 1e-3, "gamma": 0.5}, 1.5),
    ]
    assert all(row["heldout_ap"] >= 0 and row["gradient_norms"]["boxes"] > 0 for row in trials)
    assert {row["machine"] for row in trials} == {provenance()["machine"]["processor"]}
    assert (
        load_recipe(str(tiny / "trials" / "imitation-0.5-seed0" / "imitation-0.5.toml"))[1].distill.options()["gamma"]
        == 0.5
    )
    for _ in range(2):
        detection.train_seed(0, ["none", "afpkd"], tiny)
    assert sorted(started) == ["AFPKD", "Imitation", "NoDistillation", "NoDistillation"]  # each student once
    found = rows.read(detection.PROTOCOL.result)
    assert [rows.name_of(row) for row in found] == ["none", "afpkd"]
    assert {key for row in found for key in row} >= {
        "ap",
        "ap50",
        "ap75",
        "teacher_ap50",
        "wall_s",
        "commit",
        "machine",
    }
    assert found[0]["prompts"] is None
    assert found[1]["prompts"].keys() == {"accepted", "own", "shuffled", "constant"}
    students = [read_record(tiny / f"{name}-seed0" / "student" / "record.json") for name in ("none", "afpkd")]
    assert students[0]["inputs"]["teacher"] == students[1]["inputs"]["teacher"]
    assert [student["config_digest"] for student in students] == [row["config_digest"] for row in found]


def test_a_run_is_the_protocol_with_a_seed_and_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _taught(tmp_path, monkeypatch)
    protocol = load_recipe(detection.PROTOCOL.recipe)[1]
    for name, variant in detection.VARIANTS.items():
        run = detection.run_of(name, variant, 2, tmp_path, tmp_path)
        assert (run.recipe.seed, run.threads, run.device) == (2, 1, "cpu")
        on_gpu = detection.run_of(name, variant, 2, tmp_path, tmp_path, "cuda")
        assert (on_gpu.device, on_gpu.recipe.stage_digest("student")) == ("cuda", run.recipe.stage_digest("student"))
        assert run.recipe.distill.training() == protocol.distill.training()
        assert (run.recipe.data, run.recipe.teacher) == (protocol.data, protocol.teacher)
    assert len(list(tmp_path.glob("teacher-*/record.json"))) == 1


def test_a_row_of_a_recipe_since_changed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _taught(tmp_path, monkeypatch)
    run = detection.run_of("imitation", detection.VARIANTS["imitation"], 1, tmp_path, tmp_path)
    digest = run.recipe.stage_digest("student")
    rows.append("bccd", [_row("imitation", 1, 40.0, config_digest="another")])
    rows.append("bccd", [_row("imitation", 0, 40.0, config_digest=digest)])
    assert not detection.has_row(run, "imitation")
    rows.append("bccd", [_row("imitation", 1, 41.0, config_digest=digest)])
    assert detection.has_row(run, "imitation")


def test_a_teacher_that_has_not_learnt_stops_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _taught(tmp_path, monkeypatch, ap50=49.9)
    for name, variant in detection.VARIANTS.items():
        with pytest.raises(UserError, match=r"AP50 is 49\.90 %, below 50: it has not learnt"):
            detection.run_of(name, variant, 0, tmp_path, tmp_path)


def test_a_gpu_has_rows_of_its_own_and_all_seeds_of_all_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _taught(tmp_path, monkeypatch)
    on_cpu, on_gpu = (
        detection.run_of("imitation", detection.VARIANTS["imitation"], 1, tmp_path, tmp_path, device)
        for device in ("cpu", "cuda")
    )
    digest = on_cpu.recipe.stage_digest("student")
    rows.append("bccd_gpu", [_row("imitation", 1, 40.0, config_digest=digest), _row("none", 0, 50.0)])
    assert (detection.has_row(on_cpu, "imitation"), detection.has_row(on_gpu, "imitation")) == (False, True)
    with pytest.raises(UserError, match=r"held-out AP is 45\.00 %, the undistilled student's 50\.00 %"):
        detection.require_headroom(on_gpu)
    assert detection.protocol_on("cpu").seeds == detection.SEEDS
    assert detection.protocol_on("cuda").seeds == dict.fromkeys(detection.VARIANTS, (0, 1, 2))


def test_a_teacher_no_better_than_its_student_has_nothing_to_distil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _taught(tmp_path, monkeypatch)
    teacher = detection.run_of("imitation", detection.VARIANTS["imitation"], 0, tmp_path, tmp_path)
    with pytest.raises(UserError, match="no row of `none` with seed 0 yet"):
        detection.require_headroom(teacher)
    rows.append("bccd", [_row("none", 0, 42.5), _row("none", 1, 30.0)])
    with pytest.raises(UserError, match=r"held-out AP is 45\.00 %, the undistilled student's 42\.50 %: less than 3"):
        detection.require_headroom(teacher)
    rows.append("bccd", [_row("none", 0, 42.0)])
    detection.require_headroom(teacher)


def _tried(key: str, scores: dict[float, float], lr: float = 0.01) -> list[Json]:
    return [{"method": "imitation", "options": {"lr": lr, key: at}, "heldout_ap": ap} for at, ap in scores.items()]


def test_the_best_trial_on_heldout_is_chosen_where_it_learnt_and_lies_inside_what_was_tried() -> None:
    sizes = {method: len(trials) for method, trials in detection.TRIALS.items()}
    assert sizes["imitation"] == sizes["reviewkd"] == sizes["afpkd"] > 2
    found = _tried("gamma", {0.02: 20.0, 0.1: 23.0, 0.5: 22.0})
    table = detection.trials_table(found)
    assert (
        "| `imitation` | lr 0.01, gamma 0.1 | 23.00 | chosen |\n| `imitation` | lr 0.01, gamma 0.5 | 22.00 |  |"
        in table
    )
    assert detection.why_not_chosen(_tried("lr", {1e-3: 20.0, 2e-3: 21.0})) is None  # two points have no inside
    assert detection.why_not_chosen([*found, *_tried("gamma", {2.0: 24.0})]) == (
        "at the end of what was tried: try further"
    )
    ends = [*_tried("gamma", {0.02: 20.0, 0.1: 22.0, 0.5: 23.0}), *_tried("gamma", {2.0: 21.0}, lr=0.02)]
    assert detection.why_not_chosen(ends) is not None  # at another rate there is another best weight
    low = _tried("gamma", {0.02: 2.0, 0.1: 9.9, 0.5: 2.0})
    assert str(detection.why_not_chosen(low)).startswith("no trial reaches 10 %")


def test_the_table_has_means_spreads_and_paired_differences() -> None:
    found = [_row("none", 0, 20.0)]  # of a recipe since changed
    found += [_row("none", 0, 40.0), _row("none", 1, 42.0), _row("afpkd", 0, 43.5), _row("afpkd", 1, 45.0)]
    table = detection.table([*found, _row("no mask", 0, 43.0)])
    # paired: 3.5 and 3.0; t of one degree of freedom 12.7062, times 0.3536 / sqrt(2)
    assert "| `none` | 2 | 41.00 ± 1.41 | 61.00 ± 1.41 | 36.00 ± 1.41 | +3.25 ± 3.18 | 10 |" in table
    assert "| `afpkd` | 2 | 44.25 ± 1.06 | 64.25 ± 1.06 | 39.25 ± 1.06 |  | 10 |" in table
    assert "| `no mask` | 1 | 43.00 | 63.00 | 38.00 | +0.50 (one seed) | 10 |" in table
