"""Places buffers with known lifetimes into one arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 1024  # floats: a buffer starts on a page


@dataclass
class Slot:
    """A buffer of ``size`` floats, live from operation ``first`` to operation ``last``, both included."""

    size: int
    first: int
    last: int
    offset: int = 0


def place(slots: Sequence[Slot]) -> int:
    """Give every slot an offset so that slots alive together do not overlap; return the floats needed.

    Greedy by size: the largest first, each at the lowest offset that is free during its lifetime.
    """
    placed: list[Slot] = []
    for slot in sorted(slots, key=lambda s: (-s.size, s.first)):
        offset = 0
        for other in placed:  # ascending offsets
            if other.last < slot.first or slot.last < other.first:
                continue
            if offset + slot.size <= other.offset:
                break
            offset = max(offset, _up(other.offset + other.size))
        slot.offset = offset
        placed.append(slot)
        placed.sort(key=lambda s: s.offset)
    return max((slot.offset + slot.size for slot in slots), default=0)


def _up(floats: int) -> int:
    return -(-floats // ALIGNMENT) * ALIGNMENT
