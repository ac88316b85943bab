"""The benches' own code: rows, tables, and a gpu-check that cannot pass without a GPU."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from afpkd.errors import UserError
from afpkd.record import read_record
from bench import __main__ as bench_main
from bench import (
    clones,
    command,
    default_seeds,
    default_tuning,
    export_time,
    fleet,
    gpu_card,
    gpu_check,
    quantizers,
    rows,
    rtx_builds,
)
from bench.crash import STAGES
from bench.loopback import SSHD
from deploy import presets
from deploy.agent.cuda import Cuda
from deploy.agent.errors import AgentError
from deploy.agent.fake_cuda import FakeCuda
from deploy.presets import Preset, WarmUp
from pipeline.recipe_reader import load_recipe
from tests.tiny import tiny_recipe


def test_gpu_check_compares_every_loss_and_can_fail() -> None:
    fitted, other = (
        gpu_check.distil(torch.device("cpu"), epochs=epochs, amp="never", compiled=False, images=64)
        for epochs in (1.0, 2.0)
    )
    assert set(fitted.history[-1]["losses"]) == {"task", "frequency", "spatial"}
    assert gpu_check.told_difference(fitted.last, dict(fitted.last)) == "equal to the bit"
    assert re.search(r"differ by \d\.\de[-+]\d\d at most", gpu_check.told_difference(fitted.last, other.last))
    good = gpu_check.Check("fp32", "task", 2.0, 2.001, 5e-3)
    bad = gpu_check.Check("fp32", "task", 2.0, 2.1, 5e-3)
    assert (good.ok, bad.ok) == (True, False)
    shown = gpu_check.table([good, bad], {"cpu": 200.0, "cuda": 9000.0}, "X")
    assert "0.5% ok" in shown
    assert "0.5% FAILED" in shown


class _Damaging(FakeCuda):
    """A card that gives back other bytes."""

    def copy_to_host(self, target: NDArray[Any], address: int, stream: int) -> None:
        super().copy_to_host(target, address, stream)
        self.synchronize(stream)
        target[0] ^= 1


def _no_library() -> Cuda:
    raise AgentError("E_NO_CUDA", "no libcudart")


def _no_driver() -> Cuda:
    raise AgentError("E_NO_DRIVER", "no driver")


def test_a_card_that_gives_other_bytes_or_no_answer_fails_a_library_that_is_not_there_does_not() -> None:
    libraries = {"good": FakeCuda, "damaging": _Damaging, "absent": _no_library, "undriven": _no_driver}
    found = gpu_card.copies(libraries, num_bytes=2**20)
    assert [(copy.library, copy.equal) for copy in found] == [
        ("good", True),
        ("damaging", False),
        ("absent", None),
        ("undriven", False),
    ]
    assert [copy.ok for copy in found[1:]] == [False, True, False]
    assert gpu_card.Copy("x", "", True, 10.0, 9.0).ok
    assert not gpu_card.Copy("x", "", True, 10.0, 1.0).ok
    assert not gpu_card.Copy("x", "", True, 10.0, 10.5).ok
    shown = gpu_card.card_table(found).splitlines()
    assert "FAILED: " in shown[2]
    assert "not there: " in shown[3]
    assert shown[-1].startswith("NVML: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_check_says_clearly_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2
    assert "no NVIDIA GPU here: nothing was checked" in capsys.readouterr().err


def test_gpu_check_measures_engines_by_the_way_of_make_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On this machine's CPU: the same path, another device."""
    warm_up = WarmUp(min_seconds=0, min_count=30, window=10, tolerance=1e9, max_seconds=10)
    preset = Preset(name="instant", min_seconds=0, min_count=200, warm_up=warm_up)
    monkeypatch.setitem(presets._PRESETS, "instant", preset)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engines = gpu_check.measured_engines("local", "instant")
    assert [(engine.precision, engine.ok) for engine in engines] == [("fp32", True), ("fp16", True), ("int8", True)]
    engine = engines[0]
    assert engine.record is not None
    shown = gpu_check.engine_table([engine, gpu_check.Engine("fp16", None, "device local-gpu: no driver")])
    assert "onnxruntime" in shown.splitlines()[0]
    assert re.search(r"^fp32 +0\.\d{3} +\d\.\d\de-\d\d  ok, ", shown, re.MULTILINE)
    assert "fp16     FAILED: device local-gpu: no driver" in shown
    assert not gpu_check.Engine("fp16", None, "device local-gpu: no driver").ok
    engine.record["golden"]["after"]["ok"] = False
    assert not engine.ok


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_check_reports_an_engine_that_cannot_be_had_as_failed() -> None:
    """Without a driver the device is not there: an error of one line, no traceback."""
    engine, *_ = gpu_check.measured_engines("local-gpu", "quick")
    assert (engine.ok, engine.record) == (False, None)
    assert engine.error is not None
    assert engine.error.startswith("device local-gpu: ")


def test_rows_are_appended_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    for role, method in (("teacher", None), ("student", "afpkd")):
        metrics = {"test_top1_last": 2.0, "test_top1_selected": 3.0, "heldout_top1": 1.0}
        keys = {"seed": 0, "epochs": 8, "wall_s": 1.0, "git_commit": "c", "config_digest": "d", "finished_at": "t"}
        record = {"arch": f"{role}-net", "data": "x", "method": method, "metrics": metrics, **keys}
        (tmp_path / role).mkdir()
        (tmp_path / role / "record.json").write_text(json.dumps(record))
    row = rows.row_of(tmp_path, "student")
    assert (row["pair"], row["method"], row["test_top1_selected"], row["teacher_top1"]) == (
        "teacher-net-student-net",
        "afpkd",
        3.0,
        3.0,
    )
    rows.append("r", [row])
    rows.append("r", [row, {**row, "seed": 1}])
    assert [found["seed"] for found in rows.read("r")] == [0, 1]


