"""What the reasons of a verdict mean, in plain words, and what helps."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.records import Records
from pipeline.report.tables import Table

_QUIET = "Profile again on a machine that does nothing else, cooled down, with steady clocks; or take a longer preset."
_MEANINGS = {  # how a reason begins -> what happened, what helps
    "golden mismatch": (
        "The file computes something else here than the trained network did, so its speed means nothing.",
        "Export again; on a board, update its runtime.",
    ),
    "failed": (
        "The runtime ended with an error at this batch, so there is no number of it.",
        "See the reason; where memory ran out, smaller batches are all there is.",
    ),
    "outdated": ("The file was exported again after this was measured.", "Profile again."),
    "not finite": (
        "The network answered with NaN or infinity during the timing: some real inputs break it.",
        "Export in a wider type; find the image.",
    ),
    "cross-check": (
        "NVIDIA's trtexec found another time on the GPU for the same engine.",
        "Lock the clocks; if it stays, quote neither without saying so.",
    ),
    "by hand": (
        "The board made the record alone, in one process instead of several.",
        "Profile from a host where one reaches it.",
    ),
    "too few samples": ("The run was shorter than its preset asks.", "Profile again and let it finish."),
    "drift": ("The machine got slower or faster while it was measured: the median depends on when one looks.", _QUIET),
    "unsteady": ("The speed was not the same from one tenth of the run to another.", _QUIET),
    "not steady": ("The warm-up ended before its timings agreed.", "Lock the clocks, or take a longer preset."),
    "dependent samples": (
        "Calls resemble the ones before them, so that many calls say as little as a few independent ones.",
        "Take a longer preset.",
    ),
    "one process": (
        "Fresh processes differ by more than the interval of any single one says.",
        "Take the preset standard, whose single stream has three; other scenarios are run by one.",
    ),
    "spread": (
        "Fresh processes gave different medians: a single one would mislead.",
        "Quote the interval, which spans them; or lock the clocks.",
    ),
    "foreign load": (
        "Other programs, or other guests of the same host, took processor time.",
        "Stop them; measure again.",
    ),
    "stalled": ("The machine stood still for moments, far longer than a call takes.", _QUIET),
    "throttled": ("The device lowered its clocks (heat, power or current).", "Cool it, or choose another power mode."),
    "clocks not as asked": ("The clocks could not be set as asked for.", "See the reason; setting them needs rights."),
    "wrong runtime": ("Another library or number of threads ran than was asked for.", "Mend the device's runtime."),
    "observer cost": (
        "Reading the sensors took more than 1 % of the time.",
        "Quote it as an upper bound.",
    ),
    "not watched": ("For a while no sensor was read: throttling would have gone unseen.", _QUIET),
    "few inputs": ("Fewer distinct images than the protocol wants: caches may flatter.", "Use a larger test set."),
    "deadlines missed": ("Frames came faster than this file can take them here.", "A lower rate, or a faster file."),
    "over budget": ("The file loses more accuracy than the recipe allows.", "Another precision or calibration."),
    "mode ": (
        "The usual way to add up int8 is wrong on this processor; this is the other.",
        "Nothing: this one is right.",
    ),
    "power mode": (
        "In one of the power modes that were swept the file computes something else.",
        "Do not use it in that power mode; update the board's runtime.",
    ),
    "a comparison": ("A shorter run that is only there to be compared.", "Quote the other row."),
}


def reasons_table(runs: Sequence[Records]) -> Table:
    """Each kind of reason that occurs, in how many rows, what it means and what helps."""
    rows_of_profiles = [row for run in runs for profile in run.profiles for row in (profile, *profile["rows"][1:])]
    rows = []
    for start, (meaning, mend) in _MEANINGS.items():
        found = sum(any(reason.startswith(start) for reason in row["reasons"]) for row in rows_of_profiles)
        if found:
            rows.append([start.strip(), str(found), meaning, mend])
    columns = ["Reason", "Rows", "What happened", "What helps"]
    notes = ["To profile again: afpkd profile. (make profile measures only what has changed.)"]
    return Table("What the reasons mean", columns, rows, frozenset({1}), notes)
