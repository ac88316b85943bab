"""The speed bench runs, compares like with like, and says under which conditions; no timing is asserted."""

import json
import math
from pathlib import Path

import pytest
import torch

from bench import speed

RATIOS = (
    "kd_epoch_ratio_vs_torchdistill",
    "input_pipeline_ratio_vs_pil",
    "afpkd_step_over_kd_step",
    "reviewkd_step_ratio_vs_torchdistill",
    "freq_loss_ratio_vs_naive",
    "freq_loss_memory_ratio_vs_naive",
)


def test_the_quick_bench_writes_every_ratio_with_its_conditions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speed.main(["--quick", "--out", str(tmp_path / "speed.json")])
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [name for name in RATIOS if not (math.isfinite(found[name]) and found[name] > 0)] == []
    assert {"machine", "threads", "versions", "batch", "rounds", "date", "git_commit", "load_before"} <= set(
        found["conditions"]
    )
    assert found["conditions"]["images"] == "random"
    assert all(len(measured["ratios"]) == speed.QUICK.rounds for measured in found["rounds"].values())
    shown = capsys.readouterr().out
    assert [name for name in RATIOS if name not in shown] == []


def test_a_quick_bench_never_overwrites_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        speed.main(["--quick"])
    assert ended.value.code == 2
    assert "name another file with --out" in capsys.readouterr().err


def test_both_frequency_losses_are_the_same_loss_and_ours_keeps_less() -> None:
    naive, ours = speed.frequency_losses(speed.QUICK._replace(tokens=6, bands=(2, 16, 8)))
    torch.testing.assert_close(ours(), naive())
    assert speed.saved_bytes(naive) > 3 * speed.saved_bytes(ours)


def test_saved_bytes_counts_each_kept_memory_once() -> None:
    x = torch.randn(10, requires_grad=True)
    assert speed.saved_bytes(lambda: torch.autograd.grad((x * x).sum(), x)) == 40
    assert speed.saved_bytes(lambda: torch.autograd.grad((x + 1).sum(), x)) == 0


def test_a_ratio_is_the_median_over_rounds_that_take_turns() -> None:
    turns: list[str] = []
    found = speed.ratio(lambda: turns.append("slow"), lambda: turns.append("fast"), rounds=3)
    assert turns == ["fast", "slow", "slow", "fast", "fast", "slow", "slow", "fast"]  # the first round warms up
    assert found["median"] == sorted(found["ratios"])[1]


def test_both_input_pipelines_give_the_same_normalised_range() -> None:
    pixels, sizes = speed.random_pixels(), speed.QUICK
    ours = torch.cat(list(speed.our_batches(pixels, sizes)))
    theirs = torch.cat([images for images, _ in speed.pil_loader(pixels, sizes, 0)])
    assert ours.shape == theirs.shape == (sizes.batch * sizes.batches, 3, 8, 8)
    for images in (ours, theirs):  # black of the padding is the least value, white the most
        assert float(images[:, 0].min()) == pytest.approx(-speed.MEAN[0] / speed.STD[0], abs=1e-5)
        assert float(images[:, 0].max()) == pytest.approx((1 - speed.MEAN[0]) / speed.STD[0], abs=0.1)