def test_the_seed_table_shows_mean_and_deviation() -> None:
    found = [{"method": "none", "test_top1_selected": value} for value in (80.0, 81.0, 82.0)]
    assert "| undistilled | 80.00 | 81.00 | 82.00 | 81.00 ± 1.00 |" in default_seeds.table(found)


def test_make_bench_lists_its_benches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_main.main([])
    assert ended.value.code == 0
    assert "make bench ARGS=default_seeds" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        bench_main.main(["nonsense"])
    assert ended.value.code == 2


def test_the_table_of_builds_has_a_line_a_network_with_failures_in_words() -> None:
    def row(precision: str, status: str, foreign: dict[str, int]) -> dict[str, object]:
        size, reason = (1_234_567, None) if status == "ok" else (None, "node x")
        facts = {"engine_bytes": size, "reason": reason, "dla_not_native": foreign}
        return {"arch": "a", "precision": precision, "status": status, **facts}

    found = [row("fp32", "ok", {"Split": 13}), row("fp16", "failed", {}), row("int8", "ok", {})]
    assert rtx_builds.table(found).splitlines()[2:] == ["| `a` | 1.2 | failed: node x | 1.2 | Split (13) |"]


def test_the_quantiser_rows_make_a_table_and_hold_both_quantisers() -> None:
    found = rows.read("quantizers")
    shown = quantizers.table(found)
    assert len(shown.splitlines()) == 2 + len(found)
    for network in {row["network"] for row in found}:
        assert {row["quantizer"] for row in found if row["network"] == network} == {"onnxruntime", "modelopt"}
    built = [row for row in found if row["rtx"]["status"] == "ok"]
    assert len(built) == len(found)
    assert all(row["rtx"]["layer_types"]["int8"] > 0 for row in built)
    assert f"| {found[0]['sqnr_db']:.1f} |" in shown


def test_the_export_rows_make_a_table() -> None:
    shown = export_time.table(rows.read("export_time"))
    assert "| resnet8 | 4 |" in shown
    assert " MB |" in shown


def test_two_clones_are_compared_role_by_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a clone gives is minutes of training, which the bench itself has run."""
    same = dict.fromkeys(STAGES, "a")
    found = iter([same, {**same, "student": "b"}])
    monkeypatch.setattr(clones, "weights_of_a_clone", lambda *_: next(found))
    clones.main(results=tmp_path)
    equal = read_record(tmp_path / "clones.json")["equal"]
    assert equal == {"teacher": True, "prompts": True, "student": False, "undistilled": True}
    assert capsys.readouterr().out.splitlines()[2].split(maxsplit=1) == ["student", "NOT EQUAL"]
    with pytest.raises(UserError, match=r"git clone --quiet .* failed: fatal:"):
        clones._done(["git", "clone", "--quiet", str(tmp_path / "gone"), str(tmp_path / "there")], tmp_path)


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: list[str]) -> None:
        raise UserError("E_BENCH", "no such weights: name others")

    with pytest.raises(SystemExit) as ended:
        command.run(main)
    assert (ended.value.code, capsys.readouterr().err) == (2, "error: no such weights: name others [E_BENCH]\n")


def test_the_fleet_is_measured_and_an_unchanged_bundle_travels_once(tmp_path: Path) -> None:
    """The quick form: the figures themselves say nothing on a busy machine, what they are made of does."""
    if not Path(SSHD).exists():
        pytest.skip("no sshd here: install openssh-server (it need not run as a service)")
    fleet.main(fleet.Sizes(devices=3, seconds=1.0, repeats=2), tmp_path)
    found = json.loads((tmp_path / "fleet.json").read_text())
    assert found["resent_bytes"] == 0
    assert found["sent_bytes"] > 500_000  # agent, network, images
    assert found["connect_s"] + found["probe_s"] + found["submit_s"] == pytest.approx(found["start_s"], rel=0.5)
    assert len(found["starts_s"]) == 2
    assert found["one_s"] > 1
    assert found["fleet_over_one"] == found["fleet_s"] / found["one_s"]
    assert (found["conditions"]["devices"], found["conditions"]["seconds"]) == (3, 1.0)


def test_every_trial_of_the_default_recipe_has_its_row() -> None:
    found = rows.read(default_tuning.RESULT)
    wanted = [(trial, seed) for trial, seeds in default_tuning.TRIALS for seed in seeds]
    assert sorted(map(repr, wanted)) == sorted(repr((row["options"], row["seed"])) for row in found)
    chosen = load_recipe("default")[1].distill
    for seed in default_tuning.SEEDS:  # the recipe has what was best, in each of them
        best = max((row for row in found if row["seed"] == seed), key=lambda row: row["heldout_top1"])["options"]
        assert best == {key: getattr(chosen, key) for key in ("method", "mu", "gamma", "lr")}
    assert "| method=none lr=0.05 | 78.38 | 81.38 | 75.00 |" in default_tuning.table(found)


@pytest.mark.slow
def test_a_trial_is_trained_and_judged_on_held_out_images_alone(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny_recipe(teacher_epochs=0.2, epochs=0.5))
    trials = [trial for trial, seeds in default_tuning.TRIALS if trial["method"] == "none"]
    found = default_tuning.trained(trials, 1, tmp_path, str(recipe), heldout=3800)
    assert [row["options"] for row in found] == trials
    assert all(row["heldout"] == 3800 and row["seed"] == 1 for row in found)
    right = [row["heldout_top1"] / 100 * 3800 for row in found]  # of 3,800 images, not of another number
    assert right == pytest.approx([round(num) for num in right], abs=1e-6)
    assert default_tuning.trained([], 1, tmp_path) == []
