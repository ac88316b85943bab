"""A real Slurm of one node, this machine, for as long as a context lasts. Needs root, slurm-wlm and munge."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CONFIGURATION = Path("/etc/slurm/slurm.conf")  # jobs do not inherit SLURM_CONF
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")

_CONTENT = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
SelectType=select/cons_tres
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1500 State=UNKNOWN
PartitionName=p Nodes={host} Default=YES State=UP
"""


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    absent = [command for command in COMMANDS if shutil.which(command) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons want root"


@contextmanager
def one_node(folder: Path) -> Iterator[None]:
    """Run munge's and Slurm's daemons with all their files below `folder`; nothing of them stays."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    facts = {"host": socket.gethostname().partition(".")[0], "folder": folder, "cpus": os.cpu_count()}
    content = _CONTENT.format(**facts, controller_port=_free_port(), node_port=_free_port())
    munged = [
        *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"),
        *(f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"),
    ]
    with ExitStack() as stack:
        stack.enter_context(_file_with(CONFIGURATION, content))
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            stack.enter_context(_daemon(command, folder / f"{command[0]}.out"))
        _wait_until_idle()
        try:
            yield
        finally:
            subprocess.run(["scancel", "--user=root"], check=False)
            _wait_until_idle()


@contextmanager
def _file_with(path: Path, content: str) -> Iterator[None]:
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    try:
        yield
    finally:
        path.unlink()
        if before is not None:
            path.write_bytes(before)


@contextmanager
def _daemon(command: list[str], log: Path) -> Iterator[None]:
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_idle(seconds: float = 60) -> None:
    """Until the node takes jobs and has none."""
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
        if done.stdout.strip() == "idle":
            return
        assert time.monotonic() < deadline, f"the node is not idle: {done.stdout} {done.stderr}"
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
