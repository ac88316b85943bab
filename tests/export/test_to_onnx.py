from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from afpkd.errors import UserError
from afpkd.models import build_model
from export import to_onnx
from export.graph_cost import num_parameters
from export.to_onnx import dry_run_export, onnx_from_model
from export.verify import run_onnx

if TYPE_CHECKING:
    from tests.export.conftest import TinyNet


class Outputs:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class BranchesOnData(nn.Module):
    def forward(self, x: Tensor) -> Outputs:
        return Outputs(x.flatten(1) if x.sum() > 0 else -x.flatten(1))


class FixesTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Outputs:
        return Outputs(x.reshape(2, 192))


class MergesTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Outputs:
        return Outputs(x.reshape(2, -1))


class HasNoOnnxOperator(nn.Module):
    def forward(self, x: Tensor) -> Outputs:
        return Outputs(torch.linalg.eig(x[:, 0])[0].real)


class GivesMaps(nn.Module):
    def forward(self, x: Tensor) -> Outputs:
        return Outputs(x.mean(1))


def assert_equals_torch(path: Path, model: nn.Module, images: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        expected = model(images).logits.numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images.numpy()})
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_file_computes_the_network_in_eval_mode_at_any_batch(net: TinyNet, example: Tensor, tmp_path: Path) -> None:
    onnx_from_model(net, example, tmp_path / "net.onnx")
    for batch in (1, 2, 7):
        assert_equals_torch(tmp_path / "net.onnx", copy.deepcopy(net), torch.randn(batch, 3, 8, 8))


