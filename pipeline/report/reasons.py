"""What the reasons of a verdict mean, in plain words, and what helps."""

from __future__ import annotations

from collections.abc import Sequence

from afpkd.record import Json
from pipeline.report.records import Records
from pipeline.report.tables import Table

_MEANINGS = {  # how a reason begins -> what happened, what helps
    "golden mismatch": (
        "The file computes something else here than the trained network did, so its speed means nothing.",
        "Export again; on a board, update its runtime; for int8 see the mode “precise”.",
    ),
    "outdated": ("The file was exported again after this was measured.", "Run `make profile` again."),
    "too few samples": ("The run was shorter than its preset asks.", "Profile again; nothing else may stop it."),
    "drift": (
        "The machine got slower or faster while it was measured: the median depends on when one looks.",
        "Profile again on a machine that does nothing else, cooled down, with steady clocks; or take a longer preset.",
    ),
    "not steady": ("The warm-up ended before its timings agreed.", "Lock the clocks, or take a longer preset."),
    "foreign load": ("Other programs took processor time during the run.", "Stop them and profile again."),
    "few inputs": ("Fewer distinct images than the protocol wants: caches may flatter.", "Use a larger test set."),
    "throttled": ("The device lowered its clocks (heat, or too little current).", "Cool it, or lower the power mode."),
    "clocks": ("The clocks were not those that were asked for.", "Check the power mode and who else sets clocks."),
    "over budget": ("The file loses more accuracy than the recipe allows.", "Take another precision or calibration."),
    "wrong runtime": ("Another runtime ran than the file is meant for.", "Export for the device's runtime."),
    "observer": ("Watching the machine cost more than 1 % of its time.", "Sample the machine less often."),
    "mode": (
        "The default way to add up int8 is wrong on this processor; this row uses the other.",
        "Nothing: it is right.",
    ),
    "a comparison": ("A shorter run, only there to be compared.", "Quote the other row."),
}


def reasons_table(runs: Sequence[Records]) -> Table:
    """Each kind of reason that occurs, how often, what it means and what helps."""
    reasons = [reason for run in runs for profile in run.profiles for reason in _reasons(profile)]
    rows = []
    for start, (meaning, help_) in _MEANINGS.items():
        found = sum(reason.startswith(start) for reason in reasons)
        if found:
            rows.append([start, str(found), meaning, help_])
    return Table("What the reasons mean", ["Reason", "Rows", "What happened", "What helps"], rows, frozenset({1}))


def _reasons(profile: Json) -> list[str]:
    found: list[str] = profile["reasons"]
    return found
