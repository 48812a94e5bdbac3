"""How measurements become choices, and how they are kept: no GPU, times are made up."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from finepruning.bench.networks import prune_uniform
from finepruning.engine import cuda_choice
from finepruning.engine.capture import capture
from finepruning.engine.cuda import CudaExecutor  # noqa: F401 - needs Triton, as what is tested here does
from finepruning.engine.cuda_measure import Planner, layer_key
from finepruning.engine.cuda_roofline import H200
from finepruning.engine.fuse import fuse
from finepruning.engine.timing_table import TimingTable, cache_path

IDENTITY = {"device": "NVIDIA H200", "torch": "2.11"}
US = 1e-6


def _plan(density=0.1, batch=1):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))
    prune_uniform(network, density, first=density)
    graph, tensors = capture(network.eval(), (1, 8, 8))
    return fuse(graph, tensors, batch)


class Clock:
    """Made-up times: one for each method of a single layer, and for networks by how many layers are dense."""

    def __init__(self, layers, networks=lambda dense: 1 * US):
        self.layers, self.networks, self.asked = layers, networks, 0

    def cold(self, program):
        self.asked += 1
        (row,) = program.report()
        for name, method in (("expand", "expand"), ("triton sp", "sparse"), ("cu", "dense")):
            if row.kernel.removeprefix("triton ").startswith(name.removeprefix("triton ")):
                return self.layers[method]
        raise AssertionError(row.kernel)

    def network(self, program):
        self.asked += 1
        rows = [row for row in program.report() if row.op == "linear"]
        return self.networks(sum(row.kernel == "cublas" for row in rows))


def _choose(clock, table=None, plan=None):
    plan = plan or _plan()
    table = table or TimingTable(None, IDENTITY)
    planner = Planner(torch.device("cpu"), H200, "contiguous", table, clock.network, clock.cold)
    chosen = planner.choices(plan, cuda_choice.layers(plan))
    return [choice.method for choice in chosen.values()], chosen


def test_the_faster_measured_way_wins():
    assert _choose(Clock({"sparse": 5 * US, "expand": 9 * US, "dense": 10 * US}))[0] == ["sparse"] * 2
    assert _choose(Clock({"sparse": 9 * US, "expand": 5 * US, "dense": 10 * US}))[0] == ["expand"] * 2
    assert _choose(Clock({"sparse": 9 * US, "expand": 8 * US, "dense": 5 * US}))[0] == ["dense"] * 2


@pytest.mark.parametrize(("library", "ours", "fused"), [(10 * US, 7 * US, True), (7 * US, 10 * US, False)])
def test_the_faster_convolution_on_tensor_cores_wins(library, ours, fused):
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    prune_uniform(network, 0.1, first=0.1)
    graph, tensors = capture(network.eval(), (16, 8, 8), torch.float16)
    plan = fuse(graph, tensors, 1, torch.float16)

    class Tensorcores(Clock):
        def cold(self, program):
            (row,) = program.report()
            self.kernels.append(row.kernel)
            if row.kernel == "triton sparse_conv2d":
                return 20 * US
            return (ours if "dense_conv2d" in row.kernel else library) + US * row.kernel.count("expand")

    clock = Tensorcores({}, lambda dense: 1 * US)
    clock.kernels = []
    planner = Planner(
        torch.device("cpu"), H200, "channels_last", TimingTable(None, IDENTITY), clock.network, clock.cold
    )
    (choice,) = planner.choices(plan, cuda_choice.layers(plan)).values()
    assert choice.fused is fused
    # A dense network would have the library's convolution: expanding first loses to it alone.
    assert choice.method == ("expand" if fused else "dense")
    assert ("triton expand + dense_conv2d" in clock.kernels) is fused


def test_what_was_measured_is_not_measured_again(tmp_path):
    path = tmp_path / "folder" / "table.json"
    times = {"sparse": 5 * US, "expand": 9 * US, "dense": 10 * US}
    first = Clock(times)
    chosen = _choose(first, TimingTable(path, IDENTITY))[1]
    assert first.asked == 6 + 2  # three methods of two layers; the network ours and dense
    again = Clock(times)
    assert _choose(again, TimingTable(path, IDENTITY))[1] == chosen
    assert again.asked == 0


def test_another_density_measures_only_what_depends_on_it(tmp_path):
    path = tmp_path / "table.json"
    times = {"sparse": 5 * US, "expand": 9 * US, "dense": 10 * US}
    _choose(Clock(times), TimingTable(path, IDENTITY))
    sparser = Clock(times)
    _choose(sparser, TimingTable(path, IDENTITY), _plan(0.05))
    assert sparser.asked == 4 + 1


def test_a_network_that_measures_slower_keeps_dense_weights():
    """Layers alone gain, the network loses: more layers go dense until it does not, in the end all."""
    layers = {"sparse": 5 * US, "expand": 9 * US, "dense": 10 * US}
    methods, chosen = _choose(Clock(layers, lambda dense: 10 * US if dense == 2 else 13 * US))
    assert methods == ["dense"] * 2
    assert all("10 us dense, 13 us with sparse" in choice.why_dense for choice in chosen.values())
    equal = Clock(layers, lambda dense: 10 * US)
    assert _choose(equal)[0] == ["sparse"] * 2


def test_without_memory_to_measure_the_model_decides():
    class Full(Clock):
        def cold(self, program):
            raise torch.OutOfMemoryError

    clock = Full({})
    methods, _ = _choose(clock)
    assert set(methods) <= {"sparse", "expand", "dense"}


def test_the_key_tells_apart_what_differs():
    plan, other = _plan(), _plan(batch=2)
    (first, second), (wide, _) = cuda_choice.layers(plan), cuda_choice.layers(other)
    tf32 = cuda_choice.layers(plan, tf32_product=True)[0]
    keys = {layer_key(layer, "dense") for layer in (first, second, wide, tf32)}
    assert len(keys) == 4
    denser = replace(first, nnz=2 * first.nnz)
    assert layer_key(first, "dense") == layer_key(denser, "dense")
    assert layer_key(first, "sparse") != layer_key(denser, "sparse")


def test_tables_of_two_processes_are_merged(tmp_path):
    path = tmp_path / "table.json"
    one, two = TimingTable(path, IDENTITY), TimingTable(path, IDENTITY)
    one.put("a", 1.0)
    one.save()
    two.put("b", 2.0)
    two.save()
    assert TimingTable(path, IDENTITY).get("a") == 1.0
    assert two.get("a") == 1.0
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 1}', "\x00\xff", '"text"']
    + [json.dumps({"format": 1, "identity": IDENTITY, "seconds": s}) for s in ({"a": -1}, {"a": "x"}, [1])],
)
def test_a_damaged_table_is_ignored_with_a_message_and_replaced(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content, encoding="latin-1")
    with pytest.warns(UserWarning, match=r"table\.json is ignored"):
        table = TimingTable(path, IDENTITY)
    assert table.get("a") is None
    table.put("a", 2.0)
    with pytest.warns(UserWarning, match="is ignored"):
        table.save()
    assert TimingTable(path, IDENTITY).get("a") == 2.0


def test_times_of_other_versions_are_not_used(tmp_path):
    table = TimingTable(tmp_path / "t.json", IDENTITY)
    table.put("a", 1.0)
    table.save()
    assert TimingTable(tmp_path / "t.json", {**IDENTITY, "torch": "2.12"}).get("a") is None
    assert cache_path(IDENTITY, "cuda", tmp_path) != cache_path(
        {**IDENTITY, "torch": "2.12"}, "cuda", tmp_path
    )


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    table = TimingTable(tmp_path / "file" / "table.json", IDENTITY)
    table.put("a", 1.0)
    with pytest.warns(UserWarning, match="set FINEPRUNING_CACHE"):
        table.save()
    assert table.get("a") == 1.0
