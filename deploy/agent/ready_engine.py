"""An engine that opens here, in the cache: found there, or built now. Building and the first opening are children's."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import machine, vitals
from .child import run_in_child
from .errors import AgentError
from .store import sha256_of
from .tensorrt_build import BUILDER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .engine_cache import EngineCache
    from .runtimes import Loading
    from .tensorrt_api import Api
    from .tensorrt_build import BuildOptions

    Json = dict[str, Any]

_LITTLE_WORKSPACE = 256 << 20
"""Scratch memory for a second try: a thirtieth of an 8 GB board, and more than a layer of these networks asks for."""


def ready_engine(
    api: Api, cache: EngineCache, identity: Json, loading: Loading, options: BuildOptions, dla_core: int | None
) -> Json:
    """See that the cache holds an engine a child process could deserialise; give its facts."""
    locked = vitals.clocks(Path("/"))["locked"]
    reason = cache.missing(identity) or _chosen_unlocked(cache, identity, locked and loading.timed)
    if reason is None:
        try:
            return {"built_because": None, **_checked(api, cache, identity, dla_core)}
        except AgentError as error:
            if error.code not in ("E_ENGINE", "E_CRASH"):
                raise
            reason = f"the cached one did not open: {error.message}"
    scratch = cache.scratch_path(identity)
    try:
        cache.add(identity, {**_built(api, loading.path, options, scratch), "clocks_locked": locked})
    finally:
        scratch.unlink(missing_ok=True)
    return {"built_because": reason, **_checked(api, cache, identity, dla_core)}


def identity_of(api: Api, onnx: Sequence[Path], options: BuildOptions, cuda_facts: Json) -> Json:
    """All an engine depends on; onnx: the file, then those that hold weights of it.

    Not whether clocks are locked: an engine that was built at locked clocks serves at any, as a release must
    (`_chosen_unlocked`).
    """
    return {
        "onnx_sha256": sha256_of(*onnx),
        "options": {"builder": BUILDER, **asdict(options), "compute_capabilities": []},
        "tensorrt": api.describe(),
        "cuda": {key: cuda_facts[key] for key in ("driver", "compute_capability", "num_sms")},
        "board": machine.describe()["processor"],
        "power_mode": (machine.power_mode() or "").partition(" ")[0] or None,  # behind it the fan's
    }


def _chosen_unlocked(cache: EngineCache, identity: Json, locked: bool | None) -> str | None:
    """Say so where a cached engine's kernels were timed, and so chosen, while clocks moved that stand still now."""
    if locked and not cache.record(identity)["built"].get("clocks_locked"):
        return "it was built while clocks were free, and they are locked now"
    return None


def _built(api: Api, onnx: Path, options: BuildOptions, scratch: Path) -> Json:
    """Build in a child process; where memory runs out once more with little scratch memory, and say so in the facts."""
    request = {"library": api.library, "onnx": str(onnx), "options": asdict(options), "plan": str(scratch)}
    try:
        return {**run_in_child("build_engine", request), "out_of_memory": None}
    except AgentError as error:
        if error.code != "E_OUT_OF_MEMORY":
            raise
        first = error.message
    asked = options.workspace_bytes
    little = _LITTLE_WORKSPACE if asked is None else asked // 4
    again = {**request, "options": asdict(replace(options, workspace_bytes=little))}
    facts = run_in_child("build_engine", again)
    return {**facts, "out_of_memory": {"error": first, "asked_workspace_bytes": asked, "workspace_bytes": little}}


def _checked(api: Api, cache: EngineCache, identity: Json, dla_core: int | None) -> Json:
    request = {"library": api.library, "plan": str(cache.plan_path(identity)), "dla_core": dla_core}
    said = run_in_child("check_engine", request)
    record = cache.record(identity)
    built = {**record["built"], **{key: value for key, value in said.items() if value is not None}}
    return {**built, "sha256": record["sha256"], "identity": identity}
