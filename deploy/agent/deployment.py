"""The verb `deploy`: a file becomes the current release once it was built here and computes what it should."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import events, runtimes
from .bundle import Bundle
from .errors import AgentError
from .golden import golden_check
from .releases import place, prune

if TYPE_CHECKING:
    from .runtimes import Runtime

    Json = dict[str, Any]

_STEPS = 3


@dataclass(frozen=True)
class Wanted:
    """What the host asks to have deployed."""

    protocol: int
    id: str
    """The release's name: letters, digits, dots, dashes."""
    bundle: str
    precision: str
    runtime: str
    threads: int
    keep: int
    """How many releases stay, the current one and the one before it among them."""
    python: list[str]
    """The interpreter, for the service's unit."""
    root: str = "."
    """The work folder, seen from where this runs."""
    options: dict[str, Any] = field(default_factory=dict)


def deploy(document: Json) -> Json:
    """Load the bundle's file here, hold it against its golden outputs, and make it the current release.

    AgentError E_GOLDEN where it computes something else: then nothing changes.
    """
    wanted = _wanted(document)
    bundle = Bundle(wanted.bundle)
    _require_in_budget(_entry(bundle, wanted.precision, wanted.runtime, wanted.options))
    events.say("building", done=0, total=_STEPS)
    runtime, entry = loaded(bundle, wanted.precision, wanted.runtime, wanted.threads, wanted.options)
    events.say("checking", done=1, total=_STEPS)
    try:
        check = require_golden(runtime, bundle, entry)
    except AgentError as error:
        if error.code != "E_GOLDEN":
            raise
        raise AgentError("E_GOLDEN", f"{error.message}: nothing was changed") from None
    events.say("switching", done=2, total=_STEPS)
    root = Path(wanted.root)
    facts = {
        "id": wanted.id,
        "precision": wanted.precision,
        "runtime": wanted.runtime,
        "threads": wanted.threads,
        "options": wanted.options,
        "role": bundle.manifest["role"],
        "arch": bundle.manifest["arch"],
        "file": entry["path"],
        "golden": check,
        "runtime_facts": runtime.describe(),
        "deployed_at": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    place(root, Path(wanted.bundle), facts, wanted.python)
    removed = prune(root, wanted.keep)
    events.say("deployed", done=_STEPS, total=_STEPS)
    return {"release": facts, "removed": removed}


def _entry(bundle: Bundle, precision: str, name: str, options: Json) -> Json:
    """The entry of the file that this device's version of the runtime takes, of several."""
    return bundle.entry(precision, name, runtimes.version(name, options))


def _require_in_budget(entry: Json) -> None:
    """AgentError E_BUDGET where the file lost more than it may."""
    if entry.get("status") == "over budget":
        message = f"{entry['path']} is over its budget ({entry['reason']}): raise export.max_drop to ship it"
        raise AgentError("E_BUDGET", message)


def loaded(bundle: Bundle, precision: str, name: str, threads: int, options: Json) -> tuple[Runtime, Json]:
    """Load the bundle's file of this precision for one image a call; also give its entry in the manifest."""
    version = runtimes.version(name, options)
    loading = runtimes.Loading(
        bundle.model_path(precision, name, version),
        input_name=bundle.manifest["input"]["name"],
        output_name=bundle.manifest["output"]["name"],
        threads=threads,
        precision=precision,
        options=options,
        timed=False,
    )
    return runtimes.load(name, loading), bundle.entry(precision, name, version)


def _wanted(document: Json) -> Wanted:
    try:
        wanted = Wanted(**document)
    except TypeError as error:
        raise AgentError("E_REQUEST", f"not a deployment: {error}") from None
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", wanted.id):
        raise AgentError("E_REQUEST", f"not a release's name: {wanted.id!r}")
    if "cache_dir" in wanted.options:  # whoever predicts later starts from anywhere
        return replace(wanted, options=dict(wanted.options, cache_dir=str(Path(wanted.options["cache_dir"]).resolve())))
    return wanted


def require_golden(runtime: Runtime, bundle: Bundle, entry: Json) -> Json:
    """Give how near the golden outputs are. AgentError E_GOLDEN where they are others."""
    images, expected = bundle.golden()
    inputs = bundle.preprocess(images)
    logits = np.concatenate([runtime.infer(np.ascontiguousarray(inputs[i : i + 1])) for i in range(len(inputs))])
    check = golden_check(logits, expected, bundle.tolerances(entry))
    if not check["ok"]:
        told = {key: check[key] for key in ("max_abs", "cosine", "argmax_agreement")}
        raise AgentError("E_GOLDEN", f"{entry['path']} computes something else here ({told})")
    return check
