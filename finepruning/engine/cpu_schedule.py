"""How a batch goes through a plan on the CPU: some images at a time, or all of them step by step.

A batch that runs step by step leaves maps that no cache holds. So the first steps may run as a loop over
chunks of images, whose maps still lie in the cache when the next step reads them; later steps, with small
maps and many weights, run once for the whole batch. Where the loop ends is decided by modelled times.
A choice by measurement would differ from process to process, and with it the last digits of the output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from finepruning import _core
from finepruning.engine.cpu_tape import lane_blocks
from finepruning.engine.cpu_weights import csr_arrays, geometry, reads_every_nth, unstrided
from finepruning.engine.plan import Plan, Step
from finepruning.sparse.csr import CSR

_LOOPED = {"conv2d", "max_pool2d", "avg_pool2d", "add", "mul", "identity", "concat"}
# Of the machine the cost model was fitted to: bytes that its last cache holds of one step's maps, bytes that
# cross from there and from memory in a cycle, all cores together, and what sharing out few images costs. With
# AVX2, images one by one fall a little further behind images side by side than their cycles say;
# for other builds that is a guess.
_CACHE_BYTES = 24 << 20
_CACHE_BYTES_A_CYCLE, _MEMORY_BYTES_A_CYCLE = 25.0, 10.0
_LOOP_FACTOR = {"avx512": 1.2, "avx2": 1.3}
_LOOP_FACTOR_ELSEWHERE = 2.0
# A map's vectors are wider than those of images side by side where the machine splits wide ones: arithmetic
# then takes twice the cycles, a nonzero's weight and address do not.
_SPLIT_FACTOR = 1.75
_CYCLES_A_SECOND = 4.2e9
_LINEAR_CYCLES = 1.25  # a nonzero of a fully connected layer over a vector of images, all cores together


@dataclass(frozen=True)
class Schedule:
    """The first ``steps`` steps run as a loop over chunks of ``images`` images; 0 steps: no loop."""

    steps: int = 0
    images: int = 0


def in_lanes(batch: int) -> bool:
    """Whether images run side by side in vectors rather than one after the other.

    Where a vector would be full to three quarters, that is faster in spite of the lanes left empty.
    """
    return 4 * batch >= 3 * _core.lanes()


def chunk_images(batch: int, threads: int) -> int:
    """Images of a chunk: the most that divide the batch and give every thread at most one."""
    return max(n for n in range(1, min(batch, threads) + 1) if batch % n == 0)


def schedule(plan: Plan, threads: int) -> Schedule:
    """Choose the loop for ``plan`` on so many threads."""
    batch = plan.batch
    images = chunk_images(batch, threads)
    longest = loopable(plan)
    if images == batch or longest == 0 or not _overflows(plan):
        return Schedule()
    lanes = in_lanes(batch)
    gains = _gains(plan, longest, images, threads)
    best = max(range(len(gains)), key=lambda n: gains[n] - _boundary_cycles(plan, n, lanes))
    return Schedule(best, images) if best > 0 and gains[best] > 0 else Schedule()


def slices_pay(plan: Plan, part: Plan) -> bool:
    """Whether a batch runs faster in slices like ``part`` than as a whole, by modelled memory traffic.

    Saved are the reads and writes of convolutions whose maps the last cache holds for a slice but not for the
    whole batch. Fully connected layers lose: a slice takes them as long as a vector of images does.
    """
    saved = sum(
        _traffic(plan, step)
        for step, of_part in zip(plan.steps, part.steps, strict=True)
        if step.op == "conv2d" and _map_bytes(part, of_part) <= _CACHE_BYTES < _map_bytes(plan, step)
    )
    return saved / _MEMORY_BYTES_A_CYCLE > _linear_cycles(plan) * (plan.batch / part.batch - 1)


def rest_pays(plan: Plan, images: int, threads: int) -> bool:
    """Whether ``images`` that do not fill the batch's last vector run faster apart, by modelled cycles.

    Convolutions gain what empty lanes cost; fully connected layers lose one more reading of their weights.
    """
    saved = sum(
        _cycles(plan, step, lanes=True) - _few_factor() * images * _cycles(plan, step, lanes=False)
        for step in plan.steps
    )
    return saved / threads > _linear_cycles(plan)


def _linear_cycles(plan: Plan) -> float:
    """Modelled cycles of the fully connected layers over a vector of images, all cores together."""
    nonzeros = (
        step.weight.nnz for step in plan.steps if step.op == "linear" and isinstance(step.weight, CSR)
    )
    return _LINEAR_CYCLES * sum(nonzeros)


def _few_factor() -> float:
    return _LOOP_FACTOR.get(_core.map_isa(), _LOOP_FACTOR_ELSEWHERE)


def loop_lost_without(plan: Plan, index: int, threads: int) -> float:
    """Modelled seconds that the other steps lose if step ``index``, now in the loop, does not run in it."""
    looped = schedule(plan, threads)
    gains = _gains(plan, looped.steps, looped.images, threads)
    own = gains[index + 1] - gains[index]
    return max(0.0, gains[-1] - own - max(gains[: index + 1])) / _CYCLES_A_SECOND


def _gains(plan: Plan, steps: int, images: int, threads: int) -> list[float]:
    """Cycles gained by looping the first 0, 1, ... ``steps`` steps."""
    lanes = in_lanes(plan.batch)
    gains = [0.0]
    for step in plan.steps[:steps]:
        gain = 0.0  # other steps were measured to take as long both ways
        if step.op == "conv2d":
            gain = _whole_cycles(plan, step, threads, lanes=lanes)
            gain -= _looped_cycles(plan, step, images, threads)
        gains.append(gains[-1] + gain)
    return gains


def loopable(plan: Plan) -> int:
    """How many steps from the first on can run on part of the batch with native kernels alone."""
    for index, step in enumerate(plan.steps):
        names = [*step.inputs, step.output, *([step.residual] if step.residual else [])]
        shapes = [plan.values[name].shape for name in names]
        maps = all(len(shape) == 4 and shape[0] == plan.batch and 0 not in shape for shape in shapes)
        same = step.residual is None or shapes[-1] == plan.values[step.output].shape
        weight = step.weight
        sparse = step.op != "conv2d" or isinstance(weight, CSR)
        if step.op not in _LOOPED or not (maps and same and sparse and _native(plan, step)):
            return index
    return len(plan.steps)


def _native(plan: Plan, step: Step) -> bool:
    if step.op == "concat":
        return bool(step.attrs["dim"] % 4)
    if step.op not in ("add", "mul"):
        return True
    result = plan.values[step.output].shape
    shapes = [plan.values[name].shape for name in step.inputs]
    return result in shapes and all(s in (result, (*result[:2], 1, 1)) for s in shapes)


def _overflows(plan: Plan) -> bool:
    return any(_map_bytes(plan, step) > _CACHE_BYTES for step in plan.steps)


def _map_bytes(plan: Plan, step: Step) -> int:
    names = [*step.inputs, step.output, *([step.residual] if step.residual else [])]
    return sum(4 * math.prod(plan.values[name].shape) for name in names)


def _whole_cycles(plan: Plan, step: Step, threads: int, *, lanes: bool) -> float:
    """Modelled cycles of a convolution on the whole batch; memory traffic overlaps with half of the rest."""
    compute = _cycles(plan, step, lanes=lanes) * (lane_blocks(plan.batch) if lanes else plan.batch) / threads
    memory = _traffic(plan, step) / _MEMORY_BYTES_A_CYCLE if _map_bytes(plan, step) > _CACHE_BYTES else 0.0
    return max(compute, memory) + min(compute, memory) / 2


def _looped_cycles(plan: Plan, step: Step, images: int, threads: int) -> float:
    """Modelled cycles of a convolution on the batch, so many images at a time."""
    compute = _few_factor() * _cycles(plan, step, lanes=False) * plan.batch / threads
    near = _map_bytes(plan, step) * images / plan.batch <= _CACHE_BYTES
    return compute + _traffic(plan, step) / (_CACHE_BYTES_A_CYCLE if near else _MEMORY_BYTES_A_CYCLE)


def _traffic(plan: Plan, step: Step) -> float:
    """Bytes that the step's maps move; a line that is written is read first."""
    return _map_bytes(plan, step) + 4.0 * math.prod(plan.values[step.output].shape)


