"""What a training leaves while it goes on: epochs, its place, event files. It changes no result, repeats no row."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from afpkd.errors import UserError
from afpkd.record import Json, sha256_of
from pipeline import event_files
from pipeline.live import EPOCHS, NOW
from pipeline.progress import heard_by
from pipeline.stages import train_teacher, train_undistilled, tune_prompts
from pipeline.watch import State, is_going_on, trainings
from pipeline.workspace import Run, open_run
from tests.tiny import FEW, tiny_recipe


def opened(folder: Path) -> Run:
    path = folder / "tiny.toml"
    path.write_text(tiny_recipe(heldout=FEW, teacher_epochs=1, prompts_epochs=2, epochs=3))
    return open_run(str(path), folder / "runs", device="cpu", threads=1)


def lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(rows: list[Json]) -> list[Json]:
    return [{key: row[key] for key in row if key not in ("images_per_s", "wall_s")} for row in rows]


def test_epochs_and_place_are_there_while_it_trains_and_go_with_its_end(tmp_path: Path) -> None:
    run, seen = opened(tmp_path), list[tuple[list[Json], Json]]()
    folder = run.role("undistilled")
    folder.mkdir(parents=True)
    (folder / EPOCHS).write_text('{"epoch": 7}\n')  # of another training, which was cut short

    def listener(event: Json) -> None:
        if "done" in event:
            seen.append((lines(folder / EPOCHS), json.loads((folder / NOW).read_text())))

    with heard_by(listener):
        train_undistilled(run)
    rows = lines(folder / "metrics.jsonl")
    assert seen[0][0] == []
    assert seen[0][1]["left_s"] is None or seen[0][1]["left_s"] > 0
    ends = [snapshot for snapshot in seen if snapshot[0]]
    assert [len(epochs) for epochs, _ in ends][-1] == len(rows) == 3
    for epochs, now in ends:
        assert epochs == rows[: len(epochs)]
        assert now["step"] >= epochs[-1]["step"]
        assert (now["steps"], now["epochs"], now["stage"]) == (rows[-1]["step"], 3, "undistilled")
    assert (ends[-1][1]["step"], ends[-1][1]["left_s"]) == (rows[-1]["step"], 0)
    assert ends[-1][1]["images_per_s"] == pytest.approx(rows[-1]["images_per_s"], abs=0.1)
    assert not (folder / EPOCHS).exists()
    assert not (folder / NOW).exists()


@pytest.mark.slow
def test_a_killed_training_repeats_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(event_files.VARIABLE, "1")
    run = opened(tmp_path)
    (tmp_path / "tiny.toml").write_text(tiny_recipe(heldout=FEW, teacher_epochs=1, prompts_epochs=2, epochs=20))
    run = open_run(str(tmp_path / "tiny.toml"), tmp_path / "runs", device="cpu", threads=1)
    command = [sys.executable, "-m", "pipeline", "train-undistilled", "--recipe", str(tmp_path / "tiny.toml")]
    process = subprocess.Popen(
        [*command, "--runs", str(tmp_path / "runs"), "--threads", "1"], stderr=subprocess.DEVNULL
    )
    folder, deadline = run.role("undistilled"), time.monotonic() + 240
    while not (folder / EPOCHS).exists() or len(lines(folder / EPOCHS)) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    (training,) = [found for found in trainings(run.folder) if found.stage == "undistilled"]
    assert training.state is State.training
    assert is_going_on(run.folder, [training])
    process.send_signal(signal.SIGKILL)
    process.wait()
    (training,) = [found for found in trainings(run.folder) if found.stage == "undistilled"]
    assert training.state is State.stopped
    before = training.rows
    assert 2 <= len(before) < 20
    snapshots: list[list[Json]] = []
    with heard_by(lambda event: snapshots.append(lines(folder / EPOCHS)) if "done" in event else None):
        train_undistilled(run)
    rows = lines(folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    assert all(found == rows[: len(found)] for found in snapshots)
    assert len(snapshots[0]) >= len(before)  # what was there is there at once
    steps = [step for tag, step, _ in scalars(run.folder / "tensorboard" / "undistilled") if tag == "heldout/top1"]
    assert steps == [row["step"] for row in rows]


@pytest.mark.slow
def test_looking_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, found = opened(tmp_path), []
    train_teacher(run)
    for wanted in ("", "1"):
        monkeypatch.setenv(event_files.VARIABLE, wanted)
        tune_prompts(run)
        assert (run.folder / "tensorboard").exists() is bool(wanted)
        weights = sha256_of(run.role("prompts") / "model.safetensors")
        found.append((weights, untimed(lines(run.role("prompts") / "metrics.jsonl"))))
    assert found[0] == found[1]
    check_event_files(run)


def check_event_files(run: Run) -> None:
    """By TensorBoard's own readers."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = lines(run.role("prompts") / "metrics.jsonl")
    found = {(tag, step): value for tag, step, value in scalars(run.folder / "tensorboard" / "prompts")}
    for row in rows:
        expected = {
            **{f"loss/{name}": value for name, value in row["losses"].items()},
            **{f"gradient_norm/{name}": value for name, value in row["gradient_norms"].items()},
            "heldout/top1": row["heldout_top1"],
            "learning_rate": row["lr"],
            "images_per_s": row["images_per_s"],
        }
        for tag, value in expected.items():
            assert found.pop((tag, row["step"])) == pytest.approx(value, rel=1e-6), tag
    assert found == {}
    events = EventAccumulator(str(run.folder / "tensorboard" / "prompts"), size_guidance={"images": 0})
    events.Reload()
    levels = sorted(path.stem for path in run.role("prompts").glob("level*.png"))
    assert levels
    assert sorted(events.Tags()["images"]) == [f"masks/{level}" for level in levels]
    for level in levels:
        pictures = events.Images(f"masks/{level}")
        assert [picture.step for picture in pictures] == [row["step"] for row in rows]
        with Image.open(io.BytesIO(pictures[0].encoded_image_string)) as image:
            assert image.size == (pictures[0].width, pictures[0].height)


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = folder.iterdir()
    found = []
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                found.append((value.tag, event.step, float(value.tensor.float_val[0])))
    return found


def test_without_the_package_nothing_is_written_and_who_asks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert event_files.event_files_of(tmp_path, "teacher") is None
    monkeypatch.setenv(event_files.VARIABLE, "1")
    with pytest.raises(UserError, match=r"not installed: \.venv/bin/pip install --editable '\.\[tensorboard\]'"):
        event_files.event_files_of(tmp_path, "teacher")
    code = "import sys; sys.modules['tensorboard'] = None; from pipeline.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "distill", "--tensorboard"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: event files: tensorboard is not installed")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
