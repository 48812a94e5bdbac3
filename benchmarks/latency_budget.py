"""Does a latency budget deliver what was asked? Networks cut to shares of the dense latency, and measured.

    python benchmarks/latency_budget.py [--networks alexnet,resnet50] [--shares 0.5,0.25] [--again]

The dense latency is that of the fastest dense runtime installed, as `finepruning bench` measures it, batch 1.
Weights are random and nothing is trained: each layer gets such a scale that all would keep the same share,
and the target decides how much that is, from its table of costs and by running the network; see Budgets in
docs/method.md. The network is then written, loaded and measured by `finepruning bench`. Done rows are kept,
so a stopped run goes on where it was; results lie in benchmarks/results/latency_budget.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finepruning import SparseModel, models
from finepruning.bench import BenchOptions, bench
from finepruning.bench.networks import prune_random
from finepruning.config import CompressConfig
from finepruning.pruning import ALLOCATION_RULES, Surgery, kept, prunable_layers, theta_for
from finepruning.sparse.storage import StoredModel
from finepruning.targets import LatencyTarget
from finepruning.targets.latency_table import latency_table, network_ms

RESULTS = Path(__file__).parent / "results" / "latency_budget.json"
SIZE = 224


def dense_row(network: str) -> dict[str, Any]:
    """Every dense runtime's median on this network."""
    with tempfile.TemporaryDirectory() as folder:
        prune_random(network, 0.1).save_pretrained(folder)
        found = bench(Path(folder), network, BenchOptions(batches=(1,), memory=False, seconds=0.6), say=print)
    peers = {row["peer"]: row["median_ms"] for row in found["rows"] if row["peer"] != "finepruning"}
    peers = {name: ms for name, ms in peers.items() if ms is not None}
    best = min(peers, key=lambda name: peers[name])
    machine = {key: found[key] for key in ("date", "commit", "machine", "versions")}
    return {"network": network, "dense_ms": peers[best], "dense_peer": best, "peers_ms": peers, **machine}


def request_row(network: str, dense: dict[str, Any], share: float) -> dict[str, Any]:
    """One request: predicted, corrected, written, loaded and measured."""
    started = time.perf_counter()
    asked = share * dense["dense_ms"]
    config = CompressConfig(target_latency=asked, rounds=1, device="cpu")
    module = models.create(network, 1000, "none", 0).module.eval()
    layers = prunable_layers(module)

    def capture(network: nn.Module) -> StoredModel:
        return SparseModel.from_dense(network, torch.zeros(1, 3, SIZE, SIZE)).stored

    sizes = {name: weight.numel() for name, weight in layers.items()}
    table = latency_table(capture(module), sizes, 1, torch.device("cpu"), print)
    target = LatencyTarget(config, table, capture, network_ms)
    surgery = Surgery(layers)
    theta = evenly(surgery.saliency())
    target.begin(1, surgery.saliency())
    surgery.cut(theta, target.keep)
    target.settle(module, lambda keep: surgery.cut(theta, keep))
    with tempfile.TemporaryDirectory() as folder:
        SparseModel(capture(module)).save_pretrained(folder)
        options = BenchOptions(batches=(1,), memory=False, seconds=1.0, peers=("torch",))
        rows = bench(Path(folder), network, options)["rows"]
    ours = next(row for row in rows if row["peer"] == "finepruning")
    return {
        "network": network,
        "share": share,
        "asked_ms": asked,
        "delivered_ms": ours["median_ms"],
        "off": ours["median_ms"] / asked - 1.0,
        "within_10_percent": abs(ours["median_ms"] / asked - 1.0) <= 0.1,
        "p20_ms": ours["p20_ms"],
        "p80_ms": ours["p80_ms"],
        "predicted_ms": target.state["predicted"],
        "settled_ms": target.state["measured"],
        "corrections": target.state["corrections"],
        "density": surgery.kept / sum(sizes.values()),
        "least_ms": table.least,
        "engine_dense_ms": table.network[-1],
        "torch_dense_ms": table.pytorch,
        "threads": torch.get_num_threads(),
        "seconds": time.perf_counter() - started,
    }


def evenly(saliency: list[Tensor]) -> list[float]:
    """The theta under which a cut keeps about the same share of every layer."""
    total = sum(weight.numel() for weight in saliency)
    return theta_for(saliency, ALLOCATION_RULES["uniform"](saliency, kept(total // 10, saliency)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="alexnet,resnet50")
    parser.add_argument("--shares", default="0.5,0.25")
    parser.add_argument(
        "--again", action="store_true", help="measure requests again, with the dense time kept"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    content: dict[str, Any] = {"dense": [], "rows": []}
    if arguments.results.exists():
        content = json.loads(arguments.results.read_text())
    for network in arguments.networks.split(","):
        dense = next((row for row in content["dense"] if row["network"] == network), None)
        if dense is None:
            dense = dense_row(network)
            content["dense"].append(dense)
            write(arguments.results, content)
        for share in map(float, arguments.shares.split(",")):
            done = [r for r in content["rows"] if (r["network"], r["share"]) == (network, share)]
            if done and not arguments.again:
                continue
            row = request_row(network, dense, share)
            print(json.dumps(row))
            content["rows"] = [r for r in content["rows"] if r not in done] + [row]
            write(arguments.results, content)


def write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    main()
