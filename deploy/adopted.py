"""A record that a board made by hand (`agent.pyz profile BUNDLE`) -> a record of a run, judged here like any other."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np

from afpkd.errors import UserError
from afpkd.record import Json, read_record, sha256_of
from deploy.agent import PROTOCOL
from deploy.agent.by_hand import FACTS, REST
from deploy.agent.by_hand import SCHEMA as BY_HAND
from deploy.client import understood
from deploy.devices import Device
from deploy.inventory import device_name
from deploy.measure import record_of
from deploy.presets import find_preset
from deploy.profile_job import ProfileJob
from deploy.profile_record import write_profile
from deploy.runs import Run


def adopt_record(made: Path, run_dir: Path, *, device: str, recipe: str, config_digest: str) -> Json:
    """Judge what `made` and its samples (.npz beside it) hold, and write it to run_dir/profiles/<device>/.

    The same numbers and verdicts as if a host had asked the board; only that nobody else's clock was compared, and
    that there was one process. UserError: not such a record, other samples, another bundle than the run's, other rules.
    """
    if not made.is_file():
        raise UserError(
            "E_BOARD_RECORD", f"{made}: no such file: bring the record (.json) and its samples (.npz) from the board"
        )
    record = read_record(made)
    with understood(device_name(device)):
        return _adopted(record, made, run_dir, device, {"recipe": recipe, "config_digest": config_digest})


def _adopted(record: Json, made: Path, run_dir: Path, device: str, identity: Json) -> Json:
    if record.get("schema") != BY_HAND:
        raise UserError(
            "E_BOARD_RECORD", f"{made}: not a record that `agent.pyz profile` made (schema {record.get('schema')})"
        )
    asked = record["by_hand"]
    if asked["protocol"] != PROTOCOL:
        raise UserError(
            "E_BOARD_RECORD",
            f"{made}: made by an agent of protocol {asked['protocol']}, this is {PROTOCOL}: "
            "take a new agent there (`afpkd devices agent FILE`) and measure again",
        )
    bundle_dir = _bundle_of(record, made, run_dir)
    preset = find_preset(record["preset"])
    described = Device(name=device, transport="by hand", runtime=asked["runtime"], python=(), options=asked["options"])
    job = ProfileJob(bundle_dir, described, record["precision"], preset, asked["threads"], ())
    answer = {key: record[key] for key in FACTS} | {key: asked[key] for key in REST}
    answer |= {"mode": record["mode"], "clocks": "as-is", "clock": None}
    answer |= {"finished_at_s": datetime.fromisoformat(record["finished_at"]).timestamp()}
    runs = {record["mode"]: [Run(preset, "as-is", answer, _samples_of(record, made))]}
    told = f"by hand: one process, where the preset has {preset.repeats} in turns"
    whole = record_of(job, runs, [told] if preset.repeats > 1 else [])
    out = run_dir / "profiles" / device / f"{whole['role']}-{record['precision']}.json"
    return write_profile({**whole, **identity}, runs, out)


def _bundle_of(record: Json, made: Path, run_dir: Path) -> Path:
    """The run's bundle that was measured; its hash, not its name, says which."""
    measured = record["inputs"]["manifest.json"]
    for manifest in sorted(run_dir.glob("*/bundle/manifest.json")):
        if sha256_of(manifest) == measured:
            return manifest.parent
    raise UserError(
        "E_BOARD_RECORD",
        f"{made}: measured another bundle than those of {run_dir}: export anew, carry it there, measure it",
    )


def _samples_of(record: Json, made: Path) -> dict[str, np.ndarray]:
    path = made.with_suffix(".npz")
    if not path.is_file():
        raise UserError(
            "E_BOARD_RECORD", f"{path}: not there: bring the samples along, they lie beside the record on the board"
        )
    if sha256_of(path) not in record["outputs"].values():
        raise UserError(
            "E_BOARD_RECORD", f"{path}: not the samples that {made.name} was made of: bring both from the same run"
        )
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
