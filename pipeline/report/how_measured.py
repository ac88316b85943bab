"""How the numbers came to be: the protocol in words, and the hashes, versions and machines behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from afpkd.record import Json
from pipeline.report.conditions import clock_words
from pipeline.report.records import Records
from pipeline.report.tables import Table
from pipeline.report.wording import NONE, ROLES, count

_PROTOCOL_WORDS = {
    "quantity": "Timed",
    "percentiles": "Percentiles",
    "outliers": "Outliers",
    "processes": "Processes",
    "periodic": "Periodic",
}
_OF_A_BOARD = {"l4t": "L4T", "jetpack": "JetPack", "cuda": "CUDA"}
_NAMED = 24  # files, before their samples become a range


def protocol_words(runs: Sequence[Records]) -> list[str]:
    """Say in words how the rows were measured; profiles that were measured alike are described once."""
    samples: dict[str, list[tuple[str, int]]] = {}
    for run in runs:
        for profile in run.profiles:
            who = f"{_of(run, runs)}{ROLES[profile['role']]} {profile['precision']}"
            samples.setdefault(_conditions(profile), []).append((who, profile["n"]))
    return [f"{words} {_samples(counts)}" for words, counts in samples.items()]


def _samples(counts: Sequence[tuple[str, int]]) -> str:
    if len(counts) > _NAMED:
        least, most = (count(end(n for _, n in counts)) for end in (min, max))
        return f"Samples: n = {least} to {most} in {len(counts)} files."
    return f"Samples: {', '.join(f'{who} n = {count(n)}' for who, n in counts)}."


def _of(run: Records, runs: Sequence[Records]) -> str:
    """The recipe's name in front, where there are several."""
    return f"{run.name} " if len(runs) > 1 else ""


def _conditions(profile: Json) -> str:
    runtime, machine, protocol = profile["runtime"], profile["machine"], profile["protocol"]
    threads = NONE if profile["threads"] is None else profile["threads"]
    words = [
        f"On {profile['device']} ({_machine(machine)}): {runtime['name']} {runtime['version']}, threads {threads}, "
        f"{profile['scenario'].replace('_', ' ')}, batch {profile['batch']}, preset {profile['preset']}, "
        f"{clock_words(profile)}.",
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


def sources_of(runs: Sequence[Records]) -> dict[str, Json]:
    """Every record the report rests on, by its path in the run; in the folder of runs, where there are several."""
    found: dict[str, Json] = {}
    for run in runs:
        folder = f"{run.name}/" if len(runs) > 1 else ""
        found |= {f"{folder}{role}/record.json": record for role, record in run.records.items()}
        found |= {f"{folder}prompts/record.json": run.prompts} if run.prompts else {}
        found |= {f"{folder}profiles/{p['device']}/{p['role']}-{p['precision']}.json": p for p in run.profiles}
    return found


def provenance_table(runs: Sequence[Records]) -> Table:
    """Every record with its seed, settings, code, and the hashes of what it read and wrote."""
    rows = [
        [
            path,
            record.get("finished_at", NONE)[:16].replace("T", " "),
            str(record.get("seed", NONE)),
            *(_short(record.get(key)) for key in ("config_digest", "git_commit")),
            _hashes(record.get("inputs")),
            _hashes(record.get("outputs")),
        ]
        for path, record in sources_of(runs).items()
    ]
    columns = ["Record", "Finished (UTC)", "Seed", "Config digest", "Git commit", "Inputs (sha256)", "Outputs (sha256)"]
    note = "The first 12 digits of each hash; the records hold them whole. A commit with “+” had uncommitted changes."
    return Table("Provenance", columns, rows, notes=[note])


def _short(digest: str | None) -> str:
    if not digest:
        return NONE
    return digest[:12] + (digest[-1] if digest[-1] in "+?" else "")


def _hashes(hashes: Mapping[str, str] | None) -> str:
    return ", ".join(f"{name} {_short(digest)}" for name, digest in (hashes or {}).items()) or NONE


def environment_words(records: Iterable[Json]) -> list[str]:
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


def differing_words(records: Iterable[Json]) -> list[str]:
    """Say what of the report another machine would not give again, and where to ask."""
    trained = [record for record in records if "threads" in record and "rows" not in record]  # a profile has rows
    calls = sorted({_call(record) for record in trained})
    told = [
        "On another machine: latencies, energy and verdicts are of the machine, its clocks and its load, nothing else; "
        "a file's accuracy may move by those images whose two best classes lie closer than the processor rounds, and "
        "int8 answers worse on an x86 without VNNI, which adds in 16 bits."
    ]
    if calls:
        told.append(
            "The same seed gives the same weights to the byte only with the same code, packages, kind of processor and "
            f"call (here: {'; '.join(calls)}), on a CPU: any other adds up in another order, and then weights, chosen "
            "epochs, masks of the prompts and accuracies are others, as with another seed."
        )
    if any(str(record.get("device")).startswith("cuda") for record in trained):
        told.append("What was trained on a GPU may differ on the same GPU, too: it adds up in whatever order is ready.")
    return [*told, "`afpkd reproduce RECORD` does one of them again and says what came back."]


def _call(record: Json) -> str:
    threads, processes = record["threads"] or "torch's own", record.get("processes", 1)
    return f"{record.get('device')}, threads {threads}" + (f", processes {processes}" if processes != 1 else "")


def _machine(machine: Mapping[str, Any]) -> str:
    board = machine.get("board") or {}
    told = [f"{name} {board[key]}" for key, name in _OF_A_BOARD.items() if board.get(key)]
    gpu = [machine["gpu"]] if machine.get("gpu") else []
    return ", ".join([f"{machine['processor']}, {machine['num_cpus']} CPUs", *gpu, machine["system"], *told])
