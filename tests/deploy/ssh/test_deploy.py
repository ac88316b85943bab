"""Releases on a board behind a real sshd: put there, used there, taken back, and what is left when it goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from afpkd.record import Json
from bench.loopback import Board, wait_until
from deploy import deployment, jobs
from deploy.client import call_agent
from deploy.deployment import deploy_bundle, deployed, roll_back
from deploy.target import LineError, Target
from tests.deploy.conftest import CHANNELS, SIDE, linear_weight, reference_logits

if TYPE_CHECKING:
    from tests.deploy.conftest import HandMadeBundle


def put(bundle: HandMadeBundle, *names: str, precision: str = "fp32", keep: int = 3) -> list[dict[str, Any]]:
    return deploy_bundle(
        bundle.folder, names or ("board",), precision=precision, keep=keep, progress=lambda *event: None
    )


def next_version(bundle: HandMadeBundle, number: int) -> None:
    """The same network under another manifest."""
    manifest = bundle.manifest()
    manifest["warnings"] = [f"the {number}."]
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))


def current(board: Board) -> str | None:
    (row,) = deployed(["board"])
    name: str | None = row["current"]
    return name


def predict(board: Board, *words: str, stdin: str = "", cwd: Path = Path("/")) -> list[dict[str, Any]]:
    """On the device itself: its Python, the file that lies there, from any folder."""
    command = [sys.executable, "-I", str(board.work / "current" / "agent.pyz"), "predict", *words]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, cwd=cwd)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode == 0) == (not any("error" in answer for answer in answers)), done.stderr
    return answers


def test_a_release_is_put_there_checked_and_predicts(board: Board, bundle: HandMadeBundle, tmp_path: Path) -> None:
    (row,) = put(bundle)
    release = row["release"]
    assert release["id"].startswith("student-fp32-")
    assert release["golden"]["ok"]
    assert current(board) == release["id"]
    assert (board.work / "current").resolve() == board.work / "releases" / release["id"]
    assert not (board.work / "releases" / release["id"] / "bundle" / "eval.npy").exists()  # not for tests
    images = np.load(bundle.folder / "eval.npy")[:3]
    np.save(tmp_path / "three.npy", images)
    answers = predict(board, "--top", "2", str(tmp_path / "three.npy"))
    weight = linear_weight()
    logits = reference_logits(images, weight)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for index, answer in enumerate(answers):
        order = np.argsort(-chances[index])[:2]
        assert (answer["image"], answer["index"]) == (str(tmp_path / "three.npy"), index)
        assert [best["class"] for best in answer["top"]] == list(order)
        assert [best["label"] for best in answer["top"]] == ["abcde"[i] for i in order]
        np.testing.assert_allclose([best["probability"] for best in answer["top"]], chances[index, order], atol=1e-5)
        assert answer["ms"] > 0
    assert len(answers) == 3


def test_paths_on_stdin_and_one_bad_image_among_good_ones(board: Board, bundle: HandMadeBundle, tmp_path: Path) -> None:
    put(bundle)
    np.save(tmp_path / "one.npy", np.load(bundle.folder / "eval.npy")[0])
    np.save(tmp_path / "float.npy", np.zeros((CHANNELS, SIDE, SIDE), dtype=np.float32))
    lines = f'one.npy\n\n{{"image": "{tmp_path}/one.npy"}}\nnothing.npy\nfloat.npy\none.npy\n'
    answers = predict(board, "--stdin", stdin=lines, cwd=tmp_path)
    assert [answer["image"] for answer in answers] == [
        "one.npy",
        f"{tmp_path}/one.npy",
        "nothing.npy",
        "float.npy",
        "one.npy",
    ]
    assert answers[0]["top"] == answers[1]["top"] == answers[4]["top"]
    assert answers[2]["error"]["code"] == answers[3]["error"]["code"] == "E_IMAGE"
    assert "expected uint8 of shape (3, 4, 4)" in answers[3]["error"]["message"]


def test_an_image_file_is_decoded_and_brought_to_size(board: Board, bundle: HandMadeBundle, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="no Pillow here: pip install pillow")
    put(bundle)
    pixels = np.load(bundle.folder / "eval.npy")[0].transpose(1, 2, 0)
    image.fromarray(pixels).save(tmp_path / "same.png")
    image.fromarray(np.full((40, 30, 3), 90, dtype=np.uint8)).save(tmp_path / "flat.bmp")
    np.save(tmp_path / "same.npy", pixels.transpose(2, 0, 1))
    np.save(tmp_path / "flat.npy", np.full((3, 4, 4), 90, dtype=np.uint8))
    (tmp_path / "text.png").write_text("no picture")
    names = [str(tmp_path / name) for name in ("same.png", "same.npy", "flat.bmp", "flat.npy", "text.png")]
    answers = predict(board, *names)
    assert answers[0]["top"] == answers[1]["top"]
    assert answers[2]["top"] == answers[3]["top"]
    assert answers[4]["error"]["code"] == "E_IMAGE"


@pytest.mark.parametrize("words", [[], ["--stdin", "x.npy"], ["--top", "x", "a.npy"], ["--top", "0", "a"], ["--all"]])
def test_predict_used_wrongly_says_how(board: Board, bundle: HandMadeBundle, words: list[str]) -> None:
    put(bundle)
    (answer,) = predict(board, *words)
    assert answer["error"]["code"] == "E_USAGE"


def test_boxes_are_not_asked_of_a_classifier(board: Board, bundle: HandMadeBundle, tmp_path: Path) -> None:
    put(bundle)
    (answer,) = predict(board, "--draw", str(tmp_path / "boxes"), str(bundle.folder / "eval.npy"))
    assert answer["error"]["code"] == "E_USAGE"
    assert answer["error"]["message"].endswith("is a classifier, which finds no boxes: leave it out")


def test_rollback_goes_back_and_no_further(board: Board, bundle: HandMadeBundle) -> None:
    first = put(bundle)[0]["release"]["id"]
    next_version(bundle, 2)
    second = put(bundle)[0]["release"]["id"]
    assert current(board) == second != first
    (row,) = roll_back(["board"])
    assert (row["release"]["id"], row["rolled_back"]) == (first, second)
    assert current(board) == first
    (row,) = roll_back(["board"])
    assert row["error"].endswith(f"{first} replaced nothing that is still here [E_RELEASE]")
    assert current(board) == first


def test_a_release_that_computes_something_else_changes_nothing(board: Board, bundle: HandMadeBundle) -> None:
    first = put(bundle)[0]["release"]["id"]
    with np.load(bundle.folder / "golden.npz") as arrays:
        images, logits = arrays["images"], arrays["logits"]
    np.savez(bundle.folder / "golden.npz", images=images, logits=logits + 1)
    bundle.replace("golden.npz", (bundle.folder / "golden.npz").read_bytes())
    (row,) = put(bundle)
    assert "fp32.onnx computes something else here" in row["error"]
    assert row["error"].endswith("nothing was changed [E_GOLDEN]")
    assert current(board) == first
    assert [path.name for path in (board.work / "releases").iterdir()] == [first]


def test_the_last_releases_stay_the_rest_goes(board: Board, bundle: HandMadeBundle) -> None:
    ids = []
    for number in range(4):
        next_version(bundle, number)
        ids.append(put(bundle, keep=2)[0]["release"]["id"])
    assert {path.name for path in (board.work / "releases").iterdir()} == set(ids[2:])
    assert current(board) == ids[3]
    assert roll_back(["board"])[0]["release"]["id"] == ids[2]


def test_the_same_release_again_keeps_its_way_back(board: Board, bundle: HandMadeBundle) -> None:
    first = put(bundle)[0]["release"]["id"]
    next_version(bundle, 2)
    put(bundle)
    put(bundle)
    assert roll_back(["board"])[0]["release"]["id"] == first


def test_a_deployment_whose_end_nobody_heard_is_done_again_where_another_release_is_current(
    board: Board, bundle: HandMadeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unforgetting(target: Target, verb: str, request: Json, *, brief: bool = True) -> Json:
        if verb == "forget":
            raise LineError(target.name, "E_DROPPED", "the line ended", lasting=False)
        return call_agent(target, verb, request, brief=brief)

    monkeypatch.setattr(jobs, "call_agent", unforgetting)
    manifest = (bundle.folder / "manifest.json").read_bytes()
    first = put(bundle)[0]["release"]["id"]
    next_version(bundle, 2)
    assert put(bundle)[0]["release"]["id"] == current(board) != first
    (bundle.folder / "manifest.json").write_bytes(manifest)
    assert put(bundle)[0]["release"]["id"] == current(board) == first


def test_nothing_that_gc_drops_is_needed_by_a_release(board: Board, bundle: HandMadeBundle, tmp_path: Path) -> None:
    put(bundle)
    done = afpkd("devices", "gc", "board", "--days", "0")
    assert done.returncode == 0
    shutil.rmtree(board.work / "blobs")
    np.save(tmp_path / "one.npy", np.load(bundle.folder / "eval.npy")[0])
    assert "top" in predict(board, str(tmp_path / "one.npy"))[0]


def test_several_devices_one_failing(board: Board, bundle: HandMadeBundle) -> None:
    with (board.folder / "devices.toml").open("a") as file:
        file.write('[away]\nhost = "no-such-host.invalid"\n')
    rows = {row["device"]: row for row in put(bundle, "away", "board", "local")}
    assert rows["away"]["error"].endswith("[E_UNREACHABLE]")
    assert "a release is for another machine" in rows["local"]["error"]
    assert rows["board"]["release"]["golden"]["ok"]


def test_a_file_over_its_budget_is_not_shipped(board: Board, bundle: HandMadeBundle) -> None:
    manifest = bundle.manifest()
    manifest["files"][0] |= {"status": "over budget", "reason": "3 points lower"}
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    (row,) = put(bundle)
    assert "fp32.onnx is over its budget (3 points lower)" in row["error"]
    manifest["files"].append({**manifest["files"][0], "path": "fp32-old.onnx", "max_version": "0.1"})
    manifest["files"][0] |= {"status": "ok", "reason": None}
    manifest["hashes"]["fp32-old.onnx"] = manifest["hashes"]["fp32.onnx"]
    shutil.copyfile(bundle.folder / "fp32.onnx", bundle.folder / "fp32-old.onnx")
    assert not (board.work / "releases").exists()
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    (row,) = put(bundle)  # another file, for a runtime that this board has not, is over its budget: no matter here
    assert row["release"]["file"] == "fp32.onnx"
    (row,) = put(bundle, precision="fp8")
    assert "no fp8 file for onnxruntime (it has: fp32)" in row["error"]


def test_the_command_line(board: Board, bundle: HandMadeBundle, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(bundle.folder, runs / "default" / "student" / "bundle")
    where = ("--device", "board", "--runs", str(runs))
    assert afpkd("deploy", *where, "--status").stdout == "board: nothing is deployed\n"
    done = afpkd("deploy", *where, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    name = current(board)
    assert done.stdout == f"board: {name} is current (built and checked there)\n"
    assert "board        checking\n" in done.stderr
    assert f"  * {name} " in afpkd("deploy", *where, "--status").stdout
    back = afpkd("deploy", *where, "--rollback")
    assert back.returncode == 2
    assert back.stderr.startswith("error: device board: ")
    assert "run `make export` first" in afpkd("deploy", "--device", "board", "--runs", str(tmp_path)).stderr


def test_ctrl_c_cancels_the_job_there(board: Board, bundle: HandMadeBundle, tmp_path: Path) -> None:
    slow = tmp_path / "slow-python"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *" deploy") sleep 60;; esac\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    board.describe(python=str(slow))
    runs = tmp_path / "runs"
    shutil.copytree(bundle.folder, runs / "default" / "student" / "bundle")
    options = ["--device", "board", "--precision", "fp32", "--runs", str(runs)]
    command = [sys.executable, "-m", "pipeline", "deploy", *options]
    root = Path(deployment.__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, start_new_session=True) as host:
        wait_until(lambda: list(board.work.glob("jobs/*/heartbeat")), "the job runs there", 60)
        os.killpg(host.pid, signal.SIGINT)  # as a terminal does
        _, errors = host.communicate()
    assert host.returncode == 130
    assert errors.splitlines()[-1].startswith("interrupted: ")
    assert "Traceback" not in errors
    (result,) = board.work.glob("jobs/*/result.json")
    assert json.loads(result.read_text())["error"]["code"] == "E_CANCELLED"
    assert not (board.work / "current").exists()


def test_units_for_systemd_lie_beside_the_release(board: Board, bundle: HandMadeBundle) -> None:
    put(bundle)
    unit = (board.work / "current" / "afpkd@.service").read_text()
    (command,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert command == f'ExecStart="{sys.executable}" "-I" "{board.work}/current/agent.pyz" predict --stdin'
    socket = (board.work / "current" / "afpkd.socket").read_text()
    assert "Accept=yes" in socket
    guide = (Path(deployment.__file__).parent.parent / "docs" / "jetson.md").read_text(encoding="utf-8")
    for line in ("systemctl --user enable --now afpkd.socket", 'sudo loginctl enable-linger "$USER"'):
        assert f"# {line}" in socket
        assert f"\n{line} " in guide


def afpkd(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *arguments]
    root = Path(deployment.__file__).parent.parent
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=os.environ)
