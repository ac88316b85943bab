"""What a run's trainings have come to, read from what they write (`pipeline.live`, metrics.jsonl, records)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from afpkd.errors import UserError
from afpkd.names import in_words
from afpkd.record import Json
from pipeline.holder import HOLDER, is_alive, is_held, is_locked, read_object
from pipeline.lineage import CURVES, STAGES
from pipeline.live import EPOCHS, NOW
from pipeline.progress import heldout_of
from pipeline.recorded import recorded

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 32  # of a curve


class State(StrEnum):
    """How a training stands."""

    waiting = "not begun"
    training = "training"
    stopped = "stopped"
    done = "done"


class Training(NamedTuple):
    """One stage: its finished epochs, and where it is (keys of `pipeline.live`), if it is not done."""

    stage: str
    state: State
    rows: list[Json]
    now: Json
    test: Json
    """Metrics of its record that were measured on the test set."""


def trainings(run: Path) -> list[Training]:
    """Read every training stage of runs/<recipe>; UserError where there is none and none is on its way."""
    found = [_training(run / stage, stage) for stage in STAGES]
    if all(training.state is State.waiting for training in found) and not (run.is_dir() and _is_busy(run)):
        raise UserError(
            "E_RUN_MISSING", f"{run}: no training is or was here: name a run's folder, such as runs/default"
        )
    return found


def is_going_on(run: Path, found: Sequence[Training]) -> bool:
    """Whether more is to come: a stage trains, or a run holds the folder of runs and not every stage is done."""
    if any(training.state is State.training for training in found):
        return True
    return _is_busy(run) and any(training.state is not State.done for training in found)


def _is_busy(run: Path) -> bool:
    """Whether a run holds the folder of runs, also before its first training has begun."""
    runs = run.resolve().parent
    return is_held(runs, read_object(runs / HOLDER))


def text_of(run: Path, found: Sequence[Training], most: int | None = None) -> str:
    """The state in lines: a stage, then a curve for each of its loss terms and for the held-out score.

    most: where it has more lines than so many, the curves are left out of all but what trains now.
    """
    told = {training.stage: list(_lines(training)) for training in found}
    if most is not None and 1 + sum(map(len, told.values())) > most:
        told |= {
            training.stage: told[training.stage][1:2] for training in found if training.state is not State.training
        }
    return "\n".join([f"{run}", *(line for lines in told.values() for line in lines)])


def curve(values: Sequence[float]) -> str:
    """A curve of one line of text, lowest to highest; at most `_WIDTH` wide, then each sign is the mean of several."""
    parts = [values[len(values) * i // _WIDTH : len(values) * (i + 1) // _WIDTH] for i in range(_WIDTH)]
    shown = [sum(part) / len(part) for part in parts] if len(values) > _WIDTH else list(values)
    low, high = min(shown), max(shown)
    steps = len(_BARS) - 1
    return "".join(_BARS[round(steps * (value - low) / (high - low)) if high > low else 0] for value in shown)


def _training(folder: Path, stage: str) -> Training:
    if (folder / NOW).exists() or (folder / EPOCHS).exists():
        now = read_object(folder / NOW)
        state = State.training if _is_at_work(folder, now) else State.stopped
        return Training(stage, state, _rows(folder / EPOCHS), now, {})
    if not (folder / "record.json").exists():
        return Training(stage, State.waiting, [], {}, {})
    metrics = recorded(folder / "record.json").get("metrics", {})
    test = {key: value for key, value in metrics.items() if key.startswith("test_")}
    return Training(stage, State.done, _rows(folder / CURVES), {}, test)


def _is_at_work(folder: Path, now: Json) -> bool:
    """Whether who left `now` still trains: then it holds the lock on its stage, or on the folder of runs."""
    return is_alive(now) and (bool(is_locked(folder)) or is_held(folder.resolve().parents[1], now))


def _lines(training: Training) -> Iterator[str]:
    yield ""
    yield f"{training.stage:<12} {'  '.join([f'{training.state}', *_facts(training)])}"
    for name in training.rows[-1]["losses"] if training.rows else ():
        values = [row["losses"][name] for row in training.rows]
        yield f"  {name:<12} {curve(values):<{_WIDTH}}  {values[0]:.3f} -> {values[-1]:.3f}"
    if training.rows:
        scores = [heldout_of(row)[1] for row in training.rows]
        best = max(training.rows, key=lambda row: (heldout_of(row)[1], row["epoch"]))
        said = f"{scores[0]:.2f} -> {scores[-1]:.2f} %, best {max(scores):.2f} % (epoch {best['epoch']})"
        yield f"  {'held-out':<12} {curve(scores):<{_WIDTH}}  {said}"


def _facts(training: Training) -> Iterator[str]:
    now = training.now
    if now:
        yield f"epoch {now['epoch']}/{now['epochs']}  step {now['step']:,}/{now['steps']:,}"
    elif training.rows:
        yield f"{len(training.rows)} epochs"
    if training.state is State.training:
        if now["images_per_s"]:
            yield f"{now['images_per_s']:,.0f} images/s"
        if now["step"] == now["steps"]:
            yield "measuring"
        elif now["left_s"] is not None:
            yield f"{timedelta(seconds=round(now['left_s']))} left"
    if training.state is State.stopped:
        yield "the next `make distill` continues it"
    for name in ("top1", "ap"):
        if training.test.get(f"test_{name}_selected") is not None:
            yield f"test {in_words(name)} {training.test[f'test_{name}_selected']:.2f} %"


def _rows(path: Path) -> list[Json]:
    """The epochs in order; lines that are none, or have other loss terms than the last, are left out."""
    with suppress(OSError, ValueError):
        rows = [row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if _is_epoch(row)]
        return [row for row in rows if row["losses"].keys() == rows[-1]["losses"].keys()]
    return []


def _is_epoch(row: Any) -> bool:
    losses = row.get("losses") if isinstance(row, dict) else None
    if not isinstance(losses, dict) or not any(name.startswith("heldout_") for name in row):
        return False
    numbers = row.get("epoch"), heldout_of(row)[1], *losses.values()
    return all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
