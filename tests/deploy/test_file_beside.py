"""What lies beside a measured file: its weights travel with it, inputs are an archive of numbers."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import onnx
import pytest

from afpkd.errors import UserError
from afpkd.record import sha256_of
from deploy.agent.any_file import measure_file as measure_here
from deploy.jobs import Work
from deploy.measure_file import FileJob, feeds_for, measure_file
from tests.deploy.fakes import Install
from tests.deploy.test_measure_file import answers, request


@pytest.mark.usefixtures("instant")
def test_weights_that_lie_beside_the_file_travel_with_it(
    onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, work = [], FileJob.work

    def heard(*arguments: Any) -> Work:
        found = work(*arguments)
        asked.append(found.request["beside"])
        return found

    monkeypatch.setattr(FileJob, "work", heard)
    model, weights = tmp_path / "apart.onnx", tmp_path / "apart.onnx.data"
    onnx.save(onnx.load(onnx_path), model, save_as_external_data=True, location=weights.name, size_threshold=0)
    record = measure_file(model, device="local", preset="instant", threads=1)
    assert record["golden"]["after"]["ok"]
    assert record["inputs"] == {path.name: sha256_of(path) for path in (model, weights)}
    assert record["size_bytes"] == model.stat().st_size + weights.stat().st_size
    assert record["macs"] == 240
    assert asked == [["model/apart.onnx.data"]]  # by whose bytes an engine of TensorRT is told from another's
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match=r"External data path.*E_LOAD"):
        measure_file(model.rename(tmp_path / "elsewhere" / model.name), device="local", preset="instant")


def test_an_engine_is_that_of_the_weights_beside_the_file(
    install: Install, onnx_path: Path, cache: Path, tmp_path: Path
) -> None:
    install("10.3")
    options, weights = {"cuda": "fake", "cache_dir": str(cache)}, tmp_path / "weights.data"
    how = {"runtime": "tensorrt", "options": options, "beside": [str(weights)]}
    asked = request(onnx_path, tmp_path, answers(onnx_path), **how)
    built = []
    for content in (b"first", b"first", b"second"):
        weights.write_bytes(content)
        built.append(measure_here(asked)["runtime"]["engine"]["built_because"])
    assert built == ["never built here", None, "never built here"]


def archive(kind: str) -> bytes:
    content = BytesIO()
    np.savez(content, input=np.zeros((9, 3, 4, 4), kind))
    return content.getvalue()


def single() -> bytes:
    content = BytesIO()
    np.save(content, np.zeros((9, 3, 4, 4)))
    return content.getvalue()


def foreign() -> bytes:
    content = BytesIO()
    with ZipFile(content, "w") as zipped:
        zipped.writestr("input", "no header of numpy's")
    return content.getvalue()


WHOLE = archive("float32")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param(b"", "not an .npz of arrays", id="empty"),
        pytest.param(WHOLE[:500], "not an .npz of arrays", id="cut"),
        pytest.param(WHOLE[:500] + b"!" + WHOLE[501:], "not an .npz of arrays", id="changed"),
        pytest.param(single(), "not an .npz of arrays", id="npy"),
        pytest.param(foreign(), "input is of .*: expected real numbers", id="foreign"),
        pytest.param(archive("U1"), "input is of <U1: expected real numbers", id="texts"),
        pytest.param(archive("complex64"), "input is of complex64: expected real numbers", id="complex"),
    ],
)
def test_inputs_that_are_no_archive_of_numbers_are_one_line(
    content: bytes, text: str, onnx_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "real.npz").write_bytes(content)
    with pytest.raises(UserError, match=text) as caught:
        feeds_for(onnx_path, tmp_path / "real.npz", {})
    assert caught.value.code == "E_MEASURE_INPUT"
    assert "\n" not in str(caught.value)
