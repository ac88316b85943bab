"""Every reason of a verdict, provoked for real: processes that compete, quotas, stops, slow sensors, refused clocks."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploy import measure, profile_job
from deploy.devices import Device, find_device
from deploy.presets import Preset, WarmUp
from deploy.rows import About, rows_of
from deploy.runs import Run
from tests.deploy.boards import laid_out
from tests.deploy.conftest import MEAN, STD, HandMadeBundle, linear_weight, reference_logits
from tests.deploy.test_measure import measured

PRESET = Preset(
    name="p",
    min_seconds=1.2,
    min_count=200,
    warm_up=WarmUp(min_seconds=0, min_count=30, window=10, tolerance=1e9, max_seconds=10),
)
ABOUT = About(
    device="d",
    role=None,
    precision=None,
    runtime="fake",
    threads=0,
    macs=None,
    num_params=None,
    size_bytes=1,
    labels=None,
)

MEASURE = """
import json, os, subprocess, sys, time
import numpy as np
from deploy.agent import measuring, machine
from deploy.agent.sampler import Sampler

class Network:
    calls = 0
    def infer(self, images):
        Network.calls += 1
        {call}
        done = time.process_time_ns() + {work_ns}
        while time.process_time_ns() < done: pass
    def trace(self, images): return {{}}

if {pinned}: os.sched_setaffinity(0, {{max(os.sched_getaffinity(0))}})
preset = json.loads(sys.argv[1])
with Sampler(*{sampler}) as sampler:
    watch = measuring.Watch(sampler)
    facts, arrays = measuring.single_stream(Network(), [0], preset, watch)
    state, readings = watch.result()
np.savez(sys.argv[2], **{{k: np.asarray(v) for k, v in {{**arrays, **readings}}.items()}})
print(json.dumps({{"timing": dict(facts, num_inputs=64), "state": state, "machine": machine.describe()}}))
"""


def judged(
    folder: Path,
    call: str = "pass",
    *,
    work_ns: str = "1_000_000",
    pinned: bool = False,
    sampler: tuple[Any, ...] = (),
    before: list[str] | None = None,
    preset: Preset = PRESET,
    clocks: str = "as-is",
) -> tuple[str, list[str]]:
    """Measure a network that does `call`, then computes for `work_ns`, in a process of its own; its verdict."""
    code = MEASURE.format(call=call, work_ns=work_ns, pinned=pinned, sampler=sampler)
    command = [sys.executable, "-c", code, json.dumps(dataclasses.asdict(preset)), str(folder / "a.npz")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*(before or []), *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = {
        **json.loads(done.stdout),
        "golden": {"before": {"ok": True}, "after": {"ok": True}},
        "runtime": {"name": "fake", "threads": None},
        "mode": "default",
        "clocks": clocks,
    }
    with np.load(folder / "a.npz") as arrays:
        row = rows_of(ABOUT, [Run(preset, clocks, answer, dict(arrays))], [])[0]
    return row["verdict"], row["reasons"]


def has(reasons: list[str], start: str) -> bool:
    return any(reason.startswith(start) for reason in reasons)


@pytest.fixture
def busy_core() -> Iterator[None]:
    """A busy loop on the CPU that is measured on."""
    code = "import os\nos.sched_setaffinity(0, {max(os.sched_getaffinity(0))})\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as hog:
        assert hog.stdout is not None
        hog.stdout.readline()
        yield
        hog.kill()


@pytest.mark.usefixtures("busy_core")
def test_a_busy_loop_on_the_same_core_is_foreign_load(tmp_path: Path) -> None:
    verdict, reasons = judged(tmp_path, pinned=True)
    assert verdict != "VALID"
    assert has(reasons, "foreign load: other processes kept ")


def test_a_stopped_process_stalled(tmp_path: Path) -> None:
    """It stops itself in its 100th call; a shell lets it go on half a second later."""
    stop = (
        "if Network.calls == 100: subprocess.Popen(['sh', '-c', f'sleep 0.5; kill -CONT {os.getpid()}']); "
        "os.kill(os.getpid(), 19)"
    )
    verdict, reasons = judged(tmp_path, stop, work_ns="200_000")
    assert verdict != "VALID"
    assert has(reasons, "stalled: ")


def test_a_stopped_sampler_watched_nothing(tmp_path: Path) -> None:
    stop = "if Network.calls == 100: os.kill(sampler.pid, 19)"
    verdict, reasons = judged(tmp_path, stop)
    assert verdict != "VALID"
    assert has(reasons, "not watched: no sensor was read for ")


def test_a_sampler_with_too_much_to_read_costs(tmp_path: Path) -> None:
    """Hundreds of zones ten times a second, on the CPU that is measured on, at the same priority."""
    zones = {f"sys/class/thermal/thermal_zone{n}/temp": "40000\n" for n in range(400)}
    root = laid_out(tmp_path / "root", zones)
    longer = dataclasses.replace(PRESET, min_seconds=3.0)
    verdict, reasons = judged(tmp_path, pinned=True, sampler=(str(root), 10.0, 0), preset=longer)
    assert verdict != "VALID"
    assert has(reasons, "observer cost: reading the sensors took ")


def test_a_board_that_throttles_meanwhile_is_told(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "root", {"sys/class/hwmon/hwmon0/oc1_event_cnt": "0\n"})
    counter = root / "sys/class/hwmon/hwmon0/oc1_event_cnt"
    throttle = f"if Network.calls == 100: open({str(counter)!r}, 'w').write('2')"
    found = judged(tmp_path, throttle, sampler=(str(root), 10.0, 0))
    assert found[0] != "VALID"
    assert has(found[1], "throttled: 2 over-current or under-voltage events")
    counter.write_text("0\n")
    assert judged(tmp_path, throttle, sampler=(str(root), 10.0, 0), clocks="locked")[0] == "INVALID"


def test_a_call_that_grows_slower_drifts(tmp_path: Path) -> None:
    verdict, reasons = judged(tmp_path, work_ns="500_000 + Network.calls * 500")
    assert verdict == "INVALID"
    assert has(reasons, "drift: latency moved by +") or has(reasons, "unsteady: ")


def test_a_warm_up_that_finds_no_rest_is_not_steady(tmp_path: Path) -> None:
    strict = WarmUp(min_seconds=0, min_count=30, window=10, tolerance=0.02, max_seconds=0.5)
    restless = dataclasses.replace(PRESET, min_seconds=0.1, warm_up=strict)
    verdict, reasons = judged(tmp_path, work_ns="200_000 + Network.calls // 10 % 2 * 400_000", preset=restless)
    assert verdict != "VALID"
    assert has(reasons, "not steady: ")


CGROUP = Path("/sys/fs/cgroup")


@pytest.fixture
def quota() -> Iterator[list[str]]:
    """A cgroup that may use a tenth of a CPU, and the command that enters it."""
    version_1 = (CGROUP / "cpu").is_dir()
    folder = (CGROUP / "cpu" if version_1 else CGROUP) / f"afpkd-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("cpu.cfs_quota_us" if version_1 else "cpu.max")).write_text("10000" if version_1 else "10000 100000")
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no cgroup of our own may be made here ({error})")
    yield ["sh", "-c", f'echo $$ > {folder}/cgroup.procs; exec "$@"', "sh"]
    folder.rmdir()


def test_a_cpu_quota_is_told_as_throttling(quota: list[str], tmp_path: Path) -> None:
    verdict, reasons = judged(tmp_path, before=quota)
    assert verdict != "VALID"
    assert has(reasons, "throttled: a CPU quota (cgroup) held it back for ")


@pytest.mark.usefixtures("instant")
def test_clocks_that_may_not_be_locked_are_not_as_asked(
    bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine has no jetson_clocks: the job says so, and goes on."""

    def locked(name: str) -> Device:
        return dataclasses.replace(find_device(name), clocks="locked")

    monkeypatch.setattr(measure, "find_device", locked)
    record = measured(bundle, tmp_path / "row.json")
    assert record["verdict"] != "VALID"
    assert has(record["reasons"], "clocks not as asked: locked was asked for, but sudo -n jetson_clocks")