@pytest.mark.parametrize("arch", ["resnet8", "resnet20"])
def test_the_zoo_exports(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(arch, num_classes=10, in_channels=1).to(memory_format=torch.channels_last)
    onnx_from_model(model, torch.zeros(1, 1, 28, 28), tmp_path / "net.onnx")
    assert_equals_torch(tmp_path / "net.onnx", model, torch.randn(3, 1, 28, 28))


def test_interface_is_one_input_and_the_logits(net: TinyNet, example: Tensor, tmp_path: Path) -> None:
    onnx_from_model(net, example, tmp_path / "net.onnx", opset=18)
    proto = onnx.load(tmp_path / "net.onnx")
    shapes = [
        (value.name, [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in [*proto.graph.input, *proto.graph.output]
    ]
    assert shapes == [("input", ["batch", 3, 8, 8]), ("logits", ["batch", 5])]
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    assert num_parameters(proto) == 441 - 2 * 4 + 4  # BatchNorm's scale and shift of each channel have become one bias


def test_it_is_one_file_that_names_no_place(net: TinyNet, example: Tensor, tmp_path: Path) -> None:
    onnx_from_model(net, example, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    data = (tmp_path / "net.onnx").read_bytes()
    assert b".py" not in data
    assert b"site-packages" not in data


def test_same_weights_give_the_same_bytes(net: TinyNet, example: Tensor, tmp_path: Path) -> None:
    onnx_from_model(net, example, tmp_path / "a.onnx")
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    onnx_from_model(other, torch.ones(4, 3, 8, 8), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_console_stays_silent_and_nothing_warns() -> None:
    """In a process of its own: pytest takes torch's log lines away before they are printed."""
    code = """
import torch
from afpkd.models import build_model
from afpkd.errors import UserError
from export.cost import macs_of
from export.to_onnx import dry_run_export
from tests.export.test_to_onnx import BranchesOnData
model, image = build_model("resnet8", num_classes=2, in_channels=1), torch.zeros(1, 1, 8, 8)
dry_run_export(model, image)
macs_of(model, image)
try:
    dry_run_export(BranchesOnData(), image)
except UserError:
    print("refused")
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-Werror", "-c", code], check=False, cwd=root, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


def test_dry_run_changes_nothing(net: TinyNet, example: Tensor) -> None:
    net.norm.eval()  # a mode that `train()` on the whole would lose
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    dry_run_export(net, example)
    assert (net.training, net.norm.training) == (True, False)
    assert torch.equal(random, torch.get_rng_state())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        (BranchesOnData(), "GuardOnDataDependentSymNode: Could not guard on data-dependent expression"),
        (FixesTheBatch(), "its inputs became {'input': [2, 3, 8, 8]}: the batch must stay dynamic"),
        (MergesTheBatch(), r"its outputs became {'logits': [2, '96*batch']}"),
        (HasNoOnnxOperator(), "No ONNX function found for <OpOverload(op='aten.linalg_eig'"),
        (GivesMaps(), ", 8, 8] where class scores N, K were expected"),
        (nn.Identity(), ", 3, 8, 8] where class scores N, K were expected"),
    ],
)
def test_dry_run_names_model_and_cause_in_one_line(model: nn.Module, cause: str, example: Tensor) -> None:
    with pytest.raises(UserError) as caught:
        dry_run_export(model, example, arch="mynet")
    message = str(caught.value)
    assert message.startswith(f"model mynet: {type(model).__name__} cannot be exported to ONNX opset 18: ")
    assert cause in message
    assert message.endswith(": mend its forward before training [E_EXPORT_TORCH]")
    assert message.count("[E_") == 1
    assert "\n" not in message
    assert "\x1b" not in message


def test_dry_run_tries_every_opset_that_is_asked_for(
    net: TinyNet, example: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    made = to_onnx.graph_from_model

    def spied(*arguments: Any, opset: int) -> onnx.ModelProto:
        tried.append(opset)
        return made(*arguments, opset=opset)

    monkeypatch.setattr(to_onnx, "graph_from_model", spied)
    dry_run_export(net, example, opsets=[20, 17])
    assert tried == [20, 17]
    scripted = to_onnx._scripted
    monkeypatch.setattr(to_onnx, "_scripted", lambda model, example, _opset: scripted(model, example, 16))
    with pytest.raises(UserError, match=r"opset 17: .*: mend its forward before training, or leave export\.legacy out"):
        dry_run_export(net, example, opsets=[18, 17])
    monkeypatch.setattr(to_onnx, "_traced", lambda *_: None)
    with pytest.raises(UserError, match=r"opset 20: .*, or let export\.opset be 18"):
        dry_run_export(net, example, opsets=[20])


def test_dry_run_runs_the_file(net: TinyNet, example: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx, "run_onnx", lambda path, images, batch_size: np.zeros((1, 5), np.float32))
    with pytest.raises(UserError, match="gives 1 rows for 3 images"):
        dry_run_export(net, example)


def test_dry_run_makes_the_float16_file_where_one_is_asked_for(
    net: TinyNet, example: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[tuple[str, int]] = []

    def spied(path: Path, images: NDArray[np.float32], batch_size: int) -> NDArray[np.float32]:
        weights = onnx.load(path).graph.initializer
        run.append((path.name, weights[0].data_type))
        return run_onnx(path, images, batch_size)

    monkeypatch.setattr(to_onnx, "run_onnx", spied)
    dry_run_export(net, example, half=True)
    assert run == [("fp32.onnx", TensorProto.FLOAT)] * 2 + [("fp16.onnx", TensorProto.FLOAT16)] * 2
    monkeypatch.setattr(to_onnx, "half_from_float", lambda _: onnx.ModelProto())
    with pytest.raises(UserError, match=r"^model TinyNet: fp16\.onnx is .*, or leave fp16 and int8 out of export\.pre"):
        dry_run_export(net, example, half=True)
    dry_run_export(net, example)


def test_a_refused_export_leaves_the_old_file(example: Tensor, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"old")
    with pytest.raises(UserError, match="MergesTheBatch cannot be exported to ONNX opset 18"):
        onnx_from_model(MergesTheBatch(), example, tmp_path / "net.onnx")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("net.onnx", b"old")]


def test_an_opset_that_is_not_written_is_refused(
    net: TinyNet, example: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = to_onnx._traced
    monkeypatch.setattr(to_onnx, "_traced", lambda model, example, opset: traced(model, example, 18))
    with pytest.raises(UserError, match=r"opset 19: its operator sets became \{'': 18\}"):
        onnx_from_model(net, example, tmp_path / "net.onnx", opset=19)
