"""Fine-tune and prune CNNs together, then run the sparse result fast on CPU and CUDA."""

from finepruning.errors import (
    ArgumentError,
    CaptureError,
    DataError,
    DeviceError,
    FinepruningError,
    InputError,
    ModelFileError,
    RunError,
)

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "CaptureError",
    "DataError",
    "DeviceError",
    "FinepruningError",
    "InputError",
    "ModelFileError",
    "RunError",
    "__version__",
]
