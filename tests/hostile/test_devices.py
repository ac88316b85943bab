"""A device that lies: whatever it answers is a number of ours or one line, within bounded time and memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from afpkd.errors import UserError
from afpkd.record import Json
from deploy import ssh
from deploy.client import call_agent
from deploy.devices import find_device
from deploy.fleet import _row
from deploy.jobs import Patience, Work, run_job
from deploy.target import Completed, DeviceError
from pipeline.probe_text import probe_text
from tests.hostile.mutations import broken_document, one_line

ANSWERS: dict[str, Json] = {
    "missing": {"missing": []},
    "submit": {"resumed": False, "state": "running", "time_s": 1.0e9},
    "follow": {
        "offset": 10,
        "events": [{"text": "warm-up", "done": 1, "total": 2}],
        "state": "done",
        "heartbeat_age_s": 0.5,
        "result": {"answer": {"latency": 1.5}},
    },
    "forget": {},
    "cancel": {},
}
IMPATIENT = Patience(line_s=0, busy_s=0, wait_s=0, pauses_s=(0,))


class Liar:
    """A target that answers each verb as it likes."""

    name = "liar"
    python: Sequence[str] = ("/usr/bin/python3",)

    def __init__(self, say: Callable[[str], str], returncode: int = 0) -> None:
        self.say, self.returncode = say, returncode

    def run(self, command: Sequence[str], stdin: str, *, brief: bool = True) -> Completed:
        return Completed(self.returncode, self.say(command[-1]), "")

    def put(self, source: Path, name: str) -> None:
        """Take it."""

    def get(self, name: str, destination: Path) -> None:
        destination.write_bytes(b"")


def work() -> Work:
    return Work(verb="profile", request={}, files={}, results={}, max_seconds=1)


def lying(seed: int) -> Callable[[str], str]:
    return lambda verb: json.dumps(broken_document(ANSWERS[verb], seed))


@pytest.mark.parametrize("seed", range(80))
def test_a_job_with_a_lying_agent_ends_in_one_line(seed: int) -> None:
    said: list[str] = []
    try:
        answer = run_job(Liar(lying(seed)), work(), lambda text, done, total: said.append(text), IMPATIENT)
    except UserError as error:
        one_line(error)
    else:
        assert isinstance(answer, dict)
    assert all(isinstance(text, str) and text.isprintable() for text in said)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "x",
            "null",
            "[]",
            '"x"',
            "[" * 100_000,
            '{"error": 1}',
            '{"error": {}}',
            '{"error": {"code": []}}',
            "\x00",
        ),
        *(
            '{"error": {"code": "E_X", "message": "\\u001b[2J\\nfake: all is well"}}',
            '{"a": NaN}',
            "9" * 5_000,
            "{" * 9,
        ),
    ],
)
@pytest.mark.parametrize("returncode", [0, 1, -9, -64, 255])
def test_an_answer_that_is_none_is_one_line(text: str, returncode: int) -> None:
    try:
        call_agent(Liar(lambda verb: text, returncode), "probe", {})
    except DeviceError as error:
        one_line(error)
    else:
        assert (text, returncode) == ('{"a": NaN}', 0)


def test_what_a_device_says_steers_no_terminal() -> None:
    shown = call_agent(Liar(lambda verb: json.dumps({"\x1b[2J": ["\x1b]0;x\x07", {"a": "b\nc"}]})), "probe", {})
    assert shown == {r"\x1b[2J": [r"\x1b]0;x\x07", {"a": r"b\nc"}]}


PROBE: Json = {
    **{"device": "liar", "board": "Orin", "machine": "aarch64", "system": "Linux", "l4t": "36.4", "jetpack": "6.2"},
    **{"cuda": "12.6", "tensorrt": "10.3", "onnxruntime": None, "python": "3.10.12", "numpy": "1.26"},
    **{"power_mode": {"name": "MAXN", "id": 0}, "disk_free_bytes": 1, "temperatures_c": {"cpu": 41.5}},
    "clocks": {"cpu": [{"name": "cpu0", "now_hz": 1, "min_hz": 1, "max_hz": 2, "governor": "x"}], "gpu": []},
    "memory": {"available_bytes": 1, "total_bytes": 2, "swap_free_bytes": 0, "swap_total_bytes": 0},
    **{"gpu_processes": [{"name": "x", "pid": 1}], "runtimes": ["tensorrt"], "holder": None, "advice": ["sit"]},
    "clocks_left_changed": False,
}


@pytest.mark.parametrize("seed", range(60))
def test_a_probe_of_junk_is_shown_or_one_line(seed: int) -> None:
    def probed(device: Any) -> Json:
        return call_agent(Liar(lambda verb: json.dumps(broken_document(PROBE, seed))), "probe", {})

    row = _row(find_device("local"), probed)
    shown = row["error"] if "error" in row else shown_or_line(row)
    assert all(line.isprintable() for line in shown.splitlines())


@pytest.mark.parametrize(("where", "most", "file"), [("", "17 MB", "31 MB"), (" >&2", "1 MB", "1 MB")])
def test_an_answer_without_end_is_cut_off(
    where: str, most: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ssh as a program that never stops talking: little of it is kept, and it is ended."""
    endless = tmp_path / "ssh"
    endless.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/started\nexec cat /dev/zero{where}\n")
    endless.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(ssh, "_MOST_BYTES", 30 << 20)  # of a file; of what is said it is the program's own
    monkeypatch.setattr(ssh, "_MOST_TOLD", 1 << 20)
    target = ssh.SshTarget(name="liar", python=("python3",), address=ssh.Address(host="liar"), folder="/")
    asked = (
        (most, lambda: target.run(["true"], "x" * (1 << 20))),
        (most, lambda: target.transfer("hello", {})),
        (file, lambda: target.get("x", tmp_path / "x")),
    )
    for size, ask in asked:
        with pytest.raises(DeviceError, match=rf"device liar: its answer has no end: more than {size} \[E_ANSWER\]"):
            ask()
    assert not (tmp_path / "x").exists()
    for pid in (tmp_path / "started").read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def shown_or_line(row: Json) -> str:
    try:
        return probe_text(row)
    except UserError as error:
        one_line(error)
        return str(error)