def _cycles(plan: Plan, step: Step, *, lanes: bool) -> float:
    """Modelled cycles of one core for an image, or for a vector of them in lanes; only convolutions count."""
    if step.op != "conv2d" or not isinstance(step.weight, CSR):
        return 0.0
    mapping = "lanes" if lanes else "planar"
    described = geometry(step, plan.values[step.inputs[0]].shape)
    if not lanes and reads_every_nth(described):
        described = unstrided(described)
    cycles = _core.modelled_cycles(**csr_arrays(step.weight), mapping=mapping, **described)
    return cycles * _SPLIT_FACTOR if not lanes and _core.map_lanes() > _core.lanes() else cycles


def _boundary_cycles(plan: Plan, steps: int, lanes: bool) -> float:
    """What it costs to turn the maps that outlive the loop into lanes."""
    if not lanes or steps == 0:
        return 0.0
    moved = sum(4 * math.prod(plan.values[name].shape) for name in outliving(plan, steps))
    # What the last cache does not hold is fetched before it is written, and drives out what the loop reads.
    return (3.0 if moved <= _CACHE_BYTES else 6.0) * moved / _MEMORY_BYTES_A_CYCLE


def outliving(plan: Plan, steps: int) -> list[str]:
    """Values made by the first ``steps`` steps that later steps or the caller read."""
    made = {step.output for step in plan.steps[:steps]}
    read = {plan.output}
    for step in plan.steps[steps:]:
        read |= {*step.inputs, *([step.residual] if step.residual else [])}
    return [step.output for step in plan.steps[:steps] if step.output in made & read]
