"""The devices there are, and how to reach each: this machine's CPU (`local`) and GPU (`local-gpu`), `devices.toml`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afpkd.names import look_up
from afpkd.record import Json, digest, expanded
from deploy.client import call_agent, install_agent
from deploy.inventory import MAY_BE_TENSORRT, Entry, inventory_path, parsed_host, read_inventory
from deploy.local import local_target
from deploy.ssh import Address, ssh_target
from deploy.target import DeviceError, Target

_A_DAY_S = 86_400.0
"""Nobody waits for this machine but who asked, and Ctrl-C ends it: a limit for what hangs."""

_NO_NUMBER = ("workdir", "ssh_config", "max_seconds", "budget_mb", "tags")
"""Keys of devices.toml that no measured number depends on."""

_ENGINES = "../../engines"
"""Where a board keeps its engines: in our own folder, seen from a job's, which is jobs/<id>."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A machine to measure on."""

    name: str
    """How the user calls it; also its folder under `profiles/`."""
    transport: str
    """How it is reached: `local` or `ssh`; `by hand`: not at all, its record was brought here (`deploy.adopted`)."""
    runtime: str
    """What runs the network there: a name the agent knows, or `auto`."""
    python: Sequence[str]
    """The interpreter the agent runs under there, with arguments that come before the agent's."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What its runtime is told; for TensorRT: `deploy.agent.tensorrt_runtime.DeviceOptions`."""
    address: Address | None = None
    """Where ssh goes; None for this machine."""
    workdir: str = ""
    """The folder there that is ours; this machine's is temporary."""
    clocks: str = "as-is"
    max_seconds: float = 3600.0
    budget_bytes: int = 2 << 30
    tags: Sequence[str] = ()
    digest: str = ""
    """Of what devices.toml says that decides a number: where this changes, what was measured is measured anew."""

    @property
    def machine(self) -> str:
        """What is busy while this device measures: a GPU's host is measured on nothing else meanwhile."""
        return self.transport if self.transport == "local" else self.name


def devices() -> dict[str, Device]:
    """Give every device by name, the built-in ones first. UserError where `devices.toml` is wrong."""
    here = (sys.executable,)
    local = Device(name="local", transport="local", runtime="onnxruntime", python=here, max_seconds=_A_DAY_S)
    local_gpu = dataclasses.replace(local, name="local-gpu", runtime="tensorrt")
    path = inventory_path()
    listed = {name: _device(name, entry, path) for name, entry in read_inventory(path).items()}
    return {local.name: local, local_gpu.name: local_gpu, **listed}


def find_device(name: str) -> Device:
    """Give the device called `name`; UserError with the known names where there is none."""
    return look_up("E_DEVICE_NAME", "device", name, devices())


@contextmanager
def open_target(device: Device) -> Iterator[Target]:
    """Reach the device for as long as the context lasts; its agent is this version's. DeviceError, LineError."""
    if device.address is None:
        with local_target(device.name, device.python) as target:
            install_agent(target)
            yield target
    else:
        with ssh_target(device.name, device.python, device.address, device.workdir) as (reached, agent_sha256):
            install_agent(reached, unless=agent_sha256)
            yield reached


def probe(target: Target) -> Json:
    """Ask the device what it is and can."""
    return call_agent(target, "probe", {})


def with_runtime(device: Device) -> Device:
    """Settle `auto`: the first runtime the device has. DeviceError E_NO_RUNTIME with what to install."""
    if device.runtime != "auto":
        return device
    with open_target(device) as target:
        found = probe(target)
    if not found["runtimes"]:
        raise DeviceError(device.name, "E_NO_RUNTIME", "; ".join(found["advice"]))
    runtime = found["runtimes"][0]
    return dataclasses.replace(device, runtime=runtime, options=device.options if runtime == "tensorrt" else {})


def _device(name: str, entry: Entry, path: Path) -> Device:
    user, host, port = parsed_host(entry.host)
    config = path.parent / expanded(entry.ssh_config) if entry.ssh_config else None
    return Device(
        name=name,
        transport="ssh",
        runtime=entry.runtime,
        python=entry.command(),
        options=_options(entry) if entry.runtime in MAY_BE_TENSORRT else {},
        address=Address(host=host, user=user, port=port, config=config),
        workdir=entry.workdir,
        clocks=entry.clocks,
        max_seconds=entry.max_seconds,
        budget_bytes=entry.budget_mb * 10**6,
        tags=entry.tags,
        digest=digest({key: value for key, value in dataclasses.asdict(entry).items() if key not in _NO_NUMBER}),
    )


def _options(entry: Entry) -> dict[str, Any]:
    """What TensorRT is told there: see `deploy.agent.tensorrt_runtime.DeviceOptions`."""
    workspace_bytes = None if entry.workspace_mb is None else entry.workspace_mb * 10**6
    dla = {"use_dla": entry.use_dla, "dla_core": entry.dla_core}
    return {**dla, "workspace_bytes": workspace_bytes, "cache_dir": _ENGINES}