@pytest.mark.usefixtures("instant")
def test_inputs_that_break_the_network_are_seen_while_it_is_timed(bundle: HandMadeBundle, tmp_path: Path) -> None:
    """A square root that is NaN below a brightness that all golden images have, and most others have not."""
    images = np.load(bundle.folder / "eval.npy")
    brightness = images.mean(axis=(1, 2, 3))
    images = images[np.argsort(-brightness)]
    prepared = (images / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    means = prepared.reshape(len(images), -1).mean(axis=1)
    golden = np.argsort(-means)[:16]
    model = onnx.load(bundle.folder / "fp32.onnx")
    (product,) = [node for node in model.graph.node if node.op_type == "MatMul"]
    product.output[0] = "product"
    least = numpy_helper.from_array(np.array(means[golden].min() - 1e-3, np.float32), "least")
    model.graph.initializer.extend([least, numpy_helper.from_array(np.array(0, np.float32), "zero")])
    chain = [("ReduceMean", ["flat"]), ("Sub", ["mean", "least"]), ("Sqrt", ["over"]), ("Mul", ["root", "zero"])]
    names = ["mean", "over", "root", "nothing", "logits"]
    chain.append(("Add", ["product", "nothing"]))
    for (kind, inputs), output in zip(chain, names, strict=True):
        extra: dict[str, Any] = {"keepdims": 0} if kind == "ReduceMean" else {}
        model.graph.node.append(onnx.helper.make_node(kind, inputs, [output], **extra))
    onnx.checker.check_model(model)
    logits = reference_logits(images, linear_weight())
    bundle.replace("fp32.onnx", model.SerializeToString())
    np.savez(tmp_path / "golden.npz", images=images[golden], logits=logits[golden].astype(np.float32))
    bundle.replace("golden.npz", (tmp_path / "golden.npz").read_bytes())
    record = measured(bundle, tmp_path / "row.json")
    assert record["golden"]["after"]["ok"]
    assert record["timing"]["outputs"]["looked_at"] >= 2
    assert record["verdict"] == "INVALID"
    assert has(record["reasons"], "not finite: ")


@pytest.mark.usefixtures("instant")
def test_another_number_of_threads_is_the_wrong_runtime(
    bundle: HandMadeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime that was opened with two threads where one was asked for."""
    ask = profile_job.ProfileJob.work

    def with_two(job: Any, *arguments: Any) -> Any:
        work = ask(job, *arguments)
        return dataclasses.replace(work, request={**work.request, "threads": 2})

    monkeypatch.setattr(profile_job.ProfileJob, "work", with_two)
    record = measured(bundle, tmp_path / "row.json", threads=1)
    assert record["verdict"] == "INVALID"
    assert has(record["reasons"], "wrong runtime: 2 threads ran, 1 were asked for")
