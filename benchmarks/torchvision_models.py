"""Runs every torchvision classifier through the engine and compares it with the masked dense network.

    python benchmarks/torchvision_models.py                   # all of them, up to 200 M parameters
    python benchmarks/torchvision_models.py alexnet resnet18  # only these
    python benchmarks/torchvision_models.py --one-each-family
    python benchmarks/torchvision_models.py mnasnet1_0 --variance-floor 0  # with near-dead channels left in

Weights are random, 90 % pruned by magnitude and scaled to keep activations alive, so that an error anywhere
reaches the output. Each network goes through a model directory and back. Rows are added to
benchmarks/results/torchvision_models.json as they come; a name measured again replaces its row.
Another variance floor than the default has a file of its own, torchvision_models_floor_F.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from finepruning.bench.machine import describe
from finepruning.engine import SparseModel
from finepruning.errors import CaptureError

RESULTS = Path(__file__).parent / "results"
MAX_PARAMETERS = 200_000_000
DENSITY = 0.1
TOLERANCE = 1e-4
SIZE = 224
VARIANCE_FLOOR = 0.1


def prepared(name: str, floor: float) -> nn.Module:
    """A network with random weights, pruned, whose output depends on every layer."""
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if key.endswith("layer_scale"):
                parameter.normal_(0.5, 0.1)  # 1e-6 would hide the whole block
            elif key.endswith("bias"):
                parameter.normal_(0, 0.1)
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                prune(layer.weight)
        estimate_norms(module, floor)
    return module.eval()


def prune(weight: Tensor) -> None:
    """He-normal values of which the largest tenth stays, scaled to the energy of all of them."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")
    energy = weight.square().sum()
    magnitude = weight.abs().flatten()
    keep = max(1, round(DENSITY * magnitude.numel()))
    threshold = magnitude.kthvalue(magnitude.numel() - keep + 1).values
    weight[weight.abs() < threshold] = 0
    weight *= (energy / weight.square().sum()).sqrt()


def estimate_norms(module: nn.Module, floor: float) -> None:
    """Set running statistics from a random batch, layer after layer.

    Pruning leaves channels that hardly vary. Training would not divide by such a variance, which turns
    rounding errors into signal, so it is kept above ``floor`` times the layer's mean.
    """

    def estimate(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0].transpose(0, 1).flatten(1), dim=1)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance.clamp_min(floor * float(variance.mean())))

    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(estimate) for norm in norms]
    module.eval()(torch.randn(4, 3, SIZE, SIZE))
    for hook in hooks:
        hook.remove()


def measure(name: str, parameters: int, floor: float) -> dict[str, Any]:
    """One row: relative errors for batch 1 and 3, file size, and what was left to ATen operations."""
    module = prepared(name, floor)
    row: dict[str, Any] = {
        "network": name,
        "parameters": parameters,
        "density": DENSITY,
        "variance_floor": floor,
    }
    try:
        start = time.perf_counter()
        captured = SparseModel.from_dense(module, torch.zeros(1, 3, SIZE, SIZE))
        row["capture_s"] = round(time.perf_counter() - start, 2)
        with tempfile.TemporaryDirectory() as folder:
            captured.save_pretrained(Path(folder) / "model")
            del captured
            start = time.perf_counter()
            model = SparseModel.from_pretrained(Path(folder) / "model")
            row["load_s"] = round(time.perf_counter() - start, 3)
            size = (Path(folder) / "model" / "model.safetensors").stat().st_size
    except CaptureError as error:
        return {**row, "status": "not captured", "reason": str(error)}
    row["file_ratio"] = round(size / (4 * parameters), 4)
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 3):
        x = torch.randn(batch, 3, SIZE, SIZE, generator=generator)
        with torch.no_grad():
            expected = module(x)
        row[f"error_batch_{batch}"] = float((model(x) - expected).norm() / expected.norm())
    # How much of the output depends on the image at all: near 0 would make the comparison empty.
    row["spread"] = float((expected[0] - expected[1]).norm() / expected[0].norm())
    steps = model.plan(3)
    row["steps"] = len(steps)
    row["aten_steps"] = sum(step.op == "aten" for step in steps)
    row["sparse_layers"] = sum(step.nnz is not None and step.nnz != step.size for step in steps)
    worst = max(row["error_batch_1"], row["error_batch_3"])
    row["status"] = "ok" if worst <= TOLERANCE and row["spread"] > 1e-3 else "wrong"
    return row


def candidates() -> dict[str, int]:
    """Classifier -> number of parameters, as torchvision states it with its published weights."""
    sizes = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        sizes[name] = max(
            weights.meta["num_params"] for weights in torchvision.models.get_model_weights(name)
        )
    small = {name: size for name, size in sizes.items() if size <= MAX_PARAMETERS}
    return dict(sorted(small.items(), key=lambda item: item[1]))


def family(name: str) -> str:
    """ "resnet" for "resnet18", "swin_v2" for "swin_v2_t"."""
    stem = re.sub(r"^(wide_resnet|resnext)", "resnet_", name)
    return re.match(r"(swin_v2|efficientnet_v2|shufflenet_v2|mobilenet_v\d|regnet_[xy]|[a-z]+)", stem)[0]  # type: ignore[index]


def store(row: dict[str, Any], path: Path) -> None:
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [other for other in rows if other["network"] != row["network"]] + [row]
    rows.sort(key=lambda item: item["parameters"])
    context = describe(torch.device("cpu"), torch.get_num_threads())
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({**context, "tolerance": TOLERANCE, "image_size": SIZE, "rows": rows}, indent=1) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="networks; default all")
    parser.add_argument("--one-each-family", action="store_true", help="the smallest of each family")
    parser.add_argument("--missing", action="store_true", help="only networks without a row yet")
    parser.add_argument(
        "--variance-floor",
        type=float,
        default=VARIANCE_FLOOR,
        help="as a share of the layer's mean",
    )
    options = parser.parse_args()
    floor = options.variance_floor
    suffix = "" if floor == VARIANCE_FLOOR else f"_floor_{floor:g}"
    path = RESULTS / f"torchvision_models{suffix}.json"
    warnings.simplefilter("ignore")
    sizes = candidates()
    names = options.names or list(sizes)
    if options.one_each_family:
        names = list({family(name): name for name in reversed(names)}.values())[::-1]
    if options.missing and path.exists():
        known = {row["network"] for row in json.loads(path.read_text())["rows"]}
        names = [name for name in names if name not in known]
    columns = ("network", "M par.", "error b1", "error b3", "spread", "file", "steps", "aten", "status")
    print("{:22} {:>7} {:>9} {:>9} {:>7} {:>6} {:>5} {:>5}  {}".format(*columns))
    wrong = 0
    for name in names:
        row = measure(name, sizes[name], floor)
        store(row, path)
        wrong += row["status"] != "ok"
        if row["status"] == "not captured":
            print(f"{name:22} {row['parameters'] / 1e6:7.1f}  not captured: {row['reason']}", flush=True)
        else:
            errors = f"{row['error_batch_1']:9.1e} {row['error_batch_3']:9.1e} {row['spread']:7.3f}"
            counts = f"{row['file_ratio']:6.3f} {row['steps']:5} {row['aten_steps']:5}"
            print(f"{name:22} {row['parameters'] / 1e6:7.1f} {errors} {counts}  {row['status']}", flush=True)
        gc.collect()
    print(f"{len(names)} networks, {wrong} not ok")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
