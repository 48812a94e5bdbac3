"""Running out of memory, as one clear error."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from finepruning.errors import DeviceError

# What PyTorch raises as a plain RuntimeError: its CPU allocator's failure, and a data loader's process that
# the system killed, which it does to the largest when memory ends.
_MESSAGES = re.compile(r"can't allocate memory|std::bad_alloc|DataLoader worker .* killed by signal: Killed")


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory, of the host or of a device, did not suffice."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _MESSAGES.search(str(error)) is not None


@contextmanager
def memory_errors(way_out: str) -> Iterator[None]:
    """Turn such errors into a `DeviceError` that ends in ``way_out``."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DeviceError(f"out of memory ({reason[:200]}); {way_out}") from error
