"""The run directory of several processes: rank 0 has it, the others hear from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from finepruning.config import CompressConfig
from finepruning.run import RunDirectory
from finepruning.search import Trial
from finepruning.training.distributed import Ranks


def create_run(ranks: Ranks, config: CompressConfig, environment: Mapping[str, Any]) -> RunDirectory:
    """As `RunDirectory.create`; its errors are raised on all ranks."""
    if ranks.count == 1:
        return RunDirectory.create(config, environment)
    own: list[RunDirectory] = []

    def create() -> Path:
        own.append(RunDirectory.create(config, environment))
        return own[0].path

    path = ranks.share(create)
    return RankedRun(path, ranks, own[0] if own else None)


def open_run(ranks: Ranks, path: Path) -> RunDirectory:
    """As `RunDirectory.open`; its errors are raised on all ranks."""
    if ranks.count == 1:
        return RunDirectory.open(path)
    own: list[RunDirectory] = []

    def open_() -> Path:
        own.append(RunDirectory.open(path))
        return own[0].path

    path = ranks.share(open_)
    return RankedRun(path, ranks, own[0] if own else None)


class RankedRun(RunDirectory):
    """Reads give every rank what rank 0 reads, writes happen on rank 0; all ranks call the same methods."""

    def __init__(self, path: Path, ranks: Ranks, own: RunDirectory | None) -> None:
        self.path = path
        self._ranks = ranks
        self._own = own

    @property
    def _held(self) -> RunDirectory:
        assert self._own is not None
        return self._own

    def close(self) -> None:
        if self._own is not None:
            self._own.close()

    def config(self) -> CompressConfig:
        return self._ranks.share(lambda: self._held.config())

    def environment(self) -> dict[str, Any]:
        return self._ranks.share(lambda: self._held.environment())

    def data(self) -> dict[str, Any] | None:
        return self._ranks.share(lambda: self._held.data())

    def report(self) -> dict[str, Any] | None:
        return self._ranks.share(lambda: self._held.report())

    def trials(self) -> list[Trial]:
        return self._ranks.share(lambda: self._held.trials())

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self._ranks.share(lambda: self._held.read_tensors(name))

    def append_trial(self, trial: Trial) -> None:
        if self._own is not None:
            self._own.append_trial(trial)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        if self._own is not None:
            self._own.write_tensors(name, tensors, facts)

    def write_text(self, name: str, content: str) -> None:
        if self._own is not None:
            self._own.write_text(name, content)

    def on_main(self) -> RunDirectory:
        return self._held
