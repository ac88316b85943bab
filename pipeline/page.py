"""What the report says, section by section, in finished text: the one source of its Markdown and its HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afpkd.record import Json
from pipeline.findings import (
    NONE,
    ROLES,
    VERDICTS,
    Gap,
    Headline,
    Records,
    command,
    headline,
    milliseconds,
    missing,
    si,
    top1_of,
)
from pipeline.prompts_section import PromptsSection, prompts_section
from pipeline.tables import Table, accuracy_table, files_table, method_words, published_table, speedup_table

_PROTOCOL_WORDS = {"quantity": "Timed", "percentiles": "Percentiles", "outliers": "Outliers"}


@dataclass(frozen=True, slots=True)
class Page:
    """What Markdown and HTML both say, in order."""

    name: str
    description: str
    headline: Headline
    missing: list[Gap]
    rows: list[dict[str, str]]
    """Of the main table: `role`, and text by the key of its column."""
    footnotes: list[str]
    tables: list[Table]
    prompts: PromptsSection | None
    protocol: list[str]
    provenance: Table
    environment: list[str]
    commands: list[str]


def page_of(run: Records, description: str, expected: Mapping[str, Json]) -> Page:
    """Put the records into words; `expected`: see `write_report`."""
    tables = [speedup_table(run), files_table(run), accuracy_table(run), published_table(run, expected)]
    return Page(
        name=run.name,
        description=description,
        headline=headline(run),
        missing=missing(run),
        rows=_rows(run),
        footnotes=_footnotes(run),
        tables=[table for table in tables if table.rows],
        prompts=prompts_section(run),
        protocol=_protocol(run.profiles),
        provenance=_provenance_table(run),
        environment=_environment(_sources(run).values()),
        commands=_commands(run),
    )


def _rows(run: Records) -> list[dict[str, str]]:
    """One row a profile; a role that is not measured yet has one row with what its record knows."""
    measured = {profile["role"] for profile in run.profiles}
    sources = [*run.profiles, *({"role": role} for role in run.records if role not in measured)]
    return [_row(source, run.records) for source in sorted(sources, key=lambda s: list(ROLES).index(s["role"]))]


def _row(profile: Json, records: Mapping[str, Json]) -> dict[str, str]:
    record = records.get(profile["role"], {})
    known = {**record, **profile}
    latency = profile.get("latency_ms", {})
    top1 = profile["top1"] if "top1" in profile else top1_of(record)
    return {
        "role": profile["role"],
        "model": ROLES[profile["role"]],
        "arch": known.get("arch", NONE),
        "method": method_words(record),
        "precision": profile.get("precision", NONE),
        "device": profile.get("device", NONE),
        "top1": NONE if top1 is None else f"{top1:.2f}",
        "num_params": si(known.get("num_params")),
        "macs": si(profile.get("macs")),
        "size": si(profile.get("size_bytes"), "B"),
        **{key: milliseconds(latency.get(key)) for key in ("p50", "p90", "p99")},
        "throughput": _count(profile.get("throughput_ips"), 1),
        "memory": si(profile.get("peak_memory_bytes"), "B"),
        "verdict": profile.get("verdict", "not measured"),
        "reasons": "; ".join(profile.get("reasons", [])),
    }


def _footnotes(run: Records) -> list[str]:
    notes = [_accuracy_footnote(run)]
    if run.profiles:
        words = " ".join(f"{verdict}: {meaning}." for verdict, meaning in VERDICTS.items())
        notes.append(f"Latency is that of one call with one image. {words}")
    if any(p["latency_ms"]["p99"] is None and p["latency_ms"]["p50"] is not None for p in run.profiles):
        notes.append("p99 is “-” where n is too small to bound it: take a longer preset.")
    if any(p["latency_ms"]["p50"] is None for p in run.profiles):
        notes.append("p50 is “-” where nothing was timed: the reasons say why.")
    memory = {p["memory"]["includes"]: None for p in run.profiles if "includes" in p.get("memory", {})}
    notes += [f"Peak memory is that of {includes}." for includes in memory]
    macs = {role: manifest["macs"]["note"] for role, manifest in run.manifests.items()}
    return notes + [f"MACs of {ROLES[role]}: {note}." for role, note in macs.items() if note]


def _accuracy_footnote(run: Records) -> str:
    sizes = {manifest["evaluation"]["num"] for manifest in run.manifests.values()}
    images = f" ({' and '.join(map(_count, sorted(sizes)))} images)" if sizes else ""
    words = [ROLES[role] for role in run.records if all(p["role"] != role for p in run.profiles)]
    rest = f"; not measured yet, so that of the trained weights: {', '.join(words)}" if words else ""
    return f"Top-1 is that of the exported file on the test set{images}{rest}."


def _protocol(profiles: Sequence[Json]) -> list[str]:
    """Say in words how the rows were measured; profiles that were measured alike are described once."""
    samples: dict[str, list[str]] = {}
    for profile in profiles:
        who = f"{ROLES[profile['role']]} {profile['precision']} n = {_count(profile['n'])}"
        samples.setdefault(_conditions(profile), []).append(who)
    return [f"{words} Samples: {', '.join(counts)}." for words, counts in samples.items()]


def _conditions(profile: Json) -> str:
    runtime, machine, protocol = profile["runtime"], profile["machine"], profile["protocol"]
    threads = NONE if profile["threads"] is None else profile["threads"]
    words = [
        f"On {profile['device']} ({_machine(machine)}): {runtime['name']} {runtime['version']}, threads {threads}, "
        f"{profile['scenario'].replace('_', ' ')}, batch {profile['batch']}, preset {profile['preset']}.",
        *_preset(protocol.get("preset", {})),
        *(f"{words}: {protocol[key]}." for key, words in _PROTOCOL_WORDS.items() if key in protocol),
    ]
    return " ".join(words)


def _preset(preset: Json) -> list[str]:
    if not preset:
        return []
    warm = preset["warm_up"]
    return [
        f"Warm-up, not timed: at least {warm['min_seconds']:g} s and {warm['min_count']:,} calls, until the medians of "
        f"3 windows of {warm['window']:,} calls agree within {100 * warm['tolerance']:g} %, at most "
        f"{warm['max_seconds']:g} s.",
        f"Duration: at least {preset['min_seconds']:g} s and {preset['min_count']:,} calls.",
    ]


def _sources(run: Records) -> dict[str, Json]:
    """Every record the report rests on, by its path in the run."""
    roles = {f"{role}/record.json": record for role, record in run.records.items()}
    prompts = {"prompts/record.json": run.prompts} if run.prompts else {}
    profiles = {f"profiles/{p['device']}/{p['role']}-{p['precision']}.json": p for p in run.profiles}
    return {**roles, **prompts, **profiles}


def _provenance_table(run: Records) -> Table:
    rows = [
        [
            path,
            record.get("finished_at", NONE)[:16].replace("T", " "),
            str(record.get("seed", NONE)),
            *(_short(record.get(key)) for key in ("config_digest", "git_commit")),
            _hashes(record.get("inputs")),
            _hashes(record.get("outputs")),
        ]
        for path, record in _sources(run).items()
    ]
    columns = ["Record", "Finished (UTC)", "Seed", "Config digest", "Git commit", "Inputs (sha256)", "Outputs (sha256)"]
    note = "The first 12 digits of each hash; the records hold them whole. A commit with “+” had uncommitted changes."
    return Table("Provenance", columns, rows, notes=[note])


def _short(digest: str | None) -> str:
    if not digest:
        return NONE
    return digest[:12] + ("+" if digest.endswith("+") else "")


def _hashes(hashes: Mapping[str, str] | None) -> str:
    return ", ".join(f"{name} {_short(digest)}" for name, digest in (hashes or {}).items()) or NONE


def _environment(records: Iterable[Json]) -> list[str]:
    """Name each machine and each version the records were made with, once."""
    machines: dict[str, None] = {}
    versions: dict[str, dict[str, None]] = {}
    for record in records:
        if "machine" in record:
            machines[_machine(record["machine"])] = None
        for name, version in record.get("versions", {}).items():
            versions.setdefault(name, {})[version] = None
    packages = ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())
    return [f"Machines: {'; '.join(machines)}.", f"Versions: {packages}."]


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['processor']}, {machine['num_cpus']} CPUs, {machine['system']}"


def _commands(run: Records) -> list[str]:
    """Write what makes all this again: the whole job, then the profile of each further device."""
    others = sorted({profile["device"] for profile in run.profiles} - {"local"})
    whole = command(run.name, "distill", "export", "profile")
    return [whole, *(command(run.name, "profile", device=device) for device in others)]


def _count(value: float | None, digits: int = 0) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"
