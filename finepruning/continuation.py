"""Starting from a finished run: what a run to another budget takes over, and what it may change."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finepruning.config import TARGETS, CompressConfig
from finepruning.errors import ArgumentError, RunError
from finepruning.phases import Facts
from finepruning.run import DENSE, STATE, RunDirectory

FIXED = ("data", "model", "weights", "image_size", "seed", "dense_epochs")
"""Options that a run takes over as they are: another value would be another network, or other splits."""


@dataclass
class Start:
    """What a run starts from.

    Attributes:
        tensors: of the loop's state, see `finepruning.loop_state.to_tensors`.
        dense: tensors and facts of the dense network. facts: those that the new run begins with.
    """

    tensors: dict[str, Tensor]
    dense: tuple[dict[str, Tensor], dict[str, Any]]
    facts: Facts

    @property
    def kept(self) -> int:
        """Number of weights that the masks keep."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def size(self) -> int:
        """Number of prunable weights."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def masks(self) -> dict[str, Tensor]:
        """Layer name -> mask."""
        return {
            name.removeprefix("mask."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith("mask.")
        }


def from_run(run: str | os.PathLike[str], **changes: Any) -> CompressConfig:
    """Options that take a finished run to another budget with the smallest change of what it chose.

    The run's own options hold, except for these, which ``changes`` may set as well: no search
    (``search="none"``) but its per-layer scales (``allocation="kept"``), a third of its rounds, or one where
    the density rises, and half of its final epochs. There is no dense phase.

    Args:
        run: a finished run directory.
        changes: fields of `CompressConfig`; a target is wanted. Those in `FIXED` stay the run's.

    Raises:
        RunError: there is no finished run. ArgumentError: a field that is fixed or unknown, or a bad value.
    """
    path = Path(run).expanduser().resolve()
    source = _finished(path)
    own = source.config()
    known = {field.name for field in dataclasses.fields(CompressConfig)}
    fixed = _fixed(path, own)
    for name, value in changes.items():
        if name not in known:
            raise ArgumentError(f"{name} is no option; see finepruning.CompressConfig")
        if name in fixed and value != fixed[name]:
            raise ArgumentError(
                f"{name} is {value!r}, but {path} has {fixed[name]!r}, which a run that starts from it takes "
                "over; leave it out, or start a new run"
            )
    targets = {name: changes.get(name) for name in TARGETS}
    if all(value is None for value in targets.values()):
        raise ArgumentError(f"give the target that {path} is to be taken to, such as target_density")
    density = targets["target_density"]
    rising = density is not None and density > (source.report() or {}).get("density", 1.0)
    values: dict[str, Any] = {
        **fixed,
        **targets,
        "search": "none",
        "allocation": "kept",
        "rounds": 1 if rising else math.ceil(own.rounds / 3),
        "final_epochs": math.ceil(own.final_epochs / 2),
        "out": None,
        "from_run": str(path),
    }
    return dataclasses.replace(own, **{**values, **changes})


def check(config: CompressConfig) -> None:
    """Raise unless the resolved ``config`` can start from its ``from_run``.

    Raises:
        RunError: there is no finished run. ArgumentError: an option is not the run's, or there is nothing
            to do.
    """
    assert config.from_run is not None
    path = Path(config.from_run)
    for name, value in _fixed(path, _finished(path).config()).items():
        if getattr(config, name) != value:
            raise ArgumentError(
                f"{name} is {getattr(config, name)!r}, but a run that starts from {path} has {value!r}; make "
                f"the options with finepruning.from_run({str(path)!r}, ...)"
            )
    start = read(path)
    if config.target_density is None:
        if config.search != "none":
            raise ArgumentError(
                f"search is {config.search!r}; a run that starts from another can only search with a "
                "target_density, use 'none'"
            )
        return
    keep = round(config.target_density * start.size)
    if keep == start.kept:
        raise ArgumentError(
            f"target_density is {config.target_density:g}, which {path} has already; give another one"
        )
    if keep > start.kept and config.search != "none":
        raise ArgumentError(
            f"search is {config.search!r}, but from density {start.kept / start.size:.4g} of {path} up to "
            f"{config.target_density:g} all its weights stay and there is nothing to search; use 'none'"
        )


def read(path: Path) -> Start:
    """The end of a finished run, as the beginning of another.

    Raises:
        RunError: it is no finished run, or damaged.
    """
    source = _finished(path)
    report = source.report() or {}
    state, dense = source.read_tensors(STATE), source.read_tensors(DENSE)
    if state is None or dense is None:
        missing = STATE if state is None else DENSE
        raise RunError(f"{path} cannot be started from: it has no {missing}")
    tensors, facts = state
    start = Start(tensors, dense, Facts())
    if not start.masks or not facts.get("theta"):
        raise RunError(f"{path / STATE} is damaged: it holds no masks of a finished run")
    start.facts = Facts(
        theta=facts["theta"],
        previous=facts["theta"],
        dense=facts["dense"],
        from_run={
            "name": path.name,
            "density": start.kept / start.size,
            "accuracy": report.get("accuracy"),
            "seconds": report.get("seconds", {}).get("total"),
        },
    )
    return start


def begin(config: CompressConfig, run: RunDirectory) -> None:
    """Give a new run the state that it starts from.

    Where the density rises, or may do so, the weights to come back get the values they had in the dense
    network: behind the masks there is nothing but zeros after a final phase.
    """
    assert config.from_run is not None
    start = read(Path(config.from_run))
    tensors = start.tensors
    if config.target_density is None or round(config.target_density * start.size) > start.kept:
        tensors = tensors | _revived(start.masks, tensors, start.dense[0])
    run.write_tensors(DENSE, *start.dense)
    run.write_tensors(STATE, tensors, vars(start.facts))  # last: it marks the beginning as complete


def _revived(
    masks: Mapping[str, Tensor], tensors: Mapping[str, Tensor], dense: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    weights = {}
    for layer, mask in masks.items():
        name = f"module.{layer}.weight"
        weights[name] = torch.where(mask, tensors[name], dense[f"{layer}.weight"])
    return weights


def _fixed(path: Path, own: CompressConfig) -> dict[str, Any]:
    """Values of the options in `FIXED`. The run's dense network stands in for the weights it came from,
    which need not exist any more."""
    return {
        "data": own.data,
        "model": own.model,
        "weights": "none" if own.weights == "none" else str(path / DENSE),
        "image_size": own.image_size,
        "seed": own.seed,
        "dense_epochs": 0,
    }


def _finished(path: Path) -> RunDirectory:
    run = RunDirectory.peek(path)
    if run.report() is None:
        raise RunError(f"{path} has not finished; finish it with compress --resume {path}")
    return run
