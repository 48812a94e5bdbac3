"""Does the objective of a search order candidates as retraining would?

    python benchmarks/surrogate_order.py DATA WEIGHTS              # the missing rows, then the summary
    python benchmarks/surrogate_order.py --summary                 # the summary of the stored rows

DATA is the UC Merced folder (train/ and test/), WEIGHTS a SqueezeNet 1.1 trunk. The test images are not used:
30 % of the training images are held out, every second one scores candidates as a search does, the others
judge them after retraining, so no image does both.

A cell is a network and a density to cut it to. The network is the dense one ("dense": one cut all the way
down) or one that global magnitude pruning and fine-tuning have brought to 1.4 times the density ("step": what
a search in the loop meets). A row is a candidate of the search space in a cell: the rules that start a search
(global, LAMP, ERK, uniform), then uniform points, then points "near" global: a fifth as far. It holds the
objective at once, the objective after 10 steps of look-ahead, and what retraining for two epochs gives, with
--retrainings seeds. Two retrainings of one candidate differ as well: the rank correlation between them is
the most that any objective could reach.

Rows go to benchmarks/results/surrogate_order.json as they come; the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import Tensor

from finepruning import data, models
from finepruning.environment import describe_environment
from finepruning.pruning import Surgery, prunable_layers, weights_to_keep
from finepruning.search import BudgetSpace, LookAhead, Objective, Proposal, RandomSearch
from finepruning.seeding import derive_seed
from finepruning.training import (
    Recipe,
    cosine,
    evaluate,
    make_optimizer,
    resolve_precision,
    set_dropout,
    train_epoch,
)

RESULTS = Path(__file__).parent / "results" / "surrogate_order.json"
MODEL, SIZE, BATCH = "squeezenet1_1", 128, 32
DENSITIES = (0.10, 0.05, 0.02)
STEP = 1.4
STAGES = (0.5, 0.28, 0.2, 0.14, 0.1, 0.07, 0.05, 0.035, 0.028)
"""Densities of the gradual network; before a cell's density comes STEP times it."""
DENSE_EPOCHS, STAGE_EPOCHS, RETRAIN_EPOCHS = 12, 2, 2
LOOK_AHEAD = 10
NEAR = 1000
"""Index of the first candidate near global."""
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
DENSE_LIMIT, PRUNE_LIMIT = 1.0, 3.0


