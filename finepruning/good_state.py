"""Earlier states of a run's network: the dense one, and the last that its target approved of."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from finepruning.errors import RunError
from finepruning.loop_state import LoopState, from_tensors, to_tensors
from finepruning.pruning import Surgery
from finepruning.run import DENSE, RunDirectory


class GoodState:
    """One file a round, since a run may be killed between it and the checkpoint that names it."""

    def __init__(
        self, run: RunDirectory, module: nn.Module, layers: Mapping[str, nn.Parameter], device: torch.device
    ) -> None:
        self._run, self._module, self._layers, self._device = run, module, layers, device

    def keep(self, number: int, state: LoopState) -> None:
        """Store the state at the end of round ``number`` (0: of the dense phase)."""
        self._run.write_tensors(_name(number), to_tensors(self._module, self._layers, state), {})

    def forget_before(self, number: int) -> None:
        """Remove the files of rounds before ``number``, once the checkpoint is past them."""
        for earlier in range(number):
            (self._run.path / _name(earlier)).unlink(missing_ok=True)

    def restore(self, number: int) -> LoopState:
        """Load the network of round ``number`` and give the rest of its state.

        Raises:
            RunError: it was not kept.
        """
        stored = self._run.read_tensors(_name(number))
        if stored is None:
            raise RunError(f"{self._run.path / _name(number)} is missing; start a new run")
        state = from_tensors(stored[0], self._module, self._layers, self._device, ema=0.0, averaged=0)
        if state.surgery is None:  # the dense network
            state.surgery = Surgery(self._layers)
        return state


def dense_network(run: RunDirectory, module: nn.Module) -> nn.Module:
    """A copy of ``module`` with the weights that the dense phase ended with."""
    stored = run.read_tensors(DENSE)
    assert stored is not None
    dense = copy.deepcopy(module)
    dense.load_state_dict(stored[0])
    return dense


def _name(number: int) -> str:
    return f"checkpoints/good-{number}.safetensors"
