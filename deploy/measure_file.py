"""Any ONNX file, measured by the protocol of `profile`: nobody has to make a bundle first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afpkd.errors import UserError
from afpkd.record import Json, provenance, sha256_of
from deploy.agent.measuring import SINGLE_STREAM
from deploy.devices import Device, find_device, with_runtime
from deploy.jobs import Progress, Work
from deploy.onnx_checks import precision_of, weights_beside
from deploy.presets import Preset, check_time, find_preset
from deploy.profile_record import SCHEMA, facts_of, write_profile
from deploy.rows import About, rows_of
from deploy.turns import measured_in_turns
from export.bounded import answers

_NUM_FEEDS = 64  # protocol 4.3
_NUM_GOLDEN = 8
_SEED = 0
_TOLERANCES = {"max_abs": 0.05, "cosine": 0.99, "argmax_agreement": 0.0}
"""Wide enough for int8, times the largest output: another network's answers are far outside."""

_KINDS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True, slots=True)
class Feeds:
    """What goes in, a call a row, and what ONNX Runtime here makes of the first rows without any optimisation."""

    inputs: dict[str, NDArray[Any]]
    expected: dict[str, NDArray[Any]]
    batched: bool
    """Whether the first size of every input is free: calls can be put together. What this makes of the answers, each
    batch's golden check says."""
    random: bool


def measure_file(
    model: Path,
    *,
    device: str,
    preset: str | Preset,
    threads: int = 0,
    scenarios: Sequence[str] = (SINGLE_STREAM,),
    inputs: Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    out: Path | None = None,
    observe: bool = True,
    progress: Progress = lambda text, done, total: None,
) -> Json:
    """Measure `model` on a device and give a profile record (`role`, `precision`, `top1` null); write it to `out`.

    inputs: an .npz of real ones, an array an input, a call a row; without it, random numbers of a fixed seed, and the
    record says so. shapes: those of inputs whose sizes the file leaves open. observe: whether sensors are read beside
    it. UserError: no readable file, a size that nobody named, inputs that do not fit, an unknown device or preset, an
    agent that failed.
    """
    if threads < 0:
        raise UserError("E_MEASURE", f"threads = {threads}: expected 0 (the runtime's default) or more")
    found, rules = with_runtime(find_device(device)), find_preset(preset) if isinstance(preset, str) else preset
    check_time(rules, scenarios, found.name, found.max_seconds)
    if found.clocks == "sweep":  # a recipe's matter: here the machine is measured as it is
        found = replace(found, clocks="as-is")
    feeds = feeds_for(model, inputs, shapes or {})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "feeds.npz"
        arrays = {f"in/{name}": array for name, array in feeds.inputs.items()}
        np.savez(path, allow_pickle=False, **arrays, **{f"out/{name}": one for name, one in feeds.expected.items()})
        precision = precision_of(model) if found.runtime == "tensorrt" else "fp32"
        beside = weights_beside(model)
        job = FileJob(model, beside, precision, path, feeds.batched, found, rules, threads, tuple(scenarios), observe)
        ((runs,),) = (list(measured.values()) for measured in measured_in_turns([job], progress))
    remarks = ["random inputs: no real ones were given"] if feeds.random else []
    rows = rows_of(job.about(feeds), runs, remarks)
    record = {
        "schema": SCHEMA,
        **rows[0],
        "rows": rows,
        "top1_interval": None,
        "arch": None,
        "model": model.name,
        "preset": rules.name,
        "device_digest": found.digest,
        **facts_of(runs, rules, threads),
        "modes": {"default": {"golden": runs[0].answer["golden"]}},
        **provenance(),
        "machine": runs[0].answer["machine"],
        "inputs": {name: sha256_of(file) for name, file in {model.name: model, **beside}.items()},
        "recipe": None,
        "config_digest": None,
    }
    return record if out is None else write_profile(record, {"default": runs}, out)


@dataclass(frozen=True, slots=True)
class FileJob:
    """An ONNX file as a job: see `turns.Job`."""

    model: Path
    beside: Mapping[str, Path]
    """Name in the model's folder -> file of its weights."""
    precision: str
    """What the runtime may compute in where the file's types do not bind it."""
    feeds: Path
    batched: bool
    device: Device
    preset: Preset
    threads: int
    scenarios: tuple[str, ...]
    observe: bool

    def modes(self) -> Sequence[str]:
        """See `turns.Job.modes`."""
        return ("default",)

    def work(self, mode: str, preset: Preset, turn: int, samples: Path) -> Work:
        """See `turns.Job.work`."""
        files = {f"model/{name}": file for name, file in {self.model.name: self.model, **self.beside}.items()}
        request = {
            "model": f"model/{self.model.name}",
            "beside": [f"model/{name}" for name in self.beside],
            "precision": self.precision,
            "feeds": "feeds.npz",
            "batched": self.batched,
            "tolerances": _TOLERANCES,
            "runtime": self.device.runtime,
            "threads": self.threads,
            "preset": asdict(preset),
            "out": "samples.npz",
            "mode": mode,
            "options": dict(self.device.options),
            "scenarios": list(self.scenarios if turn == 1 else (SINGLE_STREAM,)),
            "turn": turn,
            "observe": self.observe,
        }
        return Work(
            verb="measure",
            request=request,
            files={**files, "feeds.npz": self.feeds},
            results={"samples.npz": samples},
            max_seconds=self.device.max_seconds,
            clocks=self.device.clocks,
            budget_bytes=self.device.budget_bytes,
            tied=self.device.transport == "local",
        )

    def about(self, feeds: Feeds) -> About:
        """What is known of the file."""
        cost = _cost(self.model, feeds)
        return About(
            device=self.device.name,
            role=None,
            precision=None,
            runtime=self.device.runtime,
            threads=self.threads,
            macs=cost.get("macs"),
            num_params=cost.get("num_params"),
            size_bytes=sum(file.stat().st_size for file in (self.model, *self.beside.values())),
            labels=None,
            batch=next(iter(feeds.inputs.values())).shape[1],
        )


