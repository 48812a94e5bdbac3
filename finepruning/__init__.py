"""Fine-tune and prune CNNs together, then run the sparse result fast on CPU and CUDA."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from finepruning.config import CompressConfig
from finepruning.errors import (
    ArgumentError,
    CaptureError,
    DataError,
    DeviceError,
    FinepruningError,
    HubError,
    InputError,
    ModelFileError,
    RunError,
)

if TYPE_CHECKING:
    from finepruning.compress import compress as compress
    from finepruning.continuation import from_run as from_run
    from finepruning.engine import SparseModel as SparseModel

__version__ = "0.1.0"

# Imported at first use: each of them imports torch.
_LAZY = {"SparseModel": "finepruning.engine", "from_run": "finepruning.continuation"}

__all__ = [
    "ArgumentError",
    "CaptureError",
    "CompressConfig",
    "DataError",
    "DeviceError",
    "FinepruningError",
    "HubError",
    "InputError",
    "ModelFileError",
    "RunError",
    "SparseModel",
    "__version__",
    "compress",
    "from_run",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    if name == "compress":  # the module of that name, which can be called like its function
        return importlib.import_module("finepruning.compress")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "compress"})
