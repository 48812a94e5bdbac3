"""Which convolutions and fully connected layers run dense on the CPU, as sparse kernels would slow them down.

A layer with few nonzeros is sparse without question, a tiny one too: calling PyTorch would take longer than
its arithmetic. For what lies between, both ways are timed when a plan is first made on a machine, with the
layer's own weights and with the changes of layout that each way brings into the network. The times lie in a
`TimingTable` on disk, so that every later process makes the same choice. With FINEPRUNING_CACHE=off nothing
is timed, and a rule of density decides: the same everywhere, and the last digits of results with it.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import finepruning
from finepruning import _core
from finepruning.engine.cpu_lowering import Lowering
from finepruning.engine.cpu_runner import Runner
from finepruning.engine.cpu_schedule import Schedule, in_lanes, loop_lost_without, schedule
from finepruning.engine.cpu_weights import with_dense_weights
from finepruning.engine.plan import Plan, Step
from finepruning.engine.timing_table import TimingTable, cache_folder, cache_path
from finepruning.environment import cpu_name
from finepruning.sparse.csr import CSR

# Up to this density no dense kernel was ever faster; fewer multiply-accumulates are not worth a call.
CLEARLY_SPARSE, TINY_MACS = 0.2, 2_000_000
# The rule without measuring: denser layers run dense, unless every output has only few weights.
DENSE_ABOVE, FEW_COLUMNS = 0.6, 512
# A dense layer must win by more than the noise of timing: it costs memory.
MARGIN = 0.95
# Of so many runs of each way, the fastest counts: what else the machine does can only make them slower.
RUNS, ENOUGH_SECONDS = 20, 0.2

_measuring = threading.Lock()  # two at a time would disturb each other


@dataclass(frozen=True)
class Place:
    """Where a step stands in its network.

    Attributes:
        lanes_in, lanes_out: whether its neighbours hold maps with images side by side. last: its
            result is the plan's.
        chunk: images at a time if it runs in the plan's loop, else 0.
        loop_lost: seconds that the rest of the loop gains and would lose.
    """

    lanes_in: bool
    lanes_out: bool
    last: bool
    chunk: int = 0
    loop_lost: float = 0.0


def dense_layers(plan: Plan, threads: int, *, loops: bool) -> dict[str, str]:
    """Names of the steps with CSR weights that should run dense, and for each the reason.

    Args:
        plan: its dense weights that sparse kernels may run are CSR already.
        threads: that will run it. loops: whether it may run in chunks of the batch.
    """
    doubtful = [step for step in plan.steps if _doubtful(plan, step)]
    if not doubtful:
        return {}
    table = _table()
    if table is None:
        return {step.name: reason for step in doubtful if (reason := _by_rule(step)) is not None}
    looped = schedule(plan, threads) if loops else Schedule()
    chosen: dict[str, str] = {}
    for step in doubtful:
        place = _place(plan, step, threads, looped, chosen)
        sparse, dense = _seconds(table, plan, step, place, threads)
        if dense < MARGIN * sparse:
            chosen[step.name] = f"sparse would take {sparse * 1e6:.0f} us, dense {dense * 1e6:.0f} us"
    table.save()
    return chosen


def _doubtful(plan: Plan, step: Step) -> bool:
    weight = step.weight
    if not isinstance(weight, CSR) or weight.density <= CLEARLY_SPARSE:
        return False
    result = plan.values[step.output].shape
    if plan.values[step.inputs[0]].dtype != torch.float32 or 0 in result:
        return False
    positions = math.prod(result) // weight.rows if weight.rows else 0
    return weight.rows * weight.columns * positions >= TINY_MACS


def _by_rule(step: Step) -> str | None:
    weight = step.weight
    assert isinstance(weight, CSR)
    if weight.density <= DENSE_ABOVE or weight.columns <= FEW_COLUMNS:
        return None
    return f"density {weight.density:.2f} > {DENSE_ABOVE}"


def _place(plan: Plan, step: Step, threads: int, looped: Schedule, dense: dict[str, str]) -> Place:
    index = plan.steps.index(step)
    if index < looped.steps:
        lost = loop_lost_without(plan, index, threads)
        return Place(False, False, step.output == plan.output, looped.images, lost)
    return Place(
        _lanes(plan, step.inputs[0], dense), _lanes(plan, step.output, dense), step.output == plan.output
    )


def _lanes(plan: Plan, name: str, dense: dict[str, str]) -> bool:
    """Whether a value lies in lanes where nothing runs dense but what is known to."""
    producers = {step.output: step for step in plan.steps}
    while name in producers and producers[name].op in ("view", "identity"):
        name = producers[name].inputs[0]
    producer = producers.get(name)
    if producer is None or producer.op == "aten" or producer.name in dense:
        return False
    images = plan.values[name].shape[0]
    return images > 1 if producer.op == "linear" else in_lanes(images)


def _seconds(table: TimingTable, plan: Plan, step: Step, place: Place, threads: int) -> tuple[float, float]:
    """Seconds of the step by a sparse kernel and by PyTorch, from the table or measured now."""
    weight = step.weight
    assert isinstance(weight, CSR)
    shape = "x".join(map(str, plan.values[step.inputs[0]].shape))
    attrs = " ".join(f"{key}{step.attrs[key]}" for key in sorted(step.attrs))
    key = (
        f"{step.op} {shape} {'x'.join(map(str, weight.shape))} {attrs} density {weight.density:.2g} "
        f"{weight.values.dtype} {step.activation} {place} threads {threads}"
    )
    with _measuring:
        sparse, dense = table.get(f"sparse {key}"), table.get(f"dense {key}")
        if sparse is None or dense is None:
            sparse, dense = measure(plan, step, place, threads)
            table.put(f"sparse {key}", sparse)
            table.put(f"dense {key}", dense)
    return sparse, dense


def measure(plan: Plan, step: Step, place: Place, threads: int) -> tuple[float, float]:
    """Seconds of one step by a sparse kernel and by PyTorch, each with what it costs its neighbours."""
    whole = _alone(plan, step, plan.batch)
    turns = plan.batch // place.chunk if place.chunk else 1
    sparse_plan = _alone(plan, step, place.chunk) if place.chunk else whole
    dense_plan = with_dense_weights(whole, {step.name})
    times: tuple[dict[str, list[float]], ...] = (defaultdict(list), defaultdict(list))
    runners = [Runner(p, Lowering(p, threads=threads)) for p in (sparse_plan, dense_plan)]
    inputs = [torch.randn(p.values[p.input].shape) for p in (sparse_plan, dense_plan)]
    start = time.perf_counter()
    for run in range(1 + RUNS):
        for runner, x, of_side in zip(runners, inputs, times, strict=True):
            steps: list[tuple[str, float]] = []
            runner.run(x, steps)
            together: dict[str, float] = defaultdict(float)  # a step may take several operations
            for name, seconds in steps:
                together[name] += seconds
            for name, seconds in together.items():
                of_side[name].append(seconds)
        if run == 0:  # warms up
            for of_side in times:
                of_side.clear()
        elif time.perf_counter() - start > ENOUGH_SECONDS:
            break
    to_lanes, to_planar = (min(times[0].get(name, [0.0])) for name in _conversions(whole))
    sparse = turns * min(times[0][step.name])
    dense = min(times[1][step.name]) + place.loop_lost
    if not place.chunk:
        # The sides run from planar to planar map; in the network each changes what it finds and leaves.
        sparse += 0.0 if place.lanes_in else to_lanes
        dense += to_lanes if place.lanes_in else 0.0
        sparse += to_planar if place.last else 0.0
        dense += to_planar if place.lanes_out and not place.last else 0.0
    return max(sparse, 1e-9), max(dense, 1e-9)


def _conversions(alone: Plan) -> tuple[str, str]:
    return f"{alone.input}:lanes", f"{alone.output}:planar"


def _alone(plan: Plan, step: Step, images: int) -> Plan:
    """One step as a plan of its own, without residual, for so many images."""
    values = {}
    for name in (step.inputs[0], step.output):
        value = plan.values[name]
        values[name] = replace(value, shape=(images * value.shape[0] // plan.batch, *value.shape[1:]))
    return Plan((replace(step, residual=None),), values, step.inputs[0], step.output)


_tables: dict[Path, TimingTable] = {}


def _table() -> TimingTable | None:
    """This machine's table, read once in a process; None where nothing shall be measured."""
    folder = cache_folder()
    if folder is None:
        return None
    identity = _identity(_core.isa())
    path = cache_path(identity, "cpu", folder)
    with _measuring:
        if path not in _tables:
            _tables[path] = TimingTable(path, identity)
        return _tables[path]


@functools.cache
def _identity(isa: str) -> dict[str, str]:
    return {
        "device": cpu_name(),
        "isa": isa,
        "torch": torch.__version__,
        "finepruning": finepruning.__version__,
    }
