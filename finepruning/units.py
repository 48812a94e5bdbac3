"""Sizes as people write them."""

from __future__ import annotations

import re

from finepruning.errors import ArgumentError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([kmg]i?)?b?\s*", re.IGNORECASE)


def parse_bytes(text: str | int) -> int:
    """Bytes of a size such as ``500kB``, ``2MiB`` or ``40000``, rounded down.

    k, M and G are powers of 1000, Ki, Mi and Gi of 1024; the case does not matter.

    Raises:
        ArgumentError: it is no size.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None:
        raise ArgumentError(f"{text!r} is no size; write bytes, or for example 500kB or 2MiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()] + 1e-6)
