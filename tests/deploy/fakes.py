"""A TensorRT of any release and a GPU, neither of which is there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from deploy.agent import cuda, fake_cuda, fake_tensorrt, runtimes, tensorrt_api
from deploy.agent.errors import AgentError
from deploy.agent.runtimes import Loading

Install = Callable[..., str]
"""(release, **knobs) -> the name of the module that now imports as that release's fake."""

_MODULE = """
import sys
from deploy.agent import fake_tensorrt
sys.modules[__name__] = fake_tensorrt.api({level!r}, **{knobs!r})
"""


def installer(folder: Path, patch: pytest.MonkeyPatch) -> Install:
    """Give a function that puts a fake TensorRT where this process and its children import the real one from."""
    patch.setitem(cuda.LIBRARIES, "fake", fake_cuda.FakeCuda)
    patch.setattr(tensorrt_api, "_LOGS", {})

    def install(level: str, **knobs: Any) -> str:
        name = "tensorrt_rtx" if level == "rtx" else "tensorrt"
        module = folder / str(len(list(folder.iterdir())))
        module.mkdir()
        (module / f"{name}.py").write_text(_MODULE.format(level=level, knobs=knobs))
        patch.syspath_prepend(str(module))
        fake = fake_tensorrt.api(level, **knobs)
        fake.__spec__ = ModuleSpec(name, loader=None)
        patch.setitem(sys.modules, name, fake)
        tensorrt_api._LOGS.clear()
        return name

    return install


def loading(path: Path, cache: Path, **overrides: Any) -> Loading:
    """What `runtimes.load("tensorrt", …)` is asked for; `options` are added to those that name the fakes."""
    options = {"cuda": "fake", "cache_dir": str(cache), **overrides.pop("options", {})}
    names = {"input_name": "input", "output_name": "logits"}
    return Loading(**{"path": path, **names, "threads": 0, "options": options, **overrides})


def load(onnx: Path, cache: Path, **overrides: Any) -> Any:
    """A TensorRT runtime on the fakes."""
    return runtimes.load("tensorrt", loading(onnx, cache, **overrides))


def failure(onnx: Path, cache: Path, **overrides: Any) -> AgentError:
    """What loading it fails with."""
    with pytest.raises(AgentError) as caught:
        load(onnx, cache, **overrides)
    assert "\n" not in caught.value.message
    return caught.value


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Inputs of the hand-made bundle's network."""
    return np.random.default_rng(seed).normal(size=(count, 3, 4, 4)).astype(np.float32)


def expected(onnx: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits ONNX Runtime gives."""
    logits: NDArray[np.float32] = onnxruntime.InferenceSession(str(onnx)).run(None, {"input": inputs})[0]
    return logits
