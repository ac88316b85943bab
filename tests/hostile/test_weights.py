"""Weights of a stranger: nothing is run or loaded in part, and one line says why."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from afpkd.checkpoint import load_training_state, load_weights, save_weights
from afpkd.errors import UserError
from afpkd.models import build_model
from tests.hostile.mutations import JUNK, Bomb, broken_bytes, one_line


@pytest.fixture(name="net", scope="module")
def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", num_classes=10, in_channels=3).eval()


def refused(net: torch.nn.Module, path: Path) -> None:
    """The weights are refused in one line, and the network is as it was."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError) as raised:
        load_weights(net, path)
    one_line(raised.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("where", ["whole", "state_dict", "tensor", "training state"])
def test_a_pickle_bomb_does_not_go_off(net: torch.nn.Module, tmp_path: Path, trap: Path, where: str) -> None:
    path = tmp_path / "w.pt"
    state: Any = {**net.state_dict(), "fc.bias": Bomb(trap)}
    torch.save({"whole": Bomb(trap), "state_dict": {"state_dict": state}}.get(where, state), path)
    if where == "training state":
        with pytest.raises(UserError, match="unreadable training state"):
            load_training_state(path, "digest")
    else:
        refused(net, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("seed", range(20))
def test_broken_weights_are_refused_or_whole(net: torch.nn.Module, tmp_path: Path, suffix: str, seed: int) -> None:
    """A flipped bit may lie in a number: then all of it is loaded, and finite. In any other case nothing is."""
    path = tmp_path / f"w{suffix}"
    save_file(net.state_dict(), path) if suffix == ".safetensors" else torch.save(net.state_dict(), path)
    path.write_bytes(broken_bytes(path.read_bytes(), seed))
    other = build_model("resnet8", num_classes=10, in_channels=3)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    try:
        load_weights(other, path)
    except UserError as error:
        one_line(error)
        assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    else:
        assert all(bool(tensor.isfinite().all()) for tensor in other.state_dict().values())


def test_the_old_format_with_changed_bytes_is_refused_or_whole(tmp_path: Path) -> None:
    """torch's reader of pickles raises whatever such bytes make of it: IndexError, AssertionError, TypeError ..."""
    small, chance, path = torch.nn.Linear(2, 3), random.Random(0), tmp_path / "w.pt"
    torch.save({**small.state_dict(), "digest": "x"}, path, _use_new_zipfile_serialization=False)
    states = path.read_bytes()
    torch.save(small.state_dict(), path, _use_new_zipfile_serialization=False)
    reads: list[tuple[bytes, Callable[[], object]]] = [
        (path.read_bytes(), lambda: load_weights(small, path)),
        (states, lambda: load_training_state(path, "x")),
    ]
    for whole, read in reads:
        num_refused = 0
        for _ in range(150):
            changed = bytearray(whole)
            for _ in range(chance.choice([1, 2, 3])):
                changed[chance.randrange(len(whole) - 40)] = chance.randrange(256)
            path.write_bytes(changed)
            try:
                read()
            except UserError as error:
                one_line(error)
                num_refused += 1
        assert num_refused > 25


def test_a_training_state_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"unreadable training state \(list\): delete it to train anew"):
        load_training_state(tmp_path / "checkpoint.pt", "x")


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (lambda: torch.zeros(4, 3).to_sparse(), "torch.sparse_coo"),
        (lambda: torch.zeros(4, 3, dtype=torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (lambda: torch.zeros(4, 3, dtype=torch.complex64), "torch.complex64"),
        (lambda: torch.zeros(4, 3, device="meta"), "meta"),
        (lambda: torch.quantize_per_tensor(torch.zeros(4, 3), 0.1, 0, torch.qint8), "torch.qint8"),
        (lambda: torch.nested.nested_tensor([torch.zeros(3)] * 4), "nested"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch, of such tensors
def test_a_tensor_that_is_no_plain_one_is_named(made: Callable[[], torch.Tensor], kind: str, tmp_path: Path) -> None:
    small = torch.nn.Linear(3, 4)
    torch.save({**small.state_dict(), "weight": made()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt: weight is no plain tensor \({kind}\): save one of numbers"):
        load_weights(small, tmp_path / "w.pt")


def test_a_number_that_is_infinite_here_is_refused(tmp_path: Path) -> None:
    """float64 holds it, the network's float32 does not."""
    small = torch.nn.Linear(1, 1)
    state = {"weight": torch.full((1, 1), 1e300, dtype=torch.float64), "bias": torch.zeros(1, dtype=torch.float64)}
    torch.save(state, tmp_path / "w.pt")
    refused(small, tmp_path / "w.pt")
    torch.save({**state, "weight": torch.full((1, 1), 0.5, dtype=torch.float64)}, tmp_path / "w.pt")
    assert load_weights(small, tmp_path / "w.pt").startswith("loaded 2 of 2")
    assert (small.weight.dtype, small.weight.item()) == (torch.float32, 0.5)


@pytest.mark.parametrize("junk", range(len(JUNK)))
def test_weights_that_are_no_tensors_are_refused(net: torch.nn.Module, tmp_path: Path, junk: int) -> None:
    path = tmp_path / "w.pt"
    torch.save({**net.state_dict(), "fc.bias": JUNK[junk]}, path)
    refused(net, path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("nan", {"fc.bias": torch.full((10,), torch.nan)}),
        ("infinite", {"fc.bias": torch.full((10,), torch.inf)}),
        ("shape", {"fc.bias": torch.zeros(11)}),
        ("scalar", {"fc.bias": torch.tensor(1.0)}),
        ("more", {"another": torch.zeros(1)}),
        ("escape", {"\x1b[2J": torch.zeros(1)}),
    ],
)
def test_weights_of_another_kind_are_refused(net: torch.nn.Module, tmp_path: Path, name: str, change: Any) -> None:
    path = tmp_path / f"{name}.pt"
    torch.save({**net.state_dict(), **change}, path)
    refused(net, path)


def test_a_safetensors_header_that_asks_for_all_memory_is_refused(net: torch.nn.Module, tmp_path: Path) -> None:
    for header in (struct.pack("<Q", 2**62), struct.pack("<Q", 100) + b"{" * 100, b""):
        path = tmp_path / "w.safetensors"
        path.write_bytes(header)
        refused(net, path)


def test_what_we_write_ourselves_passes(net: torch.nn.Module, tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", net.state_dict())
    assert load_weights(build_model("resnet8", num_classes=10, in_channels=3), tmp_path / "w.safetensors")
