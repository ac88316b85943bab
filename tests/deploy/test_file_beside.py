"""Weights that lie beside a measured file: they travel with it, and an engine is built for them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from afpkd.errors import UserError
from afpkd.record import sha256_of
from deploy.agent.any_file import measure_file as measure_here
from deploy.measure_file import measure_file
from tests.deploy.fakes import Install
from tests.deploy.test_measure_file import answers, request


@pytest.mark.usefixtures("instant")
def test_weights_that_lie_beside_the_file_travel_with_it(onnx_path: Path, tmp_path: Path) -> None:
    model, weights = tmp_path / "apart.onnx", tmp_path / "apart.onnx.data"
    onnx.save(onnx.load(onnx_path), model, save_as_external_data=True, location=weights.name, size_threshold=0)
    record = measure_file(model, device="local", preset="instant", threads=1)
    assert record["golden"]["after"]["ok"]
    assert record["inputs"] == {path.name: sha256_of(path) for path in (model, weights)}
    assert record["size_bytes"] == model.stat().st_size + weights.stat().st_size
    assert record["macs"] == 240
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
