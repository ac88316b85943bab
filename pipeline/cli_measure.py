"""`afpkd measure`: how fast is this ONNX file on that device? The verb for any model."""

from __future__ import annotations

import json
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from afpkd.errors import UserError
from afpkd.record import Json
from pipeline.cli_options import DeviceNameOption, JsonOption
from pipeline.progress import StageProgress


class Scenario(StrEnum):
    """How calls follow each other."""

    single_stream = "single_stream"
    periodic = "periodic"
    offline = "offline"


def measure(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    device: DeviceNameOption = "local",
    preset: Annotated[str, typer.Option("--preset", help="quick, standard or mlperf.")] = "standard",
    threads: Annotated[int, typer.Option("--threads", help="CPU threads of the runtime; 0 = its default.")] = 0,
    scenarios: Annotated[
        list[Scenario] | None, typer.Option("--scenario", help="Beside single_stream; may be given again.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help="An .npz of real inputs, one call per row; else random ones.")
    ] = None,
    shapes: Annotated[
        list[str] | None, typer.Option("--shape", help="NAME=1x3x224x224, of an input whose sizes are open.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the record here, raw samples beside it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure any ONNX file on a device, by the protocol of `profile`: latency with intervals, and a verdict."""
    from deploy.measure_file import measure_file
    from pipeline.screen import shown

    if out is not None:
        _require_place(out, model, inputs)
    progress = StageProgress("measure")
    with shown():
        progress.busy("starting")
        record = measure_file(
            model,
            device=device,
            preset=preset,
            threads=threads,
            scenarios=list(dict.fromkeys(["single_stream", *(str(scenario) for scenario in scenarios or [])])),
            inputs=inputs,
            shapes=dict(_shape(text) for text in shapes or []),
            out=out,
            progress=progress.job,
        )
    sys.stdout.write((json.dumps(record, indent=2) if as_json else text_of(record)) + "\n")


def _require_place(out: Path, model: Path, inputs: Path | None) -> None:
    """UserError, before hours of measuring, where the record or its samples would take the place of what is read."""
    from deploy.onnx_checks import weights_beside

    if out.is_dir():
        raise UserError("E_OUT", f"--out {out}: a folder: name a file there, such as {out / 'record.json'}")
    if out.suffix == ".npz":
        raise UserError("E_USAGE", f"--out {out}: raw samples go there: name the record {out.with_suffix('.json')}")
    read = [model, *weights_beside(model).values(), *([inputs] if inputs else [])]
    for place in (out, out.with_suffix(".npz")):
        if any(place.exists() and file.exists() and place.samefile(file) for file in read):
            raise UserError("E_OUT", f"--out {out}: {place} is read, and would be written over: name another")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=out.parent):  # it can be written to
        pass


def text_of(record: Json) -> str:
    """The record for people: a line a row, then why the verdicts are what they are."""
    runtime = record["runtime"]
    count = record["threads"]
    threads = f", {count} thread{'' if count == 1 else 's'}" if count else ""
    lines = [
        f"{record['model']} on {record['device']}: {runtime['name']} {runtime['version']}{threads}, "
        f"preset {record['preset']}, {record['num_runs']} process{'es' if record['num_runs'] > 1 else ''}",
        "",
        f"{'':<16}{'p50 ms (95 % interval)':<30}{'p90':>9}{'p99':>9}{'images/s':>11}  verdict",
    ]
    lines += [_row(row) for row in record["rows"]]
    reasons = dict.fromkeys(reason for row in record["rows"] for reason in row["reasons"])
    return "\n".join([*lines, *(["", *(f"- {reason}" for reason in reasons)] if reasons else [])])


def _row(row: Json) -> str:
    table = row["latency_ms"]
    name = {"periodic": f"{row['fps'] or 0:g} frames/s", "offline": f"batch {row['batch']}"}.get(row["scenario"])
    interval = f"{_ms(table['p50'])} ({_ms(table['p50_lo'])} to {_ms(table['p50_hi'])})"
    ips = "-" if row["throughput_ips"] is None else f"{row['throughput_ips']:.0f}"
    return (
        f"{name or 'single stream':<16}{interval:<30}{_ms(table['p90']):>9}{_ms(table['p99']):>9}{ips:>11}"
        f"  {row['verdict']}"
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _shape(text: str) -> tuple[str, list[int]]:
    name, _, sizes = text.rpartition("=")
    numbers = sizes.split("x")
    if not name or not all(number.isdigit() and int(number) > 0 for number in numbers):
        raise UserError("E_USAGE", f"--shape {text}: expected NAME=1x3x224x224")
    return name, [int(number) for number in numbers]
