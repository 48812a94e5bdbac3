"""Stratified, seeded splits in which identical images stay together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch

from finepruning.data.folders import some
from finepruning.errors import DataError

TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.1


def carve(
    labels: Sequence[int],
    groups: Sequence[Hashable],
    fractions: dict[str, float],
    classes: Sequence[str],
    seed: int,
    name: str,
) -> list[str]:
    """Assign each image to one of the splits in ``fractions`` or to "train".

    Args:
        labels: class of each image.
        groups: images of equal value here (identical files) go to the same split.
        fractions: share of each class that a split takes, at least one group.
        classes: class names, for messages.
        seed: fixes the choice.
        name: the data set, for messages.

    Raises:
        DataError: a class has fewer different images than there are splits to fill.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for image, group in enumerate(groups):
        members[group].append(image)
    of_class: dict[int, list[Hashable]] = defaultdict(list)
    for group, images in members.items():
        of_class[labels[images[0]]].append(group)
    needed = len(fractions) + 1
    small = [
        f"{classes[label]} ({len(of_class[label])})"
        for label in range(len(classes))
        if len(of_class[label]) < needed
    ]
    if small:
        raise DataError(
            f"{name}: too few different images to split into {', '.join(['train', *fractions])}: "
            f"{some(small)}; each needs at least {needed} (add images or remove the class)"
        )
    splits = ["train"] * len(labels)
    for label, own in of_class.items():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + label)
        queue = [own[position] for position in torch.randperm(len(own), generator=generator).tolist()]
        total = sum(len(members[group]) for group in own)
        for later, (split, fraction) in enumerate(fractions.items(), start=1):
            taken = 0
            while taken < max(1, round(fraction * total)) and (taken == 0 or len(queue) > needed - later):
                group = queue.pop()
                taken += len(members[group])
                for image in members[group]:
                    splits[image] = split
    return splits
