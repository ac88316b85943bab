"""The Kubernetes profile against an API that is one only on the outside: its pods are processes of this machine."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from afpkd.errors import UserError
from afpkd.record import read_record
from pipeline import graph
from pipeline.graph import PROFILES
from tests.pipeline.executors import with_executors

RECIPE = """
extends = "default"
[data]
heldout = 3900
[distill]
method = "kd"
epochs = 1
"""


class Api(ThreadingHTTPServer):
    """The calls that Snakemake's executor makes, as Kubernetes answers them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Calls)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, subprocess.Popen[bytes]] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.deleted: list[str] = []

    def start_pod(self, job: dict[str, Any]) -> None:
        """Run the job's command with its own environment alone, and what an image would bring."""
        (container,) = job["spec"]["template"]["spec"]["containers"]
        image = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        own = {}
        for variable in container["env"]:
            secret = variable["valueFrom"]["secretKeyRef"]
            own[variable["name"]] = base64.b64decode(self.secrets[secret["name"]][secret["key"]]).decode()
        command = [*container["command"], *container["args"]]
        name = job["metadata"]["name"]
        self.jobs[name], self.pods[name] = job, subprocess.Popen(command, cwd="/", env={**image, **own})

    def status(self, name: str) -> dict[str, int]:
        code = self.pods[name].poll()
        return {"active": 1} if code is None else {"succeeded": 1} if code == 0 else {"failed": 1}


class _Calls(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/secrets"):
            self.server.secrets[body["metadata"]["name"]] = body["data"]
        elif self.path == "/apis/batch/v1/namespaces/default/jobs":
            self.server.start_pod(body)
        self._answer(body)

    def do_GET(self) -> None:
        if found := re.fullmatch(r"/apis/batch/v1/namespaces/default/jobs/([^/]+)/status", self.path):
            self._answer({"metadata": {"name": found[1]}, "status": self.server.status(found[1])})
        elif self.path.startswith("/api/v1/namespaces/default/pods?"):
            self._answer({"items": []})
        else:
            self.send_error(404)

    def do_DELETE(self) -> None:
        self.server.deleted.append(self.path.rpartition("/")[2].partition("?")[0])
        self._answer({"kind": "Status", "status": "Success"})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture(name="api")
def _api() -> Iterator[Api]:
    with Api() as api:
        threading.Thread(target=api.serve_forever).start()
        yield api
        api.shutdown()
        for pod in api.pods.values():
            pod.kill()
            pod.wait()


@pytest.mark.slow
def test_a_stage_trains_in_a_pod_that_shares_the_folder_of_runs(api: Api, tmp_path: Path) -> None:
    environment = with_executors()
    server = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{api.server_port}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {}}]
    kubeconfig = {"apiVersion": "v1", "kind": "Config", "clusters": [server], "contexts": [context], "users": users}
    (tmp_path / "kubeconfig").write_text(json.dumps({**kubeconfig, "current-context": "x"}))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "data").mkdir()
    runs = tmp_path / "my runs"
    command = [sys.executable, "-m", "pipeline", "run", "distill", "--recipe", str(tmp_path / "tiny.toml")]
    command += ["--runs", str(runs), "--train-device", "auto", "--cluster", "kubernetes", "--json"]
    command += ["--snakemake", "--until undistilled --seconds-between-status-checks 1 --latency-wait 1"]
    environment |= {"KUBECONFIG": str(tmp_path / "kubeconfig"), "AFPKD_DATA": str(tmp_path / "data")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr + (runs / "tiny" / "snakemake.log").read_text()
    record = read_record(runs / "tiny" / "undistilled" / "record.json")
    assert json.loads(done.stdout)["roles"]["undistilled"]["metrics"] == record["metrics"]
    ((name, job),) = api.jobs.items()
    assert name in api.deleted
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {variable["name"] for variable in container["env"]} == {"AFPKD_DATA"}
    assert {key: container["resources"]["requests"][key] for key in ("cpu", "memory")} == {
        "cpu": "7600m",  # eight threads, less what Kubernetes keeps of a node
        "memory": "16000M",
    }
    assert container["resources"]["requests"]["nvidia.com/gpu"] == "1"  # which this machine has not: auto then is cpu
    assert job["spec"]["activeDeadlineSeconds"] == 2880 * 60
    assert {"name": "afpkd", "mountPath": "/afpkd"} in container["volumeMounts"]
    assert pod["volumes"][1]["persistentVolumeClaim"]["claimName"] == "afpkd"
    assert "undistilled" in done.stderr, "what the stage said reached the person"


def test_a_cluster_is_a_shipped_profile_with_its_executor_or_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("executor: slurm\n")
    assert graph.require_known([], str(tmp_path)) == tmp_path
    assert graph.require_known([], None) is None
    monkeypatch.setattr(graph, "find_spec", lambda _: None)
    assert graph.require_known([], str(tmp_path)) == tmp_path, "which executor it needs, Snakemake knows"
    with pytest.raises(UserError, match="CLUSTER=slurm: Snakemake's executor for it is not installed: make setup-c"):
        graph.require_known([], "slurm")
    monkeypatch.setattr(graph, "find_spec", lambda _: object())
    assert graph.require_known([], "slurm") == PROFILES / "slurm"


def test_the_profiles_speak_of_rules_that_there_are() -> None:
    yaml = pytest.importorskip("yaml")
    text = (PROFILES.parent / "Snakefile").read_text()
    rules = {
        *re.findall(r"^rule (\w+):", text, re.MULTILINE),
        *re.findall(r'(\w+)="(?:train|tune)-', text),
    }
    assert {"teacher", "prompts", "student", "undistilled", "export"} <= rules
    for path in PROFILES.glob("*/config.yaml"):
        profile = yaml.safe_load(path.read_text())
        assert profile["retries"] >= 1
        assert {*profile["set-threads"], *profile["set-resources"]} == rules - {"report", "comparison"}, path