def feeds_for(model: Path, inputs: Path | None, shapes: Mapping[str, Sequence[int]]) -> Feeds:
    """Make 64 calls' inputs, from `inputs` or at random, and their first answers; see `measure_file` for the errors."""
    session = _session(model)
    wanted = {one.name: one for one in session.get_inputs()}
    unknown = [name for name in shapes if name not in wanted]
    if unknown:
        raise UserError("E_MEASURE_INPUT", f"{model}: no input {unknown[0]}: it has {', '.join(wanted)}")
    sizes = {name: _call_shape(model, one, shapes.get(name)) for name, one in wanted.items()}
    given = _random(wanted, sizes) if inputs is None else _read(inputs, wanted, sizes)
    names = [one.name for one in session.get_outputs()]
    found = [
        answers(session, {name: array[row] for name, array in given.items()}, model)
        for row in range(min(_NUM_GOLDEN, len(next(iter(given.values())))))
    ]
    expected = {name: np.stack([answer[place] for answer in found]) for place, name in enumerate(names)}
    batched = all(not isinstance(one.shape[0], int) and sizes[name][0] == 1 for name, one in wanted.items())
    return Feeds(given, expected, batched, inputs is None)


def _session(model: Path) -> Any:
    import onnxruntime

    if not model.is_file():
        raise UserError(
            "E_ONNX_FILE", f"{model}: {'a folder' if model.is_dir() else 'no such file'}: name an ONNX file"
        )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise UserError("E_LOAD", f"{model}: ONNX Runtime cannot read it: {_line(error)} Is it an ONNX file?") from None


def _call_shape(model: Path, one: Any, named: Sequence[int] | None) -> tuple[int, ...]:
    """One call's shape of an input: the file's sizes, a free first one being 1, and what the user named."""
    if one.type not in _KINDS:
        raise UserError("E_ONNX_FIT", f"{model}: input {one.name} is a {one.type}: none of {', '.join(_KINDS)}")
    if not one.shape:
        raise UserError("E_ONNX_FIT", f"{model}: input {one.name} is a single number: only arrays can be fed here")
    sizes = list(named) if named is not None else list(one.shape)
    if len(sizes) != len(one.shape):
        raise UserError(
            "E_MEASURE_INPUT", f"{model}: input {one.name} has {len(one.shape)} sizes {one.shape}, named were {sizes}"
        )
    if named is None and not isinstance(sizes[0], int):
        sizes[0] = 1
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        example = "x".join("1" if not isinstance(size, int) else str(size) for size in sizes)
        raise UserError(
            "E_MEASURE_INPUT", f"{model}: input {one.name} leaves sizes open {one.shape}: --shape {one.name}={example}"
        )
    return tuple(sizes)


def _random(wanted: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Standard normal numbers; of integers, small ones, which most vocabularies hold."""
    rng, made = np.random.default_rng(_SEED), {}
    for name, one in wanted.items():
        kind, shape = np.dtype(_KINDS[one.type]), (_NUM_FEEDS, *sizes[name])
        whole = rng.integers(0, {"b": 2, "u": 256}.get(kind.kind, 100), size=shape)
        made[name] = (rng.standard_normal(shape) if kind.kind == "f" else whole).astype(kind)
    return made


def _read(path: Path, wanted: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """The user's arrays: a call a row, of the model's types and shapes; with its batch of 1 or without."""
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file) as arrays:
            given = {name: np.asarray(arrays[name]) for name in arrays.files}
    except Exception as error:  # zipfile and numpy raise a dozen kinds for a file that is none of theirs
        raise UserError("E_MEASURE_INPUT", f"{path}: not an .npz of arrays ({_line(error)})") from None
    if set(given) != set(wanted):
        raise UserError("E_MEASURE_INPUT", f"{path}: holds {sorted(given)}, the model's inputs are {sorted(wanted)}")
    made: dict[str, NDArray[Any]] = {}
    for name, array in given.items():
        shape = sizes[name]
        if array.dtype.kind not in "biuf":
            raise UserError("E_MEASURE_INPUT", f"{path}: {name} is of {array.dtype}: expected real numbers")
        rows = array[:, None] if array.shape[1:] == shape[1:] and shape[0] == 1 else array
        if rows.ndim == 0 or rows.shape[1:] != shape or len(rows) == 0:
            raise UserError(
                "E_MEASURE_INPUT",
                f"{path}: {name} has shape {array.shape}: expected (calls, {', '.join(map(str, shape))})",
            )
        made[name] = rows.astype(_KINDS[wanted[name].type], copy=False)[:_NUM_FEEDS]
    if len({len(rows) for rows in made.values()}) > 1:
        raise UserError("E_MEASURE_INPUT", f"{path}: every input needs as many calls as the others")
    return made


def _cost(model: Path, feeds: Feeds) -> Json:
    """MACs and parameters of a file with one input; nothing where `onnx` is not installed, or shapes stay unknown."""
    try:
        import onnx

        from export.graph_cost import graph_cost
    except ImportError:
        return {}
    (shape, *others) = [array.shape[2:] for array in feeds.inputs.values()]
    try:
        return {} if others else graph_cost(onnx.load(str(model)), tuple(shape))
    except (UserError, ValueError, KeyError, IndexError):
        return {}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
