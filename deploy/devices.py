"""The devices there are, and how to reach each. Built in: `local`, this machine's CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

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


def find_device(name: str) -> Device:
    """Give the device called `name`; UserError with the known names where there is none."""
    return look_up("device", name, _inventory())


def open_target(device: Device) -> AbstractContextManager[Target]:
    """Reach the device for as long as the context lasts."""
    return _TRANSPORTS[device.transport](device.name, device.python)


def _inventory() -> dict[str, Device]:
    local = Device(name="local", transport="local", runtime="onnxruntime", python=sys.executable)
    return {device.name: device for device in (local,)}


_TRANSPORTS: dict[str, Callable[[str, str], AbstractContextManager[Target]]] = {"local": local_target}
