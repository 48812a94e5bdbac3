"""Measured seconds, kept on disk for one kind of GPU or processor and one set of versions."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path

FORMAT = 1
MAX_ENTRIES = 20000


class TimingTable:
    """Text key -> seconds. Safe to share between threads, and between processes that save to one file.

    A file that is damaged, foreign or written by other versions is ignored, with a warning unless it is
    merely old; the next `save` replaces it.

    Args:
        path: the JSON file, which need not exist; None keeps the table in memory.
        identity: what the times depend on beside their keys, such as the device's name and versions.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, str]) -> None:
        self.path = path
        self.identity = dict(identity)
        self._lock = threading.Lock()
        self._seconds = self._read()
        self._fresh: dict[str, float] = {}

    def get(self, key: str) -> float | None:
        with self._lock:
            return self._seconds.get(key)

    def put(self, key: str, seconds: float) -> None:
        with self._lock:
            self._seconds[key] = self._fresh[key] = seconds

    def save(self) -> None:
        """Write what is new, beside what others have written meanwhile, in one atomic step.

        A folder that cannot be written costs a warning: the times then live as long as the process.
        """
        with self._lock:
            if self.path is None or not self._fresh:
                return
            merged = self._read() | self._fresh
            self._seconds = merged | self._seconds
            content = {
                "format": FORMAT,
                "identity": self.identity,
                "seconds": dict(list(merged.items())[-MAX_ENTRIES:]),
            }
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _replace(self.path, json.dumps(content, indent=0))
            except OSError as error:
                warnings.warn(
                    f"kernel timings cannot be kept in {self.path} ({error.strerror}); set FINEPRUNING_CACHE "
                    "to a folder that can be written",
                    stacklevel=2,
                )
            self._fresh = {}

    def _read(self) -> dict[str, float]:
        if self.path is None:
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT or content["identity"] != self.identity:
                return {}
            seconds = {str(key): float(value) for key, value in content["seconds"].items()}
            if not all(math.isfinite(value) and value > 0 for value in seconds.values()):
                raise ValueError("a time that is not a positive number")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(
                f"{self.path} is ignored, it holds no kernel timings ({type(error).__name__}: {error}); "
                "they are measured again",
                stacklevel=3,
            )
            return {}
        return seconds


def cache_folder() -> Path | None:
    """Where tables lie: $FINEPRUNING_CACHE, or finepruning below $XDG_CACHE_HOME or ~/.cache.

    None where nothing shall be kept: FINEPRUNING_CACHE is "off".
    """
    chosen = os.environ.get("FINEPRUNING_CACHE")
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")  # a relative one is to be ignored, says its specification
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "finepruning"


def cache_path(identity: Mapping[str, str], kind: str, folder: Path) -> Path:
    """The file of an identity's table, in a folder; ``kind`` ("cpu", "cuda") begins its name."""
    digest = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:12]
    device = re.sub(r"[^a-z0-9]+", "_", identity.get("device", kind).lower()).strip("_")
    return folder / f"{kind}_{device}_{digest}.json"


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
