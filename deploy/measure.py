"""The stage `profile`: a bundle's files on a device -> a record each, with a verdict, and its raw samples beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afpkd.errors import UserError
from afpkd.record import Json, provenance, sha256_of
from deploy import statistics
from deploy.agent.measuring import SINGLE_STREAM
from deploy.devices import Device, find_device, open_target, probe, with_runtime
from deploy.jobs import Progress
from deploy.presets import check_time, find_preset
from deploy.profile_job import ProfileJob
from deploy.profile_record import SCHEMA, facts_of, write_profile
from deploy.rows import rows_of
from deploy.runs import Run
from deploy.target import DeviceError
from deploy.turns import measured_in_turns, passed
from export.bundle import read_manifest
from export.sealed import sealed_file

_SWEPT = "power_mode_"
"""How the runs of a sweep's other power modes are named, their numbers behind it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of a bundle, and where its record goes (raw samples beside it, with suffix .npz)."""

    bundle_dir: Path
    precision: str
    out: Path


def profile_files(
    wanted: Sequence[Wanted],
    *,
    device: str,
    preset: str,
    threads: int,
    recipe: str,
    config_digest: str,
    scenarios: Sequence[str] = (SINGLE_STREAM,),
    progress: Progress = lambda text, done, total: None,
) -> list[Json]:
    """Measure the files on a device, in the preset's number of fresh processes each, taking turns; write their records.

    Taking turns (A, B, A, B …, in another order each round): what changes about the machine meanwhile meets them all.
    `threads` 0 is the runtime's own default. A record comes last, atomically: it exists exactly where all is done.
    A failed golden check is a result (verdict INVALID, no latency), not an error; nor is a power mode of a sweep that
    the device refuses: the records say so (`left_out`). UserError: unknown device, preset or precision, broken bundle,
    or an agent that failed.
    """
    if threads < 0:
        raise UserError("E_MEASURE", f"threads = {threads}: expected 0 (the runtime's default) or more")
    found, rules = with_runtime(find_device(device)), find_preset(preset)
    check_time(rules, scenarios, found.name, found.max_seconds)
    jobs = [
        [ProfileJob(one.bundle_dir, setting, one.precision, rules, threads, tuple(scenarios)) for one in wanted]
        for setting in _settings(found)
    ]
    for job in jobs[0]:
        job.files()  # a mistake is told before anything is measured
    for bundle in dict.fromkeys(one.bundle_dir for one in wanted):  # what travels is hashed there; labels stay here
        manifest = read_manifest(bundle)
        sealed_file(bundle, manifest["evaluation"]["labels"], manifest["hashes"])
    for one in wanted:
        one.out.unlink(missing_ok=True)  # an old record must not vouch for new samples
    measured, left_out = _measured(jobs, progress)
    beside = {"recipe": recipe, "config_digest": config_digest, **({"left_out": left_out} if left_out else {})}
    records = []
    for place, one in enumerate(wanted):
        runs = _by_mode({clocks: found[place] for clocks, found in measured.items()})
        records.append(write_profile({**record_of(jobs[0][place], runs), **beside}, runs, one.out))
    return records


def profile_bundle(bundle_dir: Path, *, precision: str, out: Path, **how: Any) -> Json:
    """Measure one file alone: see `profile_files`."""
    return profile_files([Wanted(bundle_dir, precision, out)], **how)[0]


def _settings(device: Device) -> Iterator[Device]:
    """The device as it is asked for; `sweep`: as it is, then once in every other power mode. UserError without any."""
    if device.clocks != "sweep":
        yield device
        return
    with open_target(device) as target:
        found = probe(target)
    if not found["power_modes"] or not found["power_mode"]:
        raise UserError(
            "E_MEASURE", f"device {device.name}: clocks = sweep, but it has no power modes: set clocks = as-is"
        )
    yield replace(device, clocks="as-is")
    for mode in found["power_modes"]:
        if mode["id"] != found["power_mode"]["id"]:
            yield replace(device, clocks=f"mode:{mode['id']}")


