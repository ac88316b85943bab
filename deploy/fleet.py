"""The same for several devices, side by side: one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from afpkd.errors import UserError
from afpkd.record import Json
from deploy.client import call_agent, understood
from deploy.devices import Device, find_device, open_target

_MOST_AT_ONCE = 16


def on_each(names: Sequence[str], act: Callable[[Device], Json], stop: Event | None = None) -> list[Json]:
    """Do it on every device; give a row each, in order: `device`, and either what it gave or `error` and its `code`.

    An unknown name is a UserError before anything starts. A KeyboardInterrupt, which comes to this thread alone, sets
    `stop` for the others and waits for them.
    """
    found = [find_device(name) for name in dict.fromkeys(names)]
    with ThreadPoolExecutor(min(_MOST_AT_ONCE, len(found) or 1)) as pool:
        try:
            return list(pool.map(lambda device: _row(device, act), found))
        except KeyboardInterrupt:
            if stop is not None:
                stop.set()
            raise


def call_each(names: Sequence[str], verb: str, request: Callable[[Device], Json]) -> list[Json]:
    """Ask every device's agent one verb."""

    def act(device: Device) -> Json:
        with open_target(device) as target:
            return call_agent(target, verb, request(device))

    return on_each(names, act)


def _row(device: Device, act: Callable[[Device], Json]) -> Json:
    try:
        with understood(device.name):
            return {"device": device.name, **act(device)}
    except UserError as error:
        return {"device": device.name, "error": str(error), "code": error.code}
