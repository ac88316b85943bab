"""What trains, and what a record says of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from afpkd import train as training
from afpkd.learners import Learner
from afpkd.record import provenance
from pipeline import workspace
from pipeline.recipe_reader import load_recipe
from pipeline.report.how_measured import environment_words
from pipeline.train_device import GRAPH_VARIABLE, machine_with, records_steps, torch_device
from pipeline.workspace import Workspace, open_run
from tests.tiny import tiny_recipe


def test_a_gpu_that_trains_is_named_in_the_record_and_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = machine_with(torch.device("cpu"))
    assert plain == provenance()["machine"]
    monkeypatch.setattr(torch.cuda, "get_device_name", {torch.device("cuda"): "NVIDIA X1"}.__getitem__)
    named = machine_with(torch.device("cuda"))
    assert named == {**plain, "gpu": "NVIDIA X1"}
    assert "gpu" not in provenance()["machine"]  # which profiles and the CPU's records share
    machines, _ = environment_words([{"machine": plain}, {"machine": named}, {"machine": named}])
    assert machines.count(plain["processor"]) == 2
    assert machines.count(f", NVIDIA X1, {plain['system']}") == 1


def test_float32_is_float32_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert torch_device("cpu", 0, 1) == torch.device("cpu")
    assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cuda.matmul.allow_tf32 is False


@pytest.mark.parametrize(
    ("recipe", "device", "changed", "recorded"),
    [
        ("default", "cuda", {}, True),
        ("cifar100-vgg13-mobilenetv2", "cuda", {}, True),
        ("default", "cpu", {}, False),
        ("default", "cuda", {"processes": 2}, False),
        ("default", "cuda", {"compiled": True}, False),
        ("bccd-fcos-cpu", "cuda", {}, False),  # boxes differ in number
        ("tinyimagenet-cpu", "cuda", {}, False),  # torchvision's networks
    ],
)
def test_steps_are_recorded_where_all_that_they_do_is_known(
    recipe: str, device: str, changed: dict[str, Any], recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual: dict[str, Any] = {"compiled": False, "processes": 1}
    monkeypatch.delenv(GRAPH_VARIABLE, raising=False)
    assert records_steps(torch.device(device), load_recipe(recipe)[1], **(usual | changed)) is recorded
    monkeypatch.setenv(GRAPH_VARIABLE, "0")
    assert not records_steps(torch.device(device), load_recipe(recipe)[1], **(usual | changed))


def test_a_training_whose_steps_are_recorded_is_told_so_and_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no GPU here: the decision is put in its place, and what would record is looked at, not used."""
    (tmp_path / "tiny.toml").write_text(tiny_recipe())
    work = Workspace(open_run(str(tmp_path / "tiny.toml"), tmp_path, device="cpu"), "undistilled")
    monkeypatch.setattr(training, "RecordedPass", lambda device: f"records on {device}")
    model = torch.nn.Module()
    monkeypatch.setattr(training.Fitting, "_require_working_losses", lambda fitting: {"task": 1.0})
    monkeypatch.setattr(training, "_optimizer", lambda *_: None)
    learner = Learner(model, model, lambda *_: {}, lambda: 0.0)
    for decided, passes in ((True, "records on cpu"), (False, None)):
        monkeypatch.setattr(workspace, "records_steps", lambda *_, decided=decided, **__: decided)
        recorded: Any = work.fitting(learner, work.run.recipe.distill).recorded
        assert recorded == passes
        assert ("recorded once, and replayed as a CUDA graph" in capsys.readouterr().err) == decided


def test_a_student_of_whose_losses_one_drowns_the_others_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_recipe())
    run = open_run(str(tmp_path / "tiny.toml"), tmp_path, device="cpu")
    monkeypatch.setattr(training, "_optimizer", lambda *_: None)
    model = torch.nn.Module()
    learner = Learner(model, model, lambda *_: {}, lambda: 0.0)
    for stage, norms, told in (
        ("student", {"task": 2.0, "spatial": 1200.0}, True),
        ("student", {"task": 2.0, "spatial": 12.0}, False),
        ("prompts", {"teacher": 2.0, "area": 1200.0}, False),
    ):
        monkeypatch.setattr(training.Fitting, "_require_working_losses", lambda _, norms=norms: norms)
        Workspace(run, stage).fitting(learner, run.recipe.distill)
        assert ("begins with 600 times the gradient" in capsys.readouterr().err) == told
