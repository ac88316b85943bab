"""The feature fusion module against its equation, and what it carries where."""

import torch

from afpkd.fusion import FeatureFusion, FusionLevel, LevelAdapters


def test_fusion_carries_the_deepest_level_to_every_shallower_one() -> None:
    torch.manual_seed(0)
    fusion = FeatureFusion([8, 16, 32], [6, 12, 24], [(8, 8), (4, 4), (1, 1)], local_branch=True).eval()
    maps = [torch.randn(2, 8, 16, 16), torch.randn(2, 16, 4, 4), torch.randn(2, 32, 1, 1)]
    fused = fusion(maps)
    assert [tuple(f.shape) for f in fused] == [(2, 6, 8, 8), (2, 12, 4, 4), (2, 24, 1, 1)]
    deeper = fusion([*maps[:2], maps[2] + 1])
    shallower = fusion([maps[0] + 1, *maps[1:]])
    assert all(not torch.equal(a, b) for a, b in zip(fused, deeper, strict=True))
    assert [torch.equal(a, b) for a, b in zip(fused, shallower, strict=True)] == [False, True, True]
    adapted = LevelAdapters([8, 16, 32], [6, 12, 24], [(8, 8), (4, 4), (1, 1)])(maps)
    assert [each.shape for each in adapted] == [each.shape for each in fused]


def test_a_fusion_level_is_an_attention_weighted_sum_of_both_levels_then_its_local_branch() -> None:
    torch.manual_seed(0)
    level = FeatureFusion([4, 6], [5, 5], [(4, 4), (2, 2)], local_branch=True).double().eval().levels[0]
    assert isinstance(level, FusionLevel)
    assert level.attention is not None
    assert level.local is not None
    feature, deeper = (torch.randn(2, c, s, s, dtype=torch.float64) for c, s in ((4, 4), (6, 2)))
    x, y = level.project(feature), deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    maps = 1 / (1 + torch.exp(-level.attention(torch.cat([x, y], 1))))
    mixed = maps[:, :1] * x + maps[:, 1:] * y
    output, passed_on = level(feature, deeper)
    torch.testing.assert_close(passed_on, mixed + level.local(mixed))
    torch.testing.assert_close(output, level.output(passed_on))
