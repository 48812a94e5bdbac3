"""Every error this package raises on purpose.

Each message names the input at fault, the rule it breaks and the way out. The command line prints the
message alone and exits with code 2; callers can catch `FinepruningError` for all of them.
"""


class FinepruningError(Exception):
    """Base class of all errors raised by finepruning."""


class ArgumentError(FinepruningError, ValueError):
    """An option, argument or configuration value is outside what is allowed."""


class InputError(ArgumentError):
    """A tensor given to a model has the wrong rank, shape, dtype or device."""


class DataError(FinepruningError):
    """A data set cannot be used: missing, empty, too small, or holding files that are not images."""


class ModelFileError(FinepruningError):
    """A model or weights file is truncated, altered, foreign or inconsistent."""


class HubError(FinepruningError):
    """The Hugging Face Hub cannot be reached, or refuses a model."""


class CaptureError(FinepruningError):
    """A network cannot be expressed as a graph of known operations."""


class DeviceError(FinepruningError):
    """The requested device does not exist or cannot run the request."""


class RunError(FinepruningError):
    """A run directory cannot be written, read or resumed."""


class JobError(FinepruningError):
    """Another process of a job of several has ended, or the processes do not fit the request."""


class TrainingError(FinepruningError):
    """Training cannot go on, for instance because the loss is no longer a number."""
