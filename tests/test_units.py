from __future__ import annotations

import pytest

from finepruning.errors import ArgumentError
from finepruning.units import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("40000", 40000),
        (40000, 40000),
        ("500kB", 500_000),
        ("2MiB", 2 << 20),
        ("1.5 mb", 1_500_000),
        ("0.3k", 300),
        (".5GiB", 1 << 29),
        ("7b", 7),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-3", "5 TB", "1e6", "5 kk", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ArgumentError, match="is no size"):
        parse_bytes(text)
