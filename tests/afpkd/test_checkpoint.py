"""Weights on disk: whole, bit-equal, and never code."""

import math
from pathlib import Path

import pytest
import torch

from afpkd.checkpoint import load_weights, save_weights, state_sha256
from afpkd.errors import UserError
from afpkd.record import Json
from tests.afpkd.sharing import network


def test_weights_survive_the_disk_bit_equal(tmp_path: Path) -> None:
    net = network()
    save_weights(tmp_path / "m.safetensors", net.state_dict())
    other = network(seed=5)
    assert load_weights(other, tmp_path / "m.safetensors").startswith("loaded ")
    assert state_sha256(other) == state_sha256(net)


def test_foreign_weights_load_whole_or_not_at_all(tmp_path: Path) -> None:
    net, path = network(), tmp_path / "w.pt"
    state = net.state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, path)
    other = network(seed=5)
    assert "(key 'state_dict') (without 'module.')" in load_weights(other, path)
    assert state_sha256(other) == state_sha256(net)
    torch.save({"state_dict": state, "state_dict_ema": state}, path)
    assert load_weights(other, path).endswith("(key 'state_dict', not 'state_dict_ema')")
    cases: dict[str, Json] = {
        "1 missing": {name: tensor for name, tensor in state.items() if name != "fc.bias"},
        "1 unexpected": {**state, "extra": torch.zeros(1)},
        "fc.bias is 9, expected 4": {**state, "fc.bias": torch.zeros(9)},
        "NaN or infinite": {**state, "fc.bias": torch.full((4,), math.nan)},
    }
    third = network(seed=6)
    before = state_sha256(third)
    for said, changed in cases.items():
        torch.save(changed, path)
        with pytest.raises(UserError, match=said):
            load_weights(third, path)
    assert state_sha256(third) == before


def test_a_network_that_is_its_own_module_gets_its_weights_back(tmp_path: Path) -> None:
    net, path = torch.nn.ModuleDict({"module": network()}), tmp_path / "w.pt"
    other = torch.nn.ModuleDict({"module": network(seed=5)})
    for prefix in ("", "module."):  # as it is, and from training in parallel
        torch.save({prefix + name: tensor for name, tensor in net.state_dict().items()}, path)
        other["module"] = network(seed=5)
        assert load_weights(other, path).endswith("(without 'module.')") == bool(prefix)
        assert state_sha256(other) == state_sha256(net)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    torch.save({"fc.bias": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(UserError, match="not a file of plain tensors"):
        load_weights(network(), tmp_path / "bomb.pt")
    assert not (tmp_path / "executed").exists()
