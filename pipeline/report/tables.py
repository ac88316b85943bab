"""The report's tables in finished text: speed-up, accuracy of the weights, published results beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from afpkd.names import in_words
from afpkd.record import Json
from pipeline.report.findings import speedups
from pipeline.report.records import Records, metric_of_record, score_of
from pipeline.report.wording import NONE, ROLES, method_words, metric_words, percent, si, span

_HEAVY = 3  # layers named


class Table(NamedTuple):
    """Finished text in rows; `numeric` are the columns to align right, `foreign` the rows that are not ours."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    notes: Sequence[str] = ()
    foreign: frozenset[int] = frozenset()


def speedup_table(run: Records) -> Table:
    """Wherever teacher and student were both timed."""
    rows = [
        [
            *(s.device, s.precision, f"{s.ratio.value:.2f}×", span(s.ratio.low, s.ratio.high, 2) or NONE),
            *(s.note, s.verdict, "; ".join(s.reasons) or NONE),
        ]
        for s in speedups(run)
    ]
    columns = ["Device", "Precision", "Speed-up", "Range", "Distilled against teacher", "Verdict", "Reasons"]
    note = (
        "Ratio of the median latencies (teacher / distilled); its range is what the ends of both 95 % intervals allow, "
        "its verdict the worse of the two."
    )
    return Table("Speed-up", columns, rows, frozenset({2, 3}), [note])


def together(named: Sequence[tuple[str, Table]]) -> Table:
    """One table of those of several recipes, with the recipe's name in front; that of one recipe as it is."""
    first = named[0][1]
    if len(named) == 1:
        return first
    rows: list[list[str]] = []
    foreign: set[int] = set()
    for name, table in named:
        foreign |= {len(rows) + row for row in table.foreign}
        rows += [[name, *row] for row in table.rows]
    numeric = frozenset(column + 1 for column in first.numeric)
    notes = list(dict.fromkeys(note for _, table in named for note in table.notes))
    return Table(first.title, ["Recipe", *first.columns], rows, numeric, notes, frozenset(foreign))


def cost_table(run: Records) -> Table:
    """What each network costs by count: parameters, MACs by both counters, activations, its heaviest layers."""
    rows, notes = [], []
    for role, manifest in run.manifests.items():
        macs = manifest["macs"]
        layers = sorted(macs.get("by_layer", {}).items(), key=lambda item: -item[1])
        heavy = ", ".join(f"{name or 'itself'} {100 * own / macs['macs']:.0f} %" for name, own in layers[:_HEAVY])
        activations = manifest.get("activations", {})
        row = [ROLES[role], si(manifest["num_params"]), si(macs["macs"]), si(macs.get("torch"))]
        row += [si(activations.get("peak_bytes"), "B"), f"{heavy} (of {len(layers)})" if layers else NONE]
        rows.append([*row, ", ".join(macs.get("unsupported_ops", {})) or NONE])
        notes += [f"MACs of {ROLES[role]}: {macs['note']}."] if macs.get("note") else []
    columns = [
        "Model",
        "Parameters",
        "MACs (FLOPs/2)",
        "by torch's counter",
        "Activations",
        "Heaviest layers",
        "Not counted",
    ]
    notes += [
        "MACs of one image: convolutions and linear layers, by fvcore (an ONNX file without source: by its graph), "
        "cross-checked with torch's own counter. Not counted: operators that are no such products.",
        "Activations: the most that values between layers need at one time, float32, one image, nothing fused: what an "
        "ideal runtime needs besides the weights.",
    ]
    return Table("Cost by count", columns, rows, frozenset({1, 2, 3, 4}), notes)


def accuracy_table(run: Records) -> Table:
    """Of the trained weights, before any export."""
    rows = []
    for role, record in run.records.items():
        metrics, selected = record["metrics"], record["selected_epoch"]
        epoch = NONE if selected is None else f"{selected} of {record['epochs']}"
        score = metric_of_record(record)
        keys = (f"test_{score}_last", f"test_{score}_selected", f"heldout_{score}")
        rows.append([ROLES[role], record["arch"], *(percent(metrics.get(key)) for key in keys), epoch])
    columns = [
        "Model",
        "Architecture",
        "Test, last epoch",
        "Test, selected epoch",
        "Held-out, selected",
        "Selected epoch",
    ]
    return Table("Accuracy of the trained weights", columns, rows, frozenset({2, 3, 4, 5}), _accuracy_notes(run))


