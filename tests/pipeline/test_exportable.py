"""What was proven to export is not proven again, and nothing else is believed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from afpkd.errors import UserError
from afpkd.record import Json, provenance
from pipeline import exportable

IMAGE = torch.zeros(1, 3, 8, 8)
RESNET: Json = {"arch": "resnet8", "stages": [], "own": None}
CLEAN: Json = {**provenance(), "git_commit": "c0ffee"}


@pytest.fixture(name="tried")
def _tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The opsets of each trial, in a cache of its own and from a clean commit."""
    found: list[tuple[int, ...]] = []

    def dry_run_export(
        model: nn.Module, example: torch.Tensor, *, arch: str, opsets: tuple[int, ...], half: bool
    ) -> None:
        torch.rand(1)
        found.append(opsets)

    monkeypatch.setattr("export.to_onnx.dry_run_export", dry_run_export)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(exportable, "provenance", lambda: CLEAN)
    return found


def _ask(
    network: Json = RESNET, image: torch.Tensor = IMAGE, num_classes: int = 10, opset: int = 18, half: bool = True
) -> None:
    exportable.require_export(nn.Identity(), image, network, num_classes=num_classes, opsets=(opset,), half=half)


def test_a_network_is_tried_once(tried: list[tuple[int, ...]]) -> None:
    for _ in range(3):
        _ask()
    assert tried == [(18,)]


@pytest.mark.parametrize(
    "other",
    [
        {"network": {**RESNET, "arch": "resnet20"}},
        {"network": {**RESNET, "own": [[0.5], [0.5]]}},
        {"image": torch.zeros(1, 3, 8, 16)},
        {"image": torch.zeros(1, 1, 8, 8)},
        {"num_classes": 11},
        {"opset": 17},
        {"half": False},
    ],
)
def test_what_differs_is_tried_anew(tried: list[tuple[int, ...]], other: dict[str, Any]) -> None:
    _ask()
    _ask(**other)
    assert len(tried) == 2


@pytest.mark.parametrize("change", [{"git_commit": "decaf"}, {"versions": {"torch": "99"}}])
def test_other_code_and_other_packages_are_tried_anew(
    tried: list[tuple[int, ...]], change: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ask()
    made = {**CLEAN, **change}
    monkeypatch.setattr(exportable, "provenance", lambda: made)
    _ask()
    assert len(tried) == 2


@pytest.mark.parametrize("commit", [None, "c0ffee+", "c0ffee?"])
def test_code_that_no_commit_names_is_tried_each_time(
    tried: list[tuple[int, ...]], commit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {**CLEAN, "git_commit": commit}
    monkeypatch.setattr(exportable, "provenance", lambda: made)
    _ask()
    _ask()
    assert len(tried) == 2


def test_a_users_own_file_is_tried_each_time(tried: list[tuple[int, ...]]) -> None:
    own = {**RESNET, "arch": "/somewhere/mine.py:network"}
    _ask(own)
    _ask(own)
    assert len(tried) == 2


def test_one_that_does_not_export_is_refused_each_time(
    tried: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("E_EXPORT_TORCH", "it branches on data")

    with monkeypatch.context() as patched:
        patched.setattr("export.to_onnx.dry_run_export", refuse)
        for _ in range(2):
            with pytest.raises(UserError, match="it branches on data"):
                _ask()
    _ask()
    assert len(tried) == 1


def test_random_numbers_and_an_unwritable_cache_change_nothing(
    tried: list[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        _ask()
        drawn.append(float(torch.rand(1)))
    assert len(tried) == 2
    torch.manual_seed(0)
    assert drawn == [float(torch.rand(1))] * 2
