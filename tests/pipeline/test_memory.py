"""Memory at its end, a GPU's or this machine's, is one line."""

import errno
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from afpkd.errors import UserError
from pipeline import cli, disk
from pipeline.memory import is_out_of_memory

ON_A_GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.43 GiB.\nSee documentation"


def _raised_by(source: str) -> Exception:
    if source == "GPU":  # as torch says it: there is none here
        return torch.OutOfMemoryError(ON_A_GPU)
    with pytest.raises(Exception, match="lloca") as caught:
        if source == "torch":
            torch.empty(1 << 60, dtype=torch.uint8)
        if source == "ONNX Runtime":
            _expanded(1 << 50)
        np.empty(1 << 60, dtype=np.uint8)
    return caught.value


def _expanded(size: int) -> None:
    node = onnx.helper.make_node("Expand", ["x", "size"], ["y"])
    x, wanted, y = (
        onnx.helper.make_tensor_value_info(name, kind, [length])
        for name, kind, length in (
            ("x", TensorProto.FLOAT, 1),
            ("size", TensorProto.INT64, 1),
            ("y", TensorProto.FLOAT, "n"),
        )
    )
    graph = onnx.helper.make_graph([node], "g", [x, wanted], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros(1, np.float32), "size": np.array([size], np.int64)})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("GPU", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.43 GiB: "),
        ("torch", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1152921504606846976 bytes"),
        ("numpy", "Unable to allocate 1.00 EiB"),
        ("ONNX Runtime", "[ONNXRuntimeError] : "),
    ],
)
def test_memory_at_its_end_is_one_line(
    source: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = _raised_by(source)

    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: memory ran out: {words}")
    assert line.endswith(": end what else uses it, set AFPKD_CUDA_GRAPH=0 (on a GPU), or lower batch_size [E_MEMORY]")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_at_its_end_has_many_names(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("memory"), UserError("E_FILE", "x: out of memory")]
)
def test_other_errors_are_not_of_memory(error: Exception, tmp_path: Path) -> None:
    assert not is_out_of_memory(error)
    assert disk.explained(error, tmp_path) is error