def files_table(run: Records) -> Table:
    """Each exported file: size, accuracy, how far it strays from float32 torch, whether it is within its budget."""
    rows = []
    for role, manifest in run.manifests.items():
        sizes = {entry["path"]: si(entry["size_bytes"], "B") for entry in manifest["files"]}
        for name, found in manifest["verification"].items():
            score = "ap" if "ap" in found else "top1"
            sqnr = NONE if found["sqnr_db"] is None else f"{found['sqnr_db']:.1f}"
            built = manifest["build_check"].get(name, {})
            row = [ROLES[role], name, sizes.get(name, NONE), percent(found[score]), f"{0 - found['drop']:+.2f}", sqnr]
            rows.append([*row, f"{found['argmax_agreement']:.2f} %", built.get("status") or "not checked"])
            rows[-1].append(f"{found['status']}{': ' + found['reason'] if found['reason'] else ''}")
    detects = any(manifest["task"] == "detection" for manifest in run.manifests.values())
    accuracy = in_words("ap") if detects else "Top-1"
    columns = [
        "Model",
        "File",
        "Size",
        accuracy,
        "Against float32",
        "SQNR (dB)",
        "Same class",
        "Build",
        "Status",
    ]
    notes = [
        f"{accuracy} on the whole test set, SQNR and class against float32 torch, run here by ONNX Runtime. A file "
        "that loses more points than the recipe allows (`export.max_drop`) stays listed as over budget.",
        "Build: what TensorRT-RTX said of the file when it was exported.",
    ]
    return Table("Exported files", columns, rows, frozenset({2, 3, 4, 5, 6}), notes)


def published_table(run: Records) -> Table:
    """Ours first, each beside the published number of the same thing; below them what only others measured."""
    rest, rows = dict(run.expected), []
    for role, record in run.records.items():
        same = {role, ROLES[role], *([record["method"]] if role == "student" else [])}
        published = rest.pop(next((name for name in rest if name in same), ""), None)
        name = " ".join([ROLES[role], record["arch"], *([f"({method_words(record)})"] if role == "student" else [])])
        rows.append(_published_row(name, score_of(record), published))
    foreign = frozenset(range(len(rows), len(rows) + len(rest)))
    rows += [_published_row(ROLES.get(name, name), None, published) for name, published in rest.items()]
    metric = metric_words({metric_of_record(record) for record in run.records.values()})
    columns = ["Name", f"Test {metric}, measured here", f"Test {metric}, published", "Source"]
    shown = rows if run.expected else []
    return Table("Beside published results", columns, shown, frozenset({1, 2}), _published_notes(run), foreign)


def _accuracy_notes(run: Records) -> list[str]:
    seeds = " and ".join(sorted({str(record["seed"]) for record in run.records.values()}))
    return [
        "The epoch is selected on the held-out part of the training set; its weights are exported.",
        f"This is one run with seed {seeds}. A single run has no spread: a small difference may be chance.",
    ]


def _published_row(name: str, ours: float | None, published: Json | None) -> list[str]:
    if published is None:
        return [name, percent(ours), NONE, "measured here only"]
    return [
        name,
        percent(ours),
        percent(published.get("top1", published.get("ap"))),
        f"published, {published.get('source', 'by whom is not said')}",
    ]


def _published_notes(run: Records) -> list[str]:
    trained = [f"{ROLES[role]} {record['epochs']}" for role, record in run.records.items() if record["epochs"]]
    return [
        "Published numbers are others', by their own protocol (teacher, training images, epochs, choice of the epoch): "
        "nothing of them was measured here.",
        *([f"Epochs here: {', '.join(trained)}."] if trained else []),
    ]