def _measured(
    jobs: Sequence[Sequence[ProfileJob]], progress: Progress
) -> tuple[dict[str, list[dict[str, list[Run]]]], list[str]]:
    """Measure the files in one setting after the other; give what was found by the setting's clocks.

    The first is the device as it is: some boards do not come back from another power mode. Also give a line for each
    power mode that it refused.
    """
    measured, left_out = {}, []
    for place, its in enumerate(jobs):
        clocks = its[0].device.clocks
        try:
            measured[clocks] = measured_in_turns(its, _part(progress, place, len(jobs)))
        except DeviceError as error:
            if not clocks.startswith("mode:") or error.code not in ("E_POWER_MODE", "E_SUDO"):
                raise
            left_out.append(f"power mode {clocks.partition(':')[2]} left out: {error.message}")
            progress(left_out[-1], 0, 0)
    return measured, left_out


def _part(progress: Progress, place: int, num: int) -> Progress:
    """Tell the steps of one setting, the `place`-th, as steps of all `num`."""
    return lambda text, done, total: progress(text, place * total + done, num * total)


def _by_mode(measured: dict[str, dict[str, list[Run]]]) -> dict[str, list[Run]]:
    """A file's runs by mode of the runtime, the one to quote first; then what is to be quoted of other power modes.

    measured: the same of each setting, by its clocks.
    """
    (_, first), *others = measured.items()
    return first | {f"{_SWEPT}{clocks.partition(':')[2]}": next(iter(runs.values())) for clocks, runs in others}


def record_of(job: ProfileJob, measured: dict[str, list[Run]], remarks: Sequence[str] = ()) -> Json:
    """A file's runs by mode, the one to quote first, as a record; `remarks` are said beside every row."""
    quoted = next(iter(measured.values()))
    answer = quoted[0].answer
    entry = next(entry for entry in job.entries() if entry["path"] == answer["file"])
    about = job.about(entry)
    failed = [mode for mode, runs in measured.items() if not passed(runs)]
    by_mode = {
        mode: rows_of(about, runs, [*_remarks(job, entry, runs, failed), *remarks]) for mode, runs in measured.items()
    }
    # the single streams of all modes first: what they had and what is quoted is the first
    rows = [rows[0] for rows in by_mode.values()] + [row for rows in by_mode.values() for row in rows[1:]]
    return {
        "schema": SCHEMA,
        **rows[0],
        "rows": rows,
        "top1_interval": _interval(rows[0]["top1"], job.manifest()["evaluation"]["num"]),
        "arch": job.manifest()["arch"],
        "preset": job.preset.name,
        "device_digest": job.device.digest,
        **facts_of(quoted, job.preset, job.threads),
        "modes": {mode: {"golden": runs[0].answer["golden"]} for mode, runs in measured.items()},
        **provenance(),
        "machine": answer["machine"],
        "inputs": {"manifest.json": sha256_of(job.bundle_dir / "manifest.json"), entry["path"]: entry["sha256"]},
    }


def _interval(top1: float | None, num: int) -> list[float] | None:
    """None for a detector, which has no top-1."""
    return None if top1 is None else statistics.top1_interval(round(top1 / 100 * num), num)


def _remarks(job: ProfileJob, entry: Json, runs: Sequence[Run], failed: list[str]) -> list[str]:
    """What must be said beside the numbers; failed: modes and power modes in which the golden check failed here."""
    remarks = [f"over budget: {entry['reason']}"] if entry.get("status") == "over budget" else []
    if passed(runs):
        if runs[0].answer["mode"] == "precise" and "default" in failed:
            told = "in mode default this processor's int8 sums saturate and the golden check fails"
            remarks.append(f"mode precise: {told}")
        swept = [name.removeprefix(_SWEPT) for name in failed if name.startswith(_SWEPT)]
        remarks += [f"power mode: the golden check fails in power mode {number}" for number in swept]
    if runs[0].preset != job.preset:
        seconds = runs[0].preset.min_seconds
        remarks.append(f"a comparison: timed for {seconds:g} s, not {job.preset.min_seconds:g} s")
    return remarks
