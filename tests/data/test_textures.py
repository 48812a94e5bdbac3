"""The built-in textures are reproducible, distinct from the pretraining classes, and can be learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finepruning.data import load
from finepruning.data.texture_broad import BROAD
from finepruning.data.texture_fields import Pattern
from finepruning.data.texture_tilings import TILINGS
from finepruning.data.textures import DEMO_IMAGES, SIDE, draw, draw_set


@pytest.mark.parametrize(("name", "pattern"), [*BROAD.items(), *TILINGS.items()])
def test_each_pattern_draws_a_varied_image(name: str, pattern: Pattern) -> None:
    for seed in range(3):
        image = draw(pattern, np.random.default_rng(seed))
        assert image.shape == (3, SIDE, SIDE)
        assert image.dtype == np.uint8
        assert image.astype(float).std(axis=(1, 2)).max() > 5, name


def test_the_demonstration_shares_no_class_with_pretraining() -> None:
    assert not set(BROAD) & set(TILINGS)
    assert len(TILINGS) >= 8


def test_an_image_depends_on_seed_class_and_number_alone() -> None:
    few, _ = draw_set(TILINGS, 2, seed=5)
    more, labels = draw_set(TILINGS, 3, seed=5)
    other, _ = draw_set(TILINGS, 2, seed=6)
    assert torch.equal(few[2:4], more[3:5])
    assert not torch.equal(few, other)
    assert labels[:4] == [0, 0, 0, 1]


def test_loading_without_data_gives_the_textures() -> None:
    splits = load(None, image_size=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), seed=0)
    assert splits.classes == tuple(TILINGS)
    for name, count in DEMO_IMAGES.items():
        assert torch.bincount(getattr(splits, name).labels).tolist() == [count] * len(TILINGS)


def test_textures_come_in_the_size_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for split in DEMO_IMAGES:
        monkeypatch.setitem(DEMO_IMAGES, split, 1)
    images, small = (
        next(load(None, image_size=size, mean=(0.5,) * 3, std=(0.25,) * 3, seed=seed).train.batches(3))[0]
        for seed, size in enumerate((64, 32))
    )
    assert small.shape == (3, 3, 32, 32)
    halved = torch.nn.functional.avg_pool2d(images, 2)
    assert (halved - small).abs().mean() < 0.5 * halved.std()
