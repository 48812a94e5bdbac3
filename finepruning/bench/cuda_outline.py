"""Networks of real shapes without real weights, for what depends on sizes alone: memory and models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from finepruning import models
from finepruning.bench.networks import FIRST_CONVOLUTION_DENSITY
from finepruning.engine import cuda_choice, cuda_program, cuda_roofline
from finepruning.engine.capture import capture
from finepruning.engine.cuda_choice import Choice
from finepruning.engine.cuda_program import Layout
from finepruning.engine.fuse import fuse
from finepruning.engine.plan import Plan, Step
from finepruning.sparse.csr import CSR
from finepruning.sparse.graph import Graph
from finepruning.sparse.shapes import Stored


class Outline:
    """A network by name whose weights have places for values but no values.

    Rows have binomial lengths, as those of random weights cut at one threshold. The first convolution keeps
    half, like `networks.prune_random`.
    """

    def __init__(self, name: str) -> None:
        with torch.device("meta"):
            network = models.create(name, 1000, "none", 0)
        self.image_size = network.image_size
        module = network.module.to_empty(device="cpu").eval()
        with torch.no_grad():
            for child in module.modules():
                for parameter in child.parameters(recurse=False):
                    # Zeros make empty CSR weights; norms must stay such that they can be folded.
                    parameter.data = (torch.ones if parameter.dim() == 1 else torch.zeros)(parameter.shape)
                for buffer in child.buffers(recurse=False):
                    buffer.fill_(1)
        self._graph, self._tensors = _captured(module, self.image_size)

    def plan(self, density: float, batch: int, dtype: torch.dtype) -> Plan:
        """Its plan at ``density``."""
        generator = torch.Generator().manual_seed(0)
        tensors = dict(self._tensors)
        share = max(density, FIRST_CONVOLUTION_DENSITY)
        for node in self._graph.nodes:
            weight = tensors.get(node.weight) if node.weight else None
            if isinstance(weight, CSR):
                tensors[node.weight] = _filled(weight, share, dtype, generator)
                share = density
        return fuse(self._graph, tensors, batch, dtype)


def _captured(module: nn.Module, size: int) -> tuple[Graph, dict[str, Stored]]:
    return capture(module, (3, size, size))


def _filled(weight: CSR, density: float, dtype: torch.dtype, generator: torch.Generator) -> CSR:
    trials = torch.full((weight.rows,), float(weight.columns))
    lengths = torch.binomial(trials, torch.full_like(trials, density), generator=generator)
    rowptr = torch.zeros(weight.rows + 1, dtype=torch.int32)
    rowptr[1:] = lengths.cumsum(0)
    nnz = int(rowptr[-1])
    return CSR(torch.empty(nnz, dtype=dtype), torch.empty(nnz, dtype=weight.col.dtype), rowptr, weight.shape)


def modelled(plan: Plan, *, tf32: bool = False) -> tuple[dict[str, Choice], float, float]:
    """(choices, their seconds, seconds of the dense network) by the model of an H200."""
    layers = cuda_choice.layers(plan, tf32_convolution=tf32, tf32_product=tf32)
    times = {layer.name: cuda_roofline.seconds(layer, cuda_roofline.H200) for layer in layers}
    chosen = cuda_choice.choose(layers, times)
    ours = sum(times[name][choice.method] for name, choice in chosen.items())
    return chosen, ours, sum(times[layer.name]["dense"] for layer in layers)


def shares(plan: Plan, choices: Mapping[str, Choice]) -> tuple[float, float]:
    """Bytes of weights, and of weights, activations and scratch, as shares of the dense network's.

    Exact for what a plan allocates; workspaces of cuDNN and cuBLAS come on top on both sides.
    """
    kind = plan.values[plan.input].dtype
    order = "channels_last" if kind.itemsize == 2 else "contiguous"
    sparse, dense = (cuda_program.lay_out(plan, chosen, order) for chosen in (choices, {}))
    return sparse.weight_bytes / dense.weight_bytes, _peak(sparse) / _peak(dense)


def _peak(layout: Layout) -> int:
    return layout.weight_bytes + layout.arena_bytes + layout.input_bytes


def weighted(plan: Plan) -> list[Step]:
    """The steps with pruned weights."""
    return [step for step in plan.steps if isinstance(step.weight, CSR)]
