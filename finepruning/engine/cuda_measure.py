"""Measures layers and networks on the GPU that will run them, once for each GPU and set of versions.

A layer is timed as a plan of its own: a CUDA graph that overwrites the L2 cache and then runs the layer,
minus one that only overwrites the cache. Weights are therefore cold, as they are in a network whose weights
exceed the cache, and no launch of a graph is counted. Times are kept in a `TimingTable`: dense ones by the
layer's signature, others by signature and density (two digits).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

import finepruning
from finepruning.engine import cuda_choice, cuda_roofline, cuda_weights
from finepruning.engine.cuda_choice import Choice, Layer, Method
from finepruning.engine.cuda_graph import Recording, replay_seconds
from finepruning.engine.cuda_program import Program, lay_out
from finepruning.engine.plan import Plan, Step
from finepruning.engine.timing_table import TimingTable, cache_folder, cache_path
from finepruning.sparse.csr import CSR

# A method that the model puts this many times behind the best is not worth measuring.
HOPELESS = 3.0
# A network slower than the dense one by more than this share is planned again with more dense layers.
TOLERANCE = cuda_choice.SLACK
ATTEMPTS = 3
LEAST_SECONDS = 1e-7

Order = Literal["contiguous", "channels_last"]


@dataclass
class Planner:
    """Chooses the method of every layer of a plan.

    Attributes:
        device: where the plan will run. gpu: its limits. dense_order: memory order cuDNN reads.
        table: what has been measured, or None to go by the model alone.
        time: from a program to its median seconds, hot caches; None where nothing can be timed.
        time_cold: likewise with cold caches.
    """

    device: torch.device
    gpu: cuda_roofline.Gpu
    dense_order: Order
    table: TimingTable | None = None
    time: Callable[[Program], float] | None = None
    time_cold: Callable[[Program], float] | None = None

    def choices(self, plan: Plan, candidates: Sequence[Layer]) -> dict[str, Choice]:
        """The choices for ``plan``; never slower than dense by what was measured."""
        # Packing takes seconds for large layers: keep what measuring packs until the plan is built.
        self._kept: list[cuda_weights.Packed] = []
        steps = {step.name: step for step in plan.steps}
        times = {layer.name: self._layer(plan, steps[layer.name], layer) for layer in candidates}
        chosen = cuda_choice.choose(candidates, times)
        if self.table is not None:
            chosen = self._guarded(plan, candidates, times, chosen)
            self.table.save()
        return chosen

    def _layer(self, plan: Plan, step: Step, layer: Layer) -> dict[str, float]:
        """Seconds of each method: measured where that can be, else modelled."""
        times = cuda_roofline.seconds(layer, self.gpu)
        if self.table is None:
            return times
        best = min(times.values())
        modelled = times["dense"]
        times["dense"] = self._measured(plan, step, layer, "dense", modelled)
        if layer.fusible and self.dense_order == "channels_last":
            ours = self._measured(plan, step, layer, "dense", modelled, fused=True)
            if ours < times["dense"]:
                times["library"], times["dense"] = times["dense"], ours
        if layer.nnz > cuda_choice.MAX_DENSITY * layer.rows * layer.columns:
            return times
        fused = "library" in times
        for method in ("sparse", "expand"):
            if method in times and times[method] <= HOPELESS * best:
                times[method] = self._measured(
                    plan, step, layer, method, times[method], fused=fused and method == "expand"
                )
        return times

    def _measured(
        self, plan: Plan, step: Step, layer: Layer, method: Method, modelled: float, fused: bool = False
    ) -> float:
        assert self.table is not None
        key = layer_key(layer, method, fused)
        known = self.table.get(key)
        if known is not None:
            return known
        if self.time_cold is None:
            return modelled
        try:
            program = self._build(alone(plan, step, method, self.device), step.name, method, fused)
            seconds = max(self.time_cold(program), LEAST_SECONDS)
        except torch.OutOfMemoryError:
            return modelled
        self.table.put(key, seconds)
        return seconds

    def _build(self, plan: Plan, name: str, method: Method, fused: bool) -> Program:
        choices = {name: Choice(method, {}, fused=fused)}
        program = Program(plan, choices, lay_out(plan, choices, self.dense_order), self.device)
        self._kept += program.packed
        return program

    def _guarded(
        self,
        plan: Plan,
        candidates: Sequence[Layer],
        times: Mapping[str, Mapping[str, float]],
        chosen: dict[str, Choice],
    ) -> dict[str, Choice]:
        """``chosen``, or more dense layers where the whole network measures slower than the dense one."""
        spare, reason = 0.0, ""
        for _ in range(ATTEMPTS):
            if all(choice.method == "dense" for choice in chosen.values()):
                return chosen
            ours, dense = self._network(plan, candidates, chosen), self._network(plan, candidates, None)
            if ours is None or dense is None or ours <= dense * (1 + TOLERANCE):
                return chosen
            reason = f"the network takes {dense * 1e6:.0f} us dense, {ours * 1e6:.0f} us with sparse weights"
            spare += 1.2 * (ours - dense)
            chosen = cuda_choice.choose(candidates, times, spare)
        return cuda_choice.all_dense(candidates, chosen, reason)

    def _network(
        self, plan: Plan, candidates: Sequence[Layer], chosen: Mapping[str, Choice] | None
    ) -> float | None:
        """Seconds of the whole network, all dense if ``chosen`` is None; None if it cannot be measured."""
        assert self.table is not None
        key = network_key(plan, candidates, chosen)
        known = self.table.get(key)
        if known is not None or self.time is None:
            return known
        if chosen is None:
            plan = replace(plan, steps=tuple(_densely(step, plan, self.device) for step in plan.steps))
        try:
            choices = chosen or {}
            seconds = self.time(Program(plan, choices, lay_out(plan, choices, self.dense_order), self.device))
        except torch.OutOfMemoryError:
            return None
        self.table.put(key, seconds)
        return seconds


def planner(device: torch.device, dense_order: Order, *, measure: bool) -> Planner:
    """The planner of a device; it measures on CUDA devices unless told not to."""
    gpu = cuda_roofline.Gpu.of(device)
    if device.type != "cuda" or not measure:
        return Planner(device, gpu, dense_order)
    return Planner(
        device,
        gpu,
        dense_order,
        _table(device),
        lambda program: replay_seconds(device, Recording(device, program.run).replay),
        lambda program: _cold_seconds(device, program, 2 * gpu.l2_bytes),
    )


_tables: dict[str, TimingTable] = {}


def _table(device: torch.device) -> TimingTable:
    """The table of a device, read once in a process."""
    import triton

    identity = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "triton": triton.__version__,
        "finepruning": finepruning.__version__,
    }
    folder = cache_folder()
    path = None if folder is None else cache_path(identity, "cuda", folder)
    if str(path) not in _tables:  # executors are built one at a time
        _tables[str(path)] = TimingTable(path, identity)
    return _tables[str(path)]


def _cold_seconds(device: torch.device, program: Program, flush_bytes: int) -> float:
    flush = torch.empty(flush_bytes, dtype=torch.uint8, device=device)

    def both() -> None:
        flush.zero_()
        program.run()

    return replay_seconds(device, Recording(device, both).replay) - _flush_seconds(device, flush_bytes)


@functools.cache
def _flush_seconds(device: torch.device, flush_bytes: int) -> float:
    flush = torch.empty(flush_bytes, dtype=torch.uint8, device=device)

    def only_flush() -> None:
        flush.zero_()

    return replay_seconds(device, Recording(device, only_flush).replay)


def layer_key(layer: Layer, method: Method, fused: bool = False) -> str:
    """What a layer's time by ``method`` depends on, as text."""
    how = f"{method} fused" if fused else method
    if method == "dense":
        return f"{how} {layer.signature}"
    return f"{how} {layer.nnz / (layer.rows * layer.columns):.2g} {layer.signature}"


def network_key(plan: Plan, candidates: Sequence[Layer], chosen: Mapping[str, Choice] | None) -> str:
    """What a network's time depends on: its steps and the methods of its layers."""
    parts = [f"{step.op} {plan.values[step.output].shape} {step.activation}" for step in plan.steps]
    for layer in candidates:
        choice = Choice("dense", {}) if chosen is None else chosen[layer.name]
        parts.append(layer_key(layer, choice.method, choice.fused and choice.method != "sparse"))
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return f"network {digest} {'dense' if chosen is None else 'chosen'}"


def alone(plan: Plan, step: Step, method: Method, device: torch.device) -> Plan:
    """One layer as a plan of its own: no residual; random dense weights for "dense"."""
    if method == "dense":
        step = _densely(step, plan, device)
    source, result = step.inputs[0], step.output
    values = {name: plan.values[name] for name in (source, result)}
    return Plan((replace(step, residual=None),), values, source, result)


def _densely(step: Step, plan: Plan, device: torch.device) -> Step:
    """The step with random dense weights: only their time matters."""
    if not isinstance(step.weight, CSR):
        return step
    weight = torch.empty(step.weight.shape, dtype=plan.values[step.output].dtype, device=device)
    return replace(step, weight=weight.normal_(std=0.01))
