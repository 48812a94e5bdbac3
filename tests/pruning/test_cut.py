from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finepruning.pruning import exact_cut, scaled_magnitudes


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    fraction=st.floats(0, 1),
    levels=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
def test_keeps_exactly_as_many_and_the_largest(
    sizes: list[int], fraction: float, levels: int, seed: int
) -> None:
    """Few distinct levels make many ties."""
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randint(levels, (size,), generator=generator).float() for size in sizes]
    keep = max(len(sizes), round(fraction * sum(sizes)))
    masks = exact_cut(scores, keep)
    assert sum(int(mask.sum()) for mask in masks) == keep
    assert all(mask.any() for mask in masks)
    for score, mask in zip(scores, masks, strict=True):
        if not mask.all():
            assert score[mask].max() >= score[~mask].max()
    # Beyond the one weight that every layer keeps, no dropped score is above a kept one.
    kept = torch.cat([s[m].sort().values[:-1] for s, m in zip(scores, masks, strict=True)])
    dropped = torch.cat([s[~m] for s, m in zip(scores, masks, strict=True)])
    if len(kept) and len(dropped):
        assert kept.min() >= dropped.max()


def test_shapes_follow_the_scores_whatever_their_memory_format() -> None:
    score = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    (mask,) = exact_cut([score.abs()], 30)
    assert mask.shape == score.shape
    assert torch.equal(mask, score.abs() >= score.abs()[mask].min())


def test_scores_are_left_as_they_were() -> None:
    score = torch.rand(10)
    before = score.clone()
    exact_cut([score], 3)
    assert torch.equal(score, before)


@pytest.mark.parametrize("keep", [1, 21])
def test_impossible_counts_are_refused(keep: int) -> None:
    with pytest.raises(ValueError, match="cannot keep"):
        exact_cut([torch.rand(10), torch.rand(10)], keep)


def test_theta_scales_each_layer() -> None:
    scores = scaled_magnitudes([torch.tensor([-2.0]), torch.tensor([3.0])], [0.0, math.log(2.0)])
    torch.testing.assert_close(torch.cat(scores), torch.tensor([2.0, 6.0]))
