"""What each layer costs at which density, measured on this machine once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import finepruning
from finepruning.bench.timing import CudaStopwatch, HostStopwatch, Stopwatch
from finepruning.bench.twin import PlanModule
from finepruning.engine.builder import smallest
from finepruning.engine.cpu_choice import DENSE_ABOVE, FEW_COLUMNS
from finepruning.engine.fuse import fuse
from finepruning.engine.model import make_executor
from finepruning.engine.timing_table import TimingTable, cache_folder, cache_path
from finepruning.environment import cpu_name
from finepruning.sparse.graph import to_json
from finepruning.sparse.storage import StoredModel

DENSITIES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.58, 1.0)
"""Where layers are measured; 0 stands for one weight."""

LEAST_SAMPLES, MOST_SAMPLES, SECONDS = 7, 60, 0.4
_NETWORK, _REST, _TORCH = "network", "rest", "torch"

Profile = list[tuple[str, float]]


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of a network on one device, for one batch and one number of threads.

    Attributes:
        names: the prunable layers. sizes: their weights.
        network: of the whole network with every layer at each of `DENSITIES`.
        layers: of each layer likewise; None where the device cannot time layers apart.
        rest: of what is no layer. pytorch: of the dense network in PyTorch.
        switches: which layers run as dense ones above `DENSE_ABOVE`.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    network: tuple[float, ...]
    layers: tuple[tuple[float, ...], ...] | None
    rest: float
    pytorch: float
    switches: tuple[bool, ...]

    @property
    def least(self) -> float:
        """Of the network with one weight a layer."""
        return self.network[0]

    @property
    def dense(self) -> float:
        """Of the dense network: in PyTorch or in the engine with nothing pruned, whichever is faster."""
        return min(self.pytorch, self.network[-1])

    def cost(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Predicted milliseconds for kept weights ``[layers, points]``.

        Layers are interpolated between their measured densities and added up; all of it is scaled to what
        the whole network takes, which runs without a clock between its steps.
        """
        if self.layers is None:
            density: NDArray[np.float64] = counts.sum(0) / sum(self.sizes)
            times: NDArray[np.float64] = np.interp(density, DENSITIES, self.network)
            return times
        total = np.full(counts.shape[1], self.rest)
        for kept, size, row, switch in zip(counts, self.sizes, self.layers, self.switches, strict=True):
            x, y = list(DENSITIES), list(row)
            if switch:
                x[-1:-1] = [DENSE_ABOVE, DENSE_ABOVE + 1e-6]
                y[-1:-1] = [row[-2], row[-1]]
            total += np.interp(kept / size, x, y)
        return total * self._scale

    @property
    def _scale(self) -> float:
        assert self.layers is not None
        sums = [self.rest + sum(times) for times in zip(*self.layers, strict=True)]
        scale: float = statistics.median(
            whole / parts for whole, parts in zip(self.network, sums, strict=True)
        )
        return scale

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        layers = None if self.layers is None else dict(zip(self.names, self.layers, strict=True))
        return {"densities": DENSITIES, "network": self.network, "rest": self.rest, "layers": layers}


def latency_table(
    stored: StoredModel,
    layers: Mapping[str, int],
    batch: int,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
) -> LatencyTable:
    """The table of a network, from the cache or measured now.

    Args:
        stored: the network in any state. layers: size of each prunable layer by name.
        batch: images. device: where it will run, with PyTorch's present number of threads.
        say: is told that measuring takes a while.
    """
    known = TimingTable(*_cache(device))
    prefix = f"{_digest(stored)} batch {batch} threads {torch.get_num_threads()}"
    names = _weights_of(stored, layers)
    columns = (*layers, _REST) if device.type == "cpu" else ()
    keys = [f"{prefix} {density:g} {name}" for density in DENSITIES for name in (_NETWORK, *columns)]
    if any(known.get(key) is None for key in (*keys, f"{prefix} {_TORCH}")):
        say(f"measuring every layer at {len(DENSITIES)} densities, once for this machine and network")
        for density in DENSITIES:
            for name, time in _measure(stored, names, density, batch, device).items():
                known.put(f"{prefix} {density:g} {name}", max(time, 1e-6) / 1e3)
        known.put(f"{prefix} {_TORCH}", _torch_ms(stored, batch, device) / 1e3)
        known.save()

    def ms(name: str) -> tuple[float, ...]:
        return tuple(1e3 * (known.get(f"{prefix} {density:g} {name}") or 0.0) for density in DENSITIES)

    return LatencyTable(
        names=tuple(layers),
        sizes=tuple(layers.values()),
        network=ms(_NETWORK),
        layers=tuple(ms(name) for name in layers) if columns else None,
        rest=statistics.median(ms(_REST)) if columns else 0.0,
        pytorch=1e3 * (known.get(f"{prefix} {_TORCH}") or 0.0),
        switches=tuple(_switches(stored, names[name]) for name in layers),
    )