class Bench:
    """The data and the network, and the ways to train and judge it."""

    def __init__(self, folder: Path, weights: Path, work: Path, theta_bound: float) -> None:
        self.device = torch.device("cpu")
        self.precision = resolve_precision("auto", self.device)
        self.theta_bound = theta_bound
        self.work = work
        spec = models.input_spec(MODEL)
        self.splits = data.load(
            str(held_out(folder, work / "images")),
            image_size=SIZE,
            mean=spec.mean,
            std=spec.std,
            seed=0,
            augmentation="dihedral",
        )
        network = models.create(MODEL, len(self.splits.classes), str(weights), 0, image_size=SIZE)
        self.module = network.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.layers = prunable_layers(self.module)
        held = list(self.splits.validation.batches(BATCH))
        self.scoring = [(x[::2], y[::2]) for x, y in held]
        self.judging = [(x[1::2], y[1::2]) for x, y in held]

    def recipe(self, limit: float) -> Recipe:
        return Recipe(self.device, self.precision, max_grad_norm=limit)

    def batches(self, *place: str | int) -> Iterator[tuple[Tensor, Tensor]]:
        seed = derive_seed(0, "images", *place)
        return self.splits.train.batches(BATCH, shuffle=seed, augment=True, drop_last=True)

    def train(
        self, epochs: int, place: tuple[str | int, ...], surgery: Surgery | None, warmup: int = 0
    ) -> None:
        """SGD with a cosine over ``epochs``, everything random drawn from ``place``."""
        optimizer = make_optimizer(
            "sgd",
            list(self.module.parameters()),
            lr=LR,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            remembered={},
        )
        steps = len(self.splits.train) // BATCH
        for epoch in range(epochs):
            torch.manual_seed(derive_seed(0, "network", *place, epoch))
            train_epoch(
                self.module,
                optimizer,
                self.batches(*place, epoch),
                self.recipe(DENSE_LIMIT if surgery is None else PRUNE_LIMIT),
                lambda step, epoch=epoch: cosine(epoch * steps + step, epochs * steps, LR, warmup * steps),
                surgery=surgery,
            )

    def network(self, density: float) -> None:
        """Put the module in the state of the gradual network at ``density``, 1 for the dense one."""
        path = self.work / f"network-{density:g}.safetensors"
        if path.exists():
            self.module.load_state_dict(load_file(path))
            return
        if density == 1.0:
            self.train(DENSE_EPOCHS, ("dense",), None, warmup=1)
        else:
            stage = STAGES.index(density)
            self.network(1.0 if stage == 0 else STAGES[stage - 1])
            set_dropout(self.module, 0.0)
            surgery = Surgery(self.layers)
            surgery.cut([0.0] * len(self.layers), weights_to_keep(self.layers, density))
            surgery.freeze()
            self.train(STAGE_EPOCHS, ("stage", stage), surgery)
        result = evaluate(self.module, self.judging, self.device, self.precision)
        print(f"network at {density:g}: loss {result.loss:.3f}, accuracy {result.accuracy:.3f}", flush=True)
        state = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        save_file(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def row(self, start: str, density: float, index: int, retrainings: int) -> dict[str, Any]:
        """Score and retrain candidate ``index`` of a cell."""
        began = time.perf_counter()
        self.network(1.0 if start == "dense" else round(STEP * density, 3))
        set_dropout(self.module, 0.0)
        base = {name: value.clone() for name, value in self.module.state_dict().items()}
        surgery = Surgery(self.layers)
        space = BudgetSpace(surgery.saliency(), weights_to_keep(self.layers, density), self.theta_bound)
        (proposal,) = RandomSearch(space, 0).propose([None] * index, 1)  # type: ignore[list-item]  # only their number counts
        if index >= NEAR:
            closer = tuple(0.5 + (value - 0.5) / 5 for value in proposal.x)
            proposal = Proposal(space.canonical(closer), "near")
        steps = [batch for batch, _ in zip(self.batches("look-ahead"), range(LOOK_AHEAD), strict=False)]
        ahead = LookAhead(steps, LR, MOMENTUM, WEIGHT_DECAY, 0)
        found = {}
        for column, look in (("objective", None), ("look_ahead", ahead)):
            objective = Objective(
                self.module, surgery, space, self.scoring, [], self.recipe(PRUNE_LIMIT), look
            )
            trial = objective(1, proposal, index)
            found[column] = trial.objective
        retrained = []
        for seed in range(retrainings):
            self.module.load_state_dict(base)
            pruned = Surgery(self.layers)
            pruned.set_masks(space.masks(proposal.x))
            pruned.freeze()
            self.train(RETRAIN_EPOCHS, ("retrain", seed), pruned)
            result = evaluate(self.module, self.judging, self.device, self.precision)
            retrained.append({"seed": seed, "loss": result.loss, "accuracy": result.accuracy})
        return {
            "start": start,
            "density": density,
            "index": index,
            "kind": proposal.kind,
            "theta": list(space.theta(proposal.x)),
            "layer_densities": [float(mask.float().mean()) for mask in space.masks(proposal.x)],
            **found,
            "retrained": retrained,
            "seconds": round(time.perf_counter() - began, 1),
        }


def held_out(folder: Path, target: Path) -> Path:
    """An image folder of links: 70 % of each training class as train, the rest as val, test as it is."""
    if target.exists():
        return target
    building = target.with_name(target.name + ".building")
    for split in ("train", "test"):
        for kind in sorted((folder / split).iterdir()):
            files = sorted(kind.iterdir())
            random.Random(f"held out {kind.name}").shuffle(files)
            cut = round(0.7 * len(files))
            for place, part in (
                (("train", files[:cut]), ("val", files[cut:])) if split == "train" else (("test", files),)
            ):
                (building / place / kind.name).mkdir(parents=True, exist_ok=True)
                for file in part:
                    link = building / place / kind.name / file.name
                    link.unlink(missing_ok=True)
                    link.symlink_to(file.resolve())
    building.rename(target)
    return target


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line a cell: rank correlations with the loss after retraining, and what choosing by them gives."""
    lines = []
    for start, density in sorted({(row["start"], row["density"]) for row in rows}, reverse=True):
        cell = [row for row in rows if (row["start"], row["density"]) == (start, density)]
        if len(cell) < 4:
            continue
        truth = [row["retrained"][0]["loss"] for row in cell]
        pairs = [[run["loss"] for run in row["retrained"][:2]] for row in cell if len(row["retrained"]) > 1]
        first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        line: dict[str, Any] = {
            "start": start,
            "density": density,
            "candidates": len(cell),
            "loss_spread": statistics.stdev(truth),
            "retrained_twice": len(pairs),
            "between_seeds": correlation(first, second) if len(pairs) > 3 else None,
            "seed_noise": statistics.mean(abs(a - b) for a, b in pairs) if pairs else None,
            "retrained_loss_of_best": min(truth),
            "retrained_loss_of_global": next(
                loss for loss, row in zip(truth, cell, strict=True) if row["kind"] == "global"
            ),
        }
        for column in ("objective", "look_ahead"):
            scores = [row[column] for row in cell]
            line[column] = {
                **correlation(scores, truth),
                "retrained_loss_of_chosen": truth[scores.index(min(scores))],
                "spread": statistics.stdev(scores),
            }
        lines.append(line)
    return lines


def correlation(a: Any, b: Any) -> dict[str, float]:
    """Spearman's rank correlation with the 5th and 95th percentile of 2000 bootstrap samples."""
    draw = random.Random(0)
    samples = []
    for _ in range(2000):
        picked = [draw.randrange(len(a)) for _ in a]
        if len({a[i] for i in picked}) > 1 and len({b[i] for i in picked}) > 1:
            samples.append(float(spearmanr([a[i] for i in picked], [b[i] for i in picked]).statistic))
    samples.sort()
    return {
        "spearman": float(spearmanr(a, b).statistic),
        "p05": samples[len(samples) // 20],
        "p95": samples[-len(samples) // 20],
    }


def load() -> dict[str, Any]:
    if RESULTS.exists():
        content: dict[str, Any] = json.loads(RESULTS.read_text())
        return content
    return {
        "what": "objective of a search against loss after retraining; see benchmarks/surrogate_order.py",
        "environment": describe_environment("cpu"),
        "date": time.strftime("%Y-%m-%d"),
        "options": {
            "model": MODEL,
            "image_size": SIZE,
            "dense_epochs": DENSE_EPOCHS,
            "stages": STAGES,
            "stage_epochs": STAGE_EPOCHS,
            "retrain_epochs": RETRAIN_EPOCHS,
            "look_ahead": LOOK_AHEAD,
            "lr": LR,
        },
        "summary": [],
        "rows": [],
    }


def save(content: dict[str, Any]) -> None:
    content["summary"] = summary(content["rows"])
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, RESULTS)


def show(lines: list[dict[str, Any]]) -> None:
    print(
        "start density n | at once | look-ahead | between seeds | chosen: at once, look-ahead, global, best"
    )
    for line in lines:
        first, second = line["objective"], line["look_ahead"]
        print(
            f"{line['start']:5} {line['density']:.2f} {line['candidates']:3} | {first['spearman']:+.2f} "
            f"({first['p05']:+.2f}..{first['p95']:+.2f}) | {second['spearman']:+.2f} "
            f"({second['p05']:+.2f}..{second['p95']:+.2f}) | {line['loss_spread']:.3f} | "
            f"{first['retrained_loss_of_chosen']:.3f} {second['retrained_loss_of_chosen']:.3f} "
            f"{line['retrained_loss_of_global']:.3f} {line['retrained_loss_of_best']:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("weights", nargs="?", type=Path)
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--near", type=int, default=4)
    parser.add_argument("--retrainings", type=int, default=1)
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--starts", nargs="+", choices=("step", "dense"), default=["step", "dense"])
    parser.add_argument("--theta-bound", type=float, default=0.5)
    parser.add_argument("--work", type=Path, default=Path("runs/surrogate_order"), help="networks between")
    parser.add_argument("--summary", action="store_true", help="only show what is stored")
    options = parser.parse_args()
    content = load()
    if not options.summary:
        if options.data is None or options.weights is None:
            parser.error("DATA and WEIGHTS are needed to measure")
        options.work.mkdir(parents=True, exist_ok=True)
        bench = Bench(options.data, options.weights, options.work, options.theta_bound)
        content["theta_bound"] = options.theta_bound
        done = {(row["start"], row["density"], row["index"]) for row in content["rows"]}
        for start in options.starts:
            for density in options.densities:
                for index in (*range(options.candidates), *range(NEAR, NEAR + options.near)):
                    if (start, density, index) in done:
                        continue
                    row = bench.row(start, density, index, options.retrainings)
                    content["rows"].append(row)
                    save(content)
                    losses = ", ".join(f"{run['loss']:.3f}" for run in row["retrained"])
                    print(
                        f"{start} {density:g} {index} ({row['kind']}): {row['objective']:.3f}, after "
                        f"{LOOK_AHEAD} steps {row['look_ahead']:.3f}, retrained {losses}; {row['seconds']} s",
                        flush=True,
                    )
    show(summary(content["rows"]))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    main()
