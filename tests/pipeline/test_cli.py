"""The command line as a person meets it: one clear line for a mistake, one JSON document on request."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from afpkd.data import DATASETS
from afpkd.models import build_model
from export.build import build_bundle
from export.making import Order
from pipeline.cli import app, bundle_app
from pipeline.progress import EVENTS_VARIABLE, StageProgress, event_line
from tests.deploy.conftest import CHANNELS, SIDE, linear_onnx, linear_weight
from tests.pipeline.conftest import HandMadeRun


def _afpkd(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_recipes_are_listed_as_json() -> None:
    done = _afpkd("recipes", "--json")
    assert done.returncode == 0
    assert "default" in [row["name"] for row in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "distill", "--recipe", "defualt"], "unknown recipe 'defualt': did you mean 'default'?"),
        (["run", "profile", "--device", "jetson9"], "jetson9"),
        (["evaluate", "nothing.pt"], "nothing.pt: neither a weights file nor a folder with a record or a manifest"),
        (["train-student", "--runs", "nowhere"], "run the stage that makes it first"),
    ],
)
def test_a_mistake_is_one_line_exit_2_and_nothing_written(arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_foreign_teacher_is_said_before_anything_starts(tmp_path: Path) -> None:
    arguments = ["run", "distill", "--recipe", "cifar100-resnet56-resnet20-cpu", "--runs", str(tmp_path / "runs")]
    done = _afpkd(*arguments, AFPKD_DATA=str(tmp_path))
    assert done.returncode == 2
    assert "teacher.weights: no file at" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_asking_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    done = _afpkd("train-undistilled", "--train-device", "cuda", "--runs", str(tmp_path))
    assert done.returncode == 2
    assert "TRAIN_DEVICE=cuda: torch finds no CUDA device here" in done.stderr


def test_evaluate_prints_top1_and_n(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(build_model("resnet8", num_classes=10, in_channels=1).state_dict(), tmp_path / "w.pt")
    done = _afpkd("evaluate", str(tmp_path / "w.pt"), "--arch", "resnet8", "--data", "fashion_mnist_5k", "--json")
    found = json.loads(done.stdout)
    assert set(found) == {"top1", "n"}
    assert found["n"] == 1000
    assert 0 <= found["top1"] <= 40  # untrained


def test_a_bare_weights_file_needs_arch_and_data(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    done = _afpkd("evaluate", str(tmp_path / "w.pt"))
    assert (done.returncode, "needs --arch NAME and --data NAME" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("real.json", "real.npz is read, and would be written over"),
        ("net.onnx", "net.onnx is read, and would be written over"),
        ("results", "a folder: name a file there, such as"),
    ],
)
def test_what_is_measured_is_not_written_over(out: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "net.onnx").write_bytes(linear_onnx(linear_weight()))
    np.savez(tmp_path / "real.npz", input=np.zeros((2, CHANNELS, SIDE, SIDE), np.float32))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    words = ["measure", str(tmp_path / "net.onnx"), "--inputs", str(tmp_path / "real.npz")]
    done = _afpkd(*words, "--out", str(tmp_path / out), "--preset", "quick")
    assert (done.returncode, said in done.stderr, done.stderr.endswith("[E_OUT]\n")) == (2, True, True), done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_our_signs_gets_others(encoding: str, tmp_path: Path) -> None:
    HandMadeRun(tmp_path).put_record("student")
    line = {"epoch": 1, "step": 9, "losses": {"task": 1.5}, "heldout_top1": 50.0}
    (tmp_path / "student" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    done = _afpkd("watch", str(tmp_path), PYTHONIOENCODING=encoding)
    assert (done.returncode, "Traceback" in done.stderr, "\\u2581" in done.stdout) == (0, False, True), done.stderr


def test_help_loads_no_torch() -> None:
    code = "import sys; import pipeline.cli; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bundle_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, in_channels=1)
    data = DATASETS["fashion_mnist_5k"].load(tmp_path)
    order = Order(
        role="student",
        arch="resnet8",
        mean=(0.286,),
        std=(0.353,),
        precisions=("fp32", "fp16"),
        opset=18,
        lineage={},
        out=tmp_path / "bundle",
        max_drop=100.0,
    )
    images, labels = data.test.images[:100], data.test.labels[:100]
    build_bundle(model, order, images=images, labels=labels, label_names=data.label_names)
    done = _afpkd("bundle", "verify", str(tmp_path / "bundle"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["role"], found["hashes"], len(found["files"])) == ("student", 6, 4)
    accuracies = json.loads(_afpkd("evaluate", str(tmp_path / "bundle"), "--json").stdout)
    assert set(accuracies) == {"fp32", "fp16"}
    assert all(row["n"] == 100 for row in accuracies.values())
    lines = _afpkd("evaluate", str(tmp_path / "bundle")).stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["fp32", "fp16"]
    path = tmp_path / "bundle" / "fp16.onnx"
    data_bytes = bytearray(path.read_bytes())
    data_bytes[len(data_bytes) // 2] ^= 1
    path.write_bytes(data_bytes)
    for words in (("bundle", "verify"), ("evaluate",)):
        done = _afpkd(*words, str(tmp_path / "bundle"))
        assert done.returncode == 2
        assert "fp16.onnx: its bytes are not those of the manifest" in done.stderr


def test_every_verb_takes_json() -> None:
    for command in (*app.registered_commands, *bundle_app.registered_commands):
        assert command.callback is not None
        assert "as_json" in command.callback.__annotations__, command.callback


def test_stages_append_whole_events_for_their_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events.jsonl"))
    progress = StageProgress("student")
    row = {"epoch": 2, "losses": {"task": 1.0}, "heldout_top1": 50.0, "images_per_s": 99.0}
    progress.step(10, 20, row, "epoch 2/4")
    progress.step(11, 20)  # too soon after
    progress.step(12, 20, row, "epoch 3/4")  # an epoch's end is always told
    progress.error("no")
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert event_line(events[0]) == "student      epoch   2  task 1.000  held-out 50.00 %  99 images/s"
    assert events[1] == {"stage": "student", "job": str(os.getpid()), "done": 10, "total": 20, "note": "epoch 2/4"}
    assert [event.get("done") for event in events] == [None, 10, None, 12, None]
    assert event_line(events[-1]) == "error: no"
