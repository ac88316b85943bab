"""The bench of phase 1: its figures against their definition, and the whole of it on a tiny recipe."""

from pathlib import Path

import numpy as np
import pytest
import torch

from afpkd.models.outputs import Shapes
from afpkd.prompts import FrequencyPrompts
from afpkd.record import read_record
from bench import findings
from tests.tiny import tiny_recipe


def _prompts() -> FrequencyPrompts:
    torch.manual_seed(0)
    return FrequencyPrompts(Shapes([4, 6], [(16, 16), (8, 8)], 6, 3), scales=2)


def test_the_low_bands_share_is_of_the_squared_gradient_of_all_prompts() -> None:
    prompts = _prompts()
    squares = {True: 0.0, False: 0.0}
    for name, parameter in prompts.named_parameters():
        parameter.grad = torch.randn_like(parameter)
        if name.endswith(".prompts"):
            squares[name.endswith("groups.0.prompts")] += float(np.square(parameter.grad.numpy()).sum())
    found = findings.norm_and_share(prompts)
    assert found["low_share"] == pytest.approx(squares[True] / sum(squares.values()))
    assert found["norm"] == pytest.approx(sum(squares.values()) ** 0.5)


def test_cosines_are_those_of_each_bands_first_two_prompts_in_the_masks_order() -> None:
    prompts = _prompts()
    with torch.no_grad():
        group = prompts.level(0).groups[2].get_parameter("prompts")  # the finest details of the first level
        group[1, 0] = torch.tensor([1.0, 0.0, 2.0, 0.0])
        group[1, 1] = -3 * group[1, 0]
    cosines = findings.token_cosines(prompts)
    bands = [1 + 3 + 3, 1 + 3 + 3]
    assert len(cosines) == sum(bands)
    assert cosines[1 + 3 + 1] == pytest.approx(-1)
    assert sum(abs(cosine) > 0.9999 for cosine in cosines) == 1


@pytest.mark.slow
def test_both_forms_are_trained_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_recipe(heldout=3800))
    findings.main(tmp_path / "runs", tmp_path, str(tmp_path / "tiny.toml"))
    found = read_record(tmp_path / "findings.json")
    for name in findings.FORMS:
        assert found[name]["gradient"].keys() == {"training images", "training images, augmented", "test images"}
        assert all(0 < kind["low_share"] < 1 and kind["norm"] > 0 for kind in found[name]["gradient"].values())
        assert {"level", "band", "mean", "spread", "cosine"} == found[name]["settled"]["bands"][0].keys()
    assert found["as written"]["settled"]["refused"]  # averaged masks are near a half everywhere
    assert "as written" in capsys.readouterr().out
