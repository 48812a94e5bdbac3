from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from finepruning.pruning import counts_of, exact_cut, most_within


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    fraction=st.floats(0, 1.1),
    levels=st.integers(1, 1000),
    seed=st.integers(0, 1000),
)
def test_one_more_weight_would_cost_too_much(
    sizes: list[int], fraction: float, levels: int, seed: int
) -> None:
    """Layers differ in what a weight costs, so that it matters which one the cut takes next."""
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randint(levels, (size,), generator=generator).float() / 7 for size in sizes]
    price = np.arange(1, len(sizes) + 1, dtype=float)

    def cost(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return price @ counts  # type: ignore[no-any-return]

    limit = max(price.sum(), fraction * (price @ np.array(sizes)))
    keep = most_within(scores, cost, limit)
    assert price @ counts_of(exact_cut(scores, keep)) <= limit
    if keep < sum(sizes):
        assert price @ counts_of(exact_cut(scores, keep + 1)) > limit


def test_where_nothing_is_cheap_enough_one_weight_a_layer_stays() -> None:
    scores = [torch.rand(5), torch.rand(7)]
    assert most_within(scores, lambda counts: counts.sum(0).astype(float), 1.0) == 2


def test_a_layer_that_is_cheaper_dense_than_nearly_dense_is_kept_dense() -> None:
    scores = [torch.arange(100.0)]

    def cost(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.where(counts[0] == 100, 50.0, counts[0])

    assert most_within(scores, cost, 60.0) == 100
    assert most_within(scores, cost, 49.0) == 49


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_order_of_equal_scores_is_that_of_the_cut(layout: torch.memory_format) -> None:
    scores = [torch.ones(2, 3, 4, 4).to(memory_format=layout), torch.ones(2, 3, 4, 4)]
    expected = 2 + 3 * 10  # the first layer's are cheaper, and come first

    def cost(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return counts[0] * 1.0 + counts[1] * 1000.0

    keep = most_within(scores, cost, 1000.0 + expected)
    assert counts_of(exact_cut(scores, keep)).tolist() == [expected, 1]
