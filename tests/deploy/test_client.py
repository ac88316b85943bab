"""The agent's answers as the host sees them: errors, deaths, chatter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from afpkd.errors import UserError
from deploy.agent import PROTOCOL
from deploy.client import _document, call_agent, install_agent
from deploy.local import LocalTarget, local_target
from deploy.target import Completed, Target

if TYPE_CHECKING:
    from tests.deploy.conftest import HandMadeBundle

WARM_UP = {"min_seconds": 0, "min_count": 3, "window": 1, "tolerance": 1e9, "max_seconds": 9}


@dataclass
class Answering:
    """A target whose every command ends as told."""

    completed: Completed
    name: str = "orin1"
    python: Sequence[str] = ("python3",)
    commands: list[Sequence[str]] = field(default_factory=list)

    def run(self, command: Sequence[str], stdin: str, *, brief: bool = True) -> Completed:
        self.commands.append(command)
        assert json.loads(stdin)["protocol"] == PROTOCOL
        return self.completed

    def put(self, source: Path, name: str) -> None:
        raise AssertionError("nothing is sent here")

    def get(self, name: str, destination: Path) -> None:
        raise AssertionError("nothing is fetched here")


def request(bundle: HandMadeBundle, **changes: Any) -> dict[str, Any]:
    asked = {
        "protocol": PROTOCOL,
        "bundle": str(bundle.folder),
        "precision": "fp32",
        "runtime": "onnxruntime",
        "batch": 1,
        "threads": 1,
        "preset": {"min_seconds": 0, "min_count": 10, "warm_up": WARM_UP, "name": "test"},
        "evaluate": True,
        "out": "samples.npz",
    }
    return {**asked, **changes}


@pytest.fixture
def target(tmp_path: Path) -> LocalTarget:
    work = LocalTarget("local", (sys.executable,), tmp_path / "work")
    work.folder.mkdir()
    install_agent(work)
    return work


def test_profile_answers_facts_and_leaves_arrays(bundle: HandMadeBundle, target: LocalTarget) -> None:
    answer = call_agent(target, "profile", request(bundle, threads=2, evaluate=False))
    assert answer["runtime"]["name"] == "onnxruntime"
    assert answer["runtime"]["providers"] == ["CPUExecutionProvider"]
    assert answer["runtime"]["threads"] == 2
    assert answer["golden"]["before"]["ok"]
    assert answer["golden"]["after"]["ok"]
    with np.load(target.folder / "samples.npz") as arrays:
        assert set(arrays) == {
            *("samples_ns", "begun_ns", "warmup_ns", "pre_ns", "post_ns"),
            *("state_times_ns", "state_values"),
        }
        assert (np.diff(arrays["begun_ns"]) >= arrays["samples_ns"][:-1]).all()
        assert arrays["samples_ns"].dtype == np.int64
        assert len(arrays["samples_ns"]) == 10
        assert (arrays["samples_ns"] > 0).all()


def test_the_default_number_of_threads_is_counted(bundle: HandMadeBundle, target: LocalTarget) -> None:
    assert call_agent(target, "profile", request(bundle, threads=0))["runtime"]["threads"] >= 1


def test_larger_batches_are_timed_in_the_same_way(bundle: HandMadeBundle, target: LocalTarget) -> None:
    answer = call_agent(target, "profile", request(bundle, batch=4))
    assert answer["golden"]["after"]["ok"]
    assert answer["timing"]["num_inputs"] == 80  # all there are: 64 batches of 4 would be 256


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"precision": "int8"}, "E_BUNDLE", ": the bundle has fp32 (any)"),
        ({"runtime": "coreml"}, "E_RUNTIME", "unknown runtime coreml; known: onnxruntime, tensorrt"),
        ({"protocol": PROTOCOL + 1}, "E_PROTOCOL", f"host speaks protocol {PROTOCOL + 1}, this agent {PROTOCOL}"),
        ({"colour": "red"}, "E_REQUEST", "unexpected keyword argument 'colour'"),
        ({"bundle": "nowhere"}, "E_BUNDLE", "nowhere/manifest.json: not a readable manifest"),
    ],
)
def test_errors_name_device_cause_and_code(
    bundle: HandMadeBundle, target: LocalTarget, changes: dict[str, Any], code: str, text: str
) -> None:
    with pytest.raises(UserError) as caught:
        call_agent(target, "profile", request(bundle) | changes)
    message = str(caught.value)
    assert message.startswith("device local: ")
    assert message.endswith(f"[{code}]")
    assert text in message
    assert "\n" not in message


def test_a_corrupt_file_is_an_error_document_without_a_traceback(bundle: HandMadeBundle, target: LocalTarget) -> None:
    bundle.replace("fp32.onnx", b"\x08no protobuf at all")
    done = target.run([sys.executable, "-I", "agent.pyz", "profile"], json.dumps(request(bundle)))
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 1
    assert error["code"] == "E_LOAD"
    assert "fp32.onnx: onnxruntime" in error["message"]
    assert "Traceback" not in done.stdout + done.stderr
    assert not (target.folder / "samples.npz").exists()


@pytest.mark.parametrize(
    ("stdin", "verb", "code"),
    [("{", "profile", "E_REQUEST"), ("[1]", "profile", "E_REQUEST"), ("{}", "dance", "E_VERB")],
)
def test_nonsense_is_answered_in_json_too(target: LocalTarget, stdin: str, verb: str, code: str) -> None:
    done = target.run([sys.executable, "-I", "agent.pyz", verb], stdin)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == code


def test_an_unforeseen_error_keeps_its_place_in_one_line(bundle: HandMadeBundle, target: LocalTarget) -> None:
    with pytest.raises(UserError, match=r"KeyError: 'warm_up' \(measuring\.py:\d+\) \[E_UNEXPECTED\]"):
        call_agent(target, "profile", request(bundle, preset={"min_seconds": 0, "min_count": 1}))


def test_a_login_script_that_does_not_end_its_line_does_not_spoil_the_answer() -> None:
    assert _document('hello\n\x1b]0;title\x07{"protocol": 1}\n') == {"protocol": 1}
    assert _document('{ not ours {"protocol": 1}') == {"protocol": 1}
    assert _document('{"cut": ') is None
    assert _document("nothing") is None


def test_chatter_on_stdout_does_not_spoil_the_answer(target: LocalTarget) -> None:
    code = (
        "import os, sys; sys.path.insert(0, 'agent.pyz'); from agent import cli;"
        "cli._VERBS['chat'] = lambda request: (os.write(1, b'from C\\n'), print('from Python'), {'fine': True})[2];"
        "sys.exit(cli.main(['chat']))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=target.folder, input="{}", capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"fine": True}
    assert "from C" in done.stderr
    assert "from Python" in done.stderr


def test_peak_memory_is_this_process_own(bundle: HandMadeBundle, target: LocalTarget) -> None:
    """Linux hands a parent's peak on to a child's ru_maxrss: 600 MB here must not show there."""
    ballast = np.ones(600 << 20, dtype=np.uint8)
    answer = call_agent(target, "profile", request(bundle))
    assert answer["memory"]["source"] == "VmHWM"
    assert answer["memory"]["before_load_bytes"] < answer["memory"]["peak_bytes"] < ballast.nbytes


@pytest.mark.parametrize(
    ("completed", "text"),
    [
        (Completed(-11, "", "loading\nplugin x\n"), "died of SIGSEGV in the runtime.*its last line: plugin x"),
        (Completed(-9, "", ""), r"killed \(SIGKILL\): out of memory"),
        (Completed(127, "", "python3: not found"), r"exit code 127\); its last line: python3: not found"),
        (Completed(0, "half a docu", ""), "ended without an answer"),
        (Completed(1, '{"golden": {}}', ""), "ended without an answer"),
    ],
)
def test_a_death_without_an_answer_is_told(completed: Completed, text: str) -> None:
    target: Target = Answering(completed)
    with pytest.raises(UserError, match=f"device orin1: the agent .*{text}"):
        call_agent(target, "profile", {})


def test_the_agent_is_called_in_isolation_and_by_fixed_words() -> None:
    target = Answering(Completed(0, '{"protocol": 1}', ""))
    assert call_agent(target, "version", {}) == {"protocol": 1}
    assert target.commands == [["python3", "-I", "agent.pyz", "version"]]


def test_a_missing_interpreter_is_told() -> None:
    with (
        local_target("local", ("/nowhere/python3",)) as target,
        pytest.raises(UserError, match="no interpreter /nowhere/python3"),
    ):
        call_agent(target, "version", {})


def test_the_work_folder_ends_with_its_context(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    with local_target("local", (sys.executable,)) as target:
        target.put(tmp_path / "a", "deep/er/a")
        target.get("deep/er/a", tmp_path / "b")
        folder = target.folder
    assert (tmp_path / "b").read_text() == "text"
    assert not folder.exists()
