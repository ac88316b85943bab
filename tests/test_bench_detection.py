"""The detection bench's own code: what is missing, which weights win, the recipe of a run, the table."""

from pathlib import Path

import pytest

from afpkd.errors import UserError
from afpkd.record import Json, write_record
from bench import detection, rows
from pipeline.recipe_reader import load_recipe


@pytest.fixture(autouse=True)
def _results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")


def _row(method: str, seed: int, ap: float) -> Json:
    return {"method": method, "seed": seed, "ap": ap, "ap50": ap + 20, "ap75": ap - 5, "cpu_s": 600.0}


def test_only_what_has_no_row_is_missing() -> None:
    methods = list(detection.TRIALS)
    assert methods == ["none", "imitation", "afpkd"]
    assert len(detection.missing([0, 1, 2], methods)) == 9
    rows.append(detection.RESULT, [_row("none", 0, 40.0), _row("afpkd", 1, 41.0)])
    left = detection.missing([0, 1], methods)
    assert left == [(0, "imitation"), (0, "afpkd"), (1, "none"), (1, "imitation")]


def test_each_distiller_has_as_many_trials_and_the_best_on_heldout_wins() -> None:
    assert len(detection.TRIALS["imitation"]) == len(detection.TRIALS["afpkd"]) > 1
    trials = detection.TRIALS["afpkd"]
    found = [{"method": "afpkd", "options": options, "heldout_ap": 10.0 - n} for n, options in enumerate(trials)]
    other = {"method": "imitation", "options": trials[0], "heldout_ap": 99.0}
    rows.append(detection.TUNING, [*found[1:], other])
    assert detection.untried(["none", "afpkd"]) == [("afpkd", trials[0])]
    assert detection.weights_of("afpkd") == trials[1]
    rows.append(detection.TUNING, found[:1])
    assert detection.untried(["none", "afpkd"]) == []
    assert detection.weights_of("afpkd") == trials[0]
    assert detection.weights_of("none") == {}


def _taught(folder: Path, ap50: float) -> None:
    for place in ("teacher", "prompts-seed2"):
        write_record(folder / place / "record.json", {"metrics": {"test_ap50_selected": ap50}})


def test_a_run_is_the_protocol_with_a_seed_a_method_and_its_weights(tmp_path: Path) -> None:
    _taught(tmp_path, 60.0)
    run = detection.run_of("afpkd", {"mu": 5.0, "gamma": 0.2}, 2, tmp_path)
    protocol = load_recipe(detection.PROTOCOL)[1]
    assert (run.recipe.seed, run.threads, run.device) == (2, 1, "cpu")
    options = run.recipe.distill.options()
    assert (options["mu"], options["gamma"]) == (5.0, 0.2)
    assert run.recipe.distill.training() == protocol.distill.training()
    assert (run.recipe.data, run.recipe.teacher) == (protocol.data, protocol.teacher)
    short = detection.run_of("imitation", {"gamma": 0.5}, 0, tmp_path, share=1 / 12)
    assert short.recipe.distill.epochs == pytest.approx(protocol.distill.epochs / 12)
    assert short.folder != detection.run_of("imitation", {"gamma": 2.0}, 0, tmp_path, share=1 / 12).folder


def test_a_teacher_that_has_not_learnt_stops_everything(tmp_path: Path) -> None:
    _taught(tmp_path, 49.9)
    for method in detection.TRIALS:
        with pytest.raises(UserError, match=r"AP50 is 49\.90 %, below 50: it has not learnt"):
            detection.run_of(method, {}, 0, tmp_path)


def test_the_table_has_means_and_spreads() -> None:
    table = detection.table([_row("none", 0, 40.0), _row("none", 1, 42.0), _row("afpkd", 0, 43.5)])
    assert "| `none` | 2 | 41.00 ± 1.41 | 61.00 ± 1.41 | 36.00 ± 1.41 | 10 |" in table
    assert "| `afpkd` | 1 | 43.50 | 63.50 | 38.50 | 10 |" in table
