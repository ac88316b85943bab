"""The devices there are, and how to reach each. Built in: this machine's CPU (`local`) and GPU (`local-gpu`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from afpkd.names import look_up
from deploy.local import local_target
from deploy.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A machine to measure on."""

    name: str
    """How the user calls it; also its folder under `profiles/`."""
    transport: str
    """How it is reached: a key of `_TRANSPORTS`."""
    runtime: str
    """What runs the network there: a name the agent knows."""
    python: str
    """The interpreter the agent runs under there."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What its runtime is told; for TensorRT: `deploy.agent.tensorrt_runtime.DeviceOptions`."""

    @property
    def machine(self) -> str:
        """What is busy while this device measures: a GPU's host is measured on nothing else meanwhile."""
        return self.transport if self.transport == "local" else self.name


def find_device(name: str) -> Device:
    """Give the device called `name`; UserError with the known names where there is none."""
    return look_up("device", name, _inventory())


def open_target(device: Device) -> AbstractContextManager[Target]:
    """Reach the device for as long as the context lasts."""
    return _TRANSPORTS[device.transport](device.name, device.python)


def _inventory() -> dict[str, Device]:
    local = Device(name="local", transport="local", runtime="onnxruntime", python=sys.executable)
    local_gpu = Device(name="local-gpu", transport="local", runtime="tensorrt", python=sys.executable)
    return {device.name: device for device in (local, local_gpu)}


_TRANSPORTS: dict[str, Callable[[str, str], AbstractContextManager[Target]]] = {"local": local_target}
