"""The run directory: what a compression run leaves on disk, safe against being killed at any moment."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from finepruning.config import CompressConfig
from finepruning.errors import ArgumentError, RunError
from finepruning.files import replace_file
from finepruning.search import Trial

CONFIG, ENVIRONMENT, DATA, TRIALS, REPORT, LOCK = (
    "config.yaml",
    "environment.json",
    "data.json",
    "trials.jsonl",
    "report.json",
    "lock",
)
STATE, DENSE = "checkpoints/state.safetensors", "checkpoints/dense.safetensors"


class RunDirectory:
    """One run on disk, held by one process at a time.

    Files are replaced in one step (temporary name, fsync, rename); trials are appended, one JSON object a
    line. Release with `close` or a ``with`` block.
    """

    def __init__(self, path: Path) -> None:
        """Lock an existing run directory; see `create` and `open`."""
        self.path = path
        self._lock: IO[str] | None = None
        try:
            self._lock = (path / LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise RunError(
                f"{path} is in use by another process; wait until it ends, or give another --out"
            ) from None
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}; choose another --out") from None

    @classmethod
    def create(cls, config: CompressConfig, environment: Mapping[str, Any]) -> RunDirectory:
        """Make the directory ``config.out`` and write what is known at the start.

        Raises:
            RunError: it cannot be written, holds something already, or is in use.
        """
        assert config.out is not None
        path = Path(config.out)
        check_new(path)
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path} cannot be created: {error.strerror}; choose another --out") from None
        run = cls(path)
        try:
            run.write_json(ENVIRONMENT, environment)
            run.write_config(config)
            run._link_latest()
        except RunError as error:  # nothing to continue yet
            run.close()
            with suppress(OSError):
                for name in (LOCK, ENVIRONMENT, CONFIG):
                    (path / name).unlink(missing_ok=True)
                (path / "checkpoints").rmdir()
            raise RunError(f"{path} cannot be written: {_reason(error)}; choose another --out") from error
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Take up an existing run.

        Raises:
            RunError: there is no run in this directory, or another process holds it.
        """
        if not path.is_dir():
            raise RunError(f"{path} is not a run directory: there is no such folder")
        if not (path / CONFIG).is_file():
            raise RunError(f"{path} is not a run directory: it has no {CONFIG}")
        return cls(path.resolve())

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def config(self) -> CompressConfig:
        """The resolved options of this run."""
        path = self.path / CONFIG
        try:
            values = yaml.safe_load(path.read_text())
            known = {field.name for field in fields(CompressConfig)}
            if not isinstance(values, dict):
                raise RunError(f"{path} does not hold the options of a run")
            if unknown := sorted(map(str, set(values) - known)):
                raise RunError(
                    f"{path} holds options of another version of finepruning: {', '.join(unknown)}"
                )
            return CompressConfig(**values)
        except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
            raise RunError(f"{path} cannot be read: {error}") from None

    def write_config(self, config: CompressConfig) -> None:
        self.write_text(CONFIG, yaml.safe_dump(asdict(config), sort_keys=False))

    def environment(self) -> dict[str, Any]:
        return self._read_json(ENVIRONMENT)

    def data(self) -> dict[str, Any] | None:
        """What the run was started on: ``classes`` and ``images`` a split; None where it was not noted."""
        return self._read_json(DATA) if (self.path / DATA).exists() else None

    def report(self) -> dict[str, Any] | None:
        """The finished run's report, None before."""
        return self._read_json(REPORT) if (self.path / REPORT).exists() else None

    def append_trial(self, trial: Trial) -> None:
        with self.writing(), (self.path / TRIALS).open("a") as file:
            file.write(json.dumps(trial.to_json()) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def trials(self) -> list[Trial]:
        """All trials so far. A last line that was cut short by a kill is removed from the file."""
        path = self.path / TRIALS
        if not path.exists():
            return []
        content = path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(complete))
        try:
            return [Trial.from_json(json.loads(line)) for line in complete.splitlines()]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path} is damaged: {error}") from None

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Store tensors with JSON-like ``facts`` beside them, as one safetensors file."""
        plain = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
        self._replace(name, save(plain, metadata={"facts": json.dumps(facts)}))

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `write_tensors` stored, None where there is no such file."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["facts"])
                return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunError(f"{path} is damaged: {error}") from None

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def write_text(self, name: str, content: str) -> None:
        self._replace(name, content.encode())

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text())
            return content
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / name} cannot be read: {error}") from None

    def _replace(self, name: str, content: bytes) -> None:
        with self.writing():
            replace_file(self.path / name, content)

    @contextmanager
    def writing(self, way_out: str = "") -> Iterator[None]:
        """Turns failures to write into a `RunError` that names the directory and the way out.

        Without a ``way_out`` it is to resume the run.
        """
        try:
            yield
        except (OSError, ArgumentError) as error:
            if isinstance(error, BrokenPipeError) or not isinstance(error.__cause__ or error, OSError):
                raise
            resume = f"continue with --resume {self.path} when it can be written again"
            raise RunError(
                f"{self.path} cannot be written: {_reason(error)}; what was saved before is intact, "
                f"{way_out or resume}"
            ) from error

    def _link_latest(self) -> None:
        """Let ``runs/latest`` point here, if this run lies in a folder called runs."""
        if self.path.parent.name != "runs":
            return
        temporary = self.path.parent / f".latest-{os.getpid()}"
        with self.writing():
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(self.path.name)
            temporary.replace(self.path.parent / "latest")


def _reason(error: BaseException) -> str:
    """The operating system's words for what lies behind ``error``."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (isinstance(error, OSError) and error.strerror) or str(error)


def check_new(path: Path) -> None:
    """Raise RunError unless a run directory can be made at ``path``."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; choose another --out")
    if path.is_dir() and not _never_began(path):
        hint = f"continue it with --resume {path}, or " if (path / CONFIG).exists() else ""
        raise RunError(f"{path} is not empty; {hint}choose another --out")
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise RunError(f"{path} cannot be created: {parent} is no folder; choose another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RunError(f"{path} cannot be written: no permission in {parent}; choose another --out")


def _never_began(path: Path) -> bool:
    """Whether a folder is empty, or holds what a kill in `RunDirectory.create` leaves before it has written
    the configuration: there is no run yet that could be resumed."""
    left = {"checkpoints", LOCK, ENVIRONMENT, f"{ENVIRONMENT}.tmp", f"{CONFIG}.tmp"}
    names = {entry.name for entry in path.iterdir()}
    return names <= left and not any((path / "checkpoints").glob("*")) and names != {LOCK}


def default_path(model: str) -> Path:
    """``runs/<model>-<time>``, not yet in use."""
    stem = Path("runs") / f"{model.replace(':', '-').replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = stem, 2
    while path.exists():
        path, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return path