def network_ms(stored: StoredModel, batch: int, device: torch.device) -> float:
    """Median milliseconds of a call of the whole network, weights and caches warm."""
    executor = _executor(stored, batch, device)
    x = _input(stored, batch, device)
    return _median(lambda: executor(x), device)


def _weights_of(stored: StoredModel, layers: Mapping[str, int]) -> dict[str, list[str]]:
    """Layer -> names of its stored weights: several where it is called with several norms after it."""
    return {
        layer: [n for n in stored.tensors if n == f"{layer}.weight" or n.startswith(f"{layer}.weight@")]
        for layer in layers
    }


def _switches(stored: StoredModel, weights: Sequence[str]) -> bool:
    shapes = [stored.tensors[name].shape for name in weights]
    return all(int(np.prod(shape[1:])) > FEW_COLUMNS for shape in shapes)


def _measure(
    stored: StoredModel,
    weights: Mapping[str, Sequence[str]],
    density: float,
    batch: int,
    device: torch.device,
) -> dict[str, float]:
    """Milliseconds of the network, its layers and the rest, with every layer at ``density``."""
    pruned = _pruned(stored, weights, density)
    executor = _executor(pruned, batch, device)
    x = _input(stored, batch, device)
    result = {_NETWORK: _median(lambda: executor(x), device)}
    profile: Callable[[Tensor], Profile] | None = getattr(executor, "profile", None)
    if device.type != "cpu" or profile is None:
        return result
    layer_of = {
        node.name: layer
        for layer, names in weights.items()
        for node in stored.graph.nodes
        if node.weight in names
    }
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(_samples(result[_NETWORK])):
        together: dict[str, float] = defaultdict(float)
        for name, seconds in profile(x):
            together[layer_of.get(name, _REST)] += 1e3 * seconds
        for name in (*weights, _REST):
            samples[name].append(together[name])
    return result | {name: statistics.median(times) for name, times in samples.items()}


def _pruned(stored: StoredModel, weights: Mapping[str, Sequence[str]], density: float) -> StoredModel:
    """The network with random weights, so many of them, at random places."""
    generator = torch.Generator().manual_seed(0)
    tensors = dict(stored.tensors)
    for name in (name for names in weights.values() for name in names):
        shape = tuple(tensors[name].shape)
        share = max(density, 1 / math.prod(shape))
        draw = torch.rand(shape, generator=generator)
        # Of the size that keeps activations as large as they are, from layer to layer.
        weight = (draw / share - 0.5) * math.sqrt(24 / max(1.0, share * math.prod(shape[1:])))
        weight.mul_(draw < share)
        weight.view(-1)[0] = 0.1  # at least one
        tensors[name] = smallest(weight)
    return replace(stored, tensors=tensors)


def _torch_ms(stored: StoredModel, batch: int, device: torch.device) -> float:
    """Of the dense network in PyTorch, norms folded as the engine does."""
    module = PlanModule(fuse(stored.graph, stored.tensors, batch)).eval().to(device)
    x = _input(stored, batch, device)
    with torch.inference_mode():
        return _median(lambda: module(x), device)


def _executor(stored: StoredModel, batch: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    def plan(images: int) -> Any:
        return fuse(stored.graph, stored.tensors, images)

    return make_executor(plan(batch), device, plan)


def _input(stored: StoredModel, batch: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *stored.graph.input_shape, generator=generator).to(device)


def _median(call: Callable[[], Any], device: torch.device) -> float:
    stopwatch: Stopwatch = CudaStopwatch(device) if device.type == "cuda" else HostStopwatch()
    call()
    first = stopwatch.milliseconds(call)
    return statistics.median(stopwatch.milliseconds(call) for _ in range(_samples(first)))


def _samples(ms: float) -> int:
    return max(LEAST_SAMPLES, min(MOST_SAMPLES, round(1e3 * SECONDS / max(ms, 1e-3))))


def _digest(stored: StoredModel) -> str:
    shapes = {name: list(tensor.shape) for name, tensor in stored.tensors.items()}
    text = json.dumps([to_json(stored.graph), shapes, DENSITIES], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cache(device: torch.device) -> tuple[Path | None, dict[str, str]]:
    """File (None: not kept) and identity of the times of this machine and these versions."""
    from finepruning import _core

    cuda = device.type == "cuda"
    identity = {
        "device": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "instructions": "" if cuda else str(_core.isa()),
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "finepruning": finepruning.__version__,
    }
    folder = cache_folder()
    return None if folder is None else cache_path(identity, f"latency_{device.type}", folder), identity
