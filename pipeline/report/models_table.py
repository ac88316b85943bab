"""The report's main table: one row a measured file, and one for a network that is not measured yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from afpkd.record import Json
from pipeline.report.candidates import Key, accuracy_of_profile, energy_mj, latency_of
from pipeline.report.records import Records, metric_of_record, score_of
from pipeline.report.scenarios import energy_notes
from pipeline.report.tradeoff import Place, Standing
from pipeline.report.wording import NONE, ROLES, VERDICTS, count, method_words, metric_words, milliseconds, si, span

COLUMNS = {
    "recipe": "Recipe",
    "model": "Model",
    "arch": "Architecture",
    "method": "Method",
    "precision": "Precision",
    "device": "Device",
    "accuracy": "Accuracy (%)",
    "accuracy_span": "95 %",
    "p50": "p50 (ms)",
    "p50_span": "95 % (ms)",
    "p90": "p90 (ms)",
    "p99": "p99 (ms)",
    "throughput": "Images/s",
    "energy": "Energy (mJ)",
    "macs": "MACs (FLOPs/2)",
    "num_params": "Parameters",
    "size": "File size",
    "memory": "Peak memory",
    "place": "Trade-off",
    "verdict": "Verdict",
    "reasons": "Reasons",
}
TEXT_COLUMNS = {"recipe", "model", "arch", "method", "precision", "device", "place", "verdict", "reasons"}
_OPTIONAL = ("recipe", "accuracy_span", "p50_span", "energy")

_PLACES = {
    Place.front: "on the front: nothing is both as accurate and as fast",
    Place.undecided: "undecided: something looks better, but the intervals meet",
    Place.dominated: "beaten: something is better, and the intervals say so",
}


class ModelsTable(NamedTuple):
    """Rows of finished text by the key of their column, with `role` and `against` (what beats it); columns; notes."""

    rows: list[dict[str, str]]
    columns: dict[str, str]
    notes: list[str]


def models_table(runs: Sequence[Records], standing: Mapping[Key, Standing]) -> ModelsTable:
    """Put all profiles into rows. standing: of the candidates among them."""
    rows = [row for run in runs for row in _rows(run, standing)]
    kept = {key for key in _OPTIONAL if any(row[key] != NONE for row in rows)} - (
        {"recipe"} if len(runs) == 1 else set()
    )
    columns = {key: words for key, words in COLUMNS.items() if key not in _OPTIONAL or key in kept}
    columns["accuracy"] = f"{_capital(_metric(runs))} (%)"
    return ModelsTable(rows, columns, _notes(runs, rows))


def _rows(run: Records, standing: Mapping[Key, Standing]) -> Iterable[dict[str, str]]:
    """A role that is not measured yet has one row with what its record knows."""
    measured = {profile["role"] for profile in run.profiles}
    sources = [*run.profiles, *({"role": role} for role in run.records if role not in measured)]
    for source in sorted(sources, key=lambda s: list(ROLES).index(s["role"])):
        key = (run.name, source.get("device", ""), source["role"], source.get("precision", ""))
        yield _row(source, run, standing.get(key))


def _row(profile: Json, run: Records, standing: Standing | None) -> dict[str, str]:
    record = run.records.get(profile["role"], {})
    known = {**record, **profile}
    is_measured = "latency_ms" in profile
    p50 = latency_of(profile, "p50") if is_measured else None
    right = accuracy_of_profile(profile) if is_measured else None
    score = (right and right.value) if is_measured else score_of(record)
    latency = profile.get("latency_ms", {})
    return {
        "role": profile["role"],
        "recipe": run.name,
        "model": ROLES[profile["role"]],
        "arch": known.get("arch", NONE),
        "method": method_words(record),
        "precision": profile.get("precision", NONE),
        "device": profile.get("device", NONE),
        "accuracy": NONE if score is None else f"{score:.2f}",
        "accuracy_span": (span(right.low, right.high, 1) if right else "") or NONE,
        "num_params": si(known.get("num_params")),
        "macs": si(profile.get("macs")),
        "size": si(profile.get("size_bytes"), "B"),
        **{key: milliseconds(latency.get(key)) for key in ("p50", "p90", "p99")},
        "p50_span": (span(p50.low, p50.high, 3) if p50 else "") or NONE,
        "throughput": count(profile.get("throughput_ips"), 1),
        "energy": count(energy_mj(profile), 2),
        "memory": si(profile.get("peak_memory_bytes"), "B"),
        "place": _place_words(standing),
        "against": _against(standing),
        "verdict": profile.get("verdict", "not measured"),
        "reasons": "; ".join(profile.get("reasons", [])),
    }


def _metric(runs: Sequence[Records]) -> str:
    """What the runs' networks are judged by, in words."""
    return metric_words({metric_of_record(record) for run in runs for record in run.records.values()} or {"top1"})


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _place_words(standing: Standing | None) -> str:
    """One word of _PLACES, up to its colon."""
    return _PLACES[standing.place].partition(":")[0] if standing and standing.place in _PLACES else NONE


def _against(standing: Standing | None) -> str:
    if standing is None or standing.by is None:
        return ""
    words = "Beaten by" if standing.place is Place.dominated else "Undecided against"
    return f"{words} {standing.by.file}."


def _notes(runs: Sequence[Records], rows: Sequence[Mapping[str, str]]) -> list[str]:
    profiles = [profile for run in runs for profile in run.profiles]
    notes = [_accuracy_note(runs)]
    if profiles:
        words = " ".join(f"{verdict}: {meaning}." for verdict, meaning in VERDICTS.items())
        notes.append(f"Latency is that of one call with one image. {words}")
    places = [meaning for meaning in _PLACES.values() if any(row["place"] == meaning.partition(":")[0] for row in rows)]
    if places:
        notes.append(
            f"Trade-off, within one device and one set of conditions: {'; '.join(places)}. INVALID rows are not judged."
        )
    if any(p["latency_ms"]["p99"] is None and p["latency_ms"]["p50"] is not None for p in profiles):
        notes.append("p99 is “-” where n is too small to bound it: take a longer preset.")
    if any(p["latency_ms"]["p50"] is None for p in profiles):
        notes.append("p50 is “-” where nothing was timed: the reasons say why.")
    memory = {p["memory"]["includes"]: None for p in profiles if "includes" in p.get("memory", {})}
    notes += [f"Peak memory is that of {includes}." for includes in memory]
    scratch = {
        f"{ROLES[p['role']]} {p['precision']} on {p['device']} {si(found, 'B')}": None
        for p in profiles
        if (found := p["runtime"].get("engine", {}).get("device_memory_bytes"))
    }
    notes += [f"Scratch memory of the engines on the GPU, weights apart: {', '.join(scratch)}."] if scratch else []
    return [*notes, *energy_notes(runs)]


def _accuracy_note(runs: Sequence[Records]) -> str:
    sizes = {manifest["evaluation"]["num"] for run in runs for manifest in run.manifests.values()}
    images = f" ({' and '.join(map(count, sorted(sizes)))} images)" if sizes else ""
    words = [ROLES[role] for run in runs for role in run.records if all(p["role"] != role for p in run.profiles)]
    rest = f"; not measured yet, so that of the trained weights: {', '.join(dict.fromkeys(words))}" if words else ""
    spread = " Its 95 % interval says how far another test set of this size would stray, not how far another training."
    return f"{_capital(_metric(runs))} is that of the exported file on the test set{images}{rest}.{spread}"
