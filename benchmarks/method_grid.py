"""Joint search and pruning against post-hoc recipes, at equal epochs, data, seeds and training options.

    python benchmarks/method_grid.py DATA WEIGHTS                      # the whole grid, best rows first
    python benchmarks/method_grid.py DATA WEIGHTS --methods joint gradual-global --densities 0.05 --seeds 0 1
    python benchmarks/method_grid.py --dry-run                         # lists the rows and which are missing

DATA is the UC Merced folder (train/ and test/), WEIGHTS a SqueezeNet 1.1 trunk. Rows are added to
benchmarks/results/method_ucmerced.json as they come; the command can be stopped at any moment and
continues in the middle of a row when it is given again. ``--jobs N`` measures N rows at a time, each with its
share of the threads. Dense fine-tuning depends on the seed alone and is done once a seed; its epochs and
seconds count in each row. ``trials`` holds, for each search, the loss of the first trial (global magnitude)
and of the best, ``objectives`` that of every trial, by round. A run whose training came to no number is a
row, too: ``ended`` says how, and there is no accuracy.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from finepruning.compress import compress
from finepruning.config import CompressConfig
from finepruning.environment import describe_environment
from finepruning.errors import TrainingError

RESULTS = Path(__file__).parent / "results" / "method_ucmerced.json"
DENSITIES = (0.10, 0.05, 0.02)
SEEDS = (0, 1, 2)
ABLATION_DENSITY = 0.02  # at higher densities the options differ by less than a seed does
DENSE_EPOCHS, PRUNE_EPOCHS = 12, 24
ALLOCATIONS = ("global", "lamp", "erk", "uniform")

COMMON: dict[str, Any] = {
    "model": "squeezenet1_1",
    "image_size": 128,
    "augmentation": "dihedral",
    "batch_size": 16,
    "lr": 0.01,
    "prune_lr": 0.03,
    "max_grad_norm": 1.0,
    "prune_max_grad_norm": 3.0,
    "prune_dropout": 0.0,
    "theta_bound": 0.5,
    "device": "cpu",
}
GRADUAL: dict[str, Any] = {
    "density_schedule": "cubic",
    "lr_schedule": "hold",
    "rounds": 12,
    "epochs": 1,
    "final_epochs": 12,
    "splicing": False,
}
ITERATIVE: dict[str, Any] = {
    "density_schedule": "geometric",
    "lr_schedule": "cosine",
    "rounds": 4,
    "epochs": 4,
    "final_epochs": 8,
    "splicing": False,
}
ONE_SHOT: dict[str, Any] = {
    "prune_lr": 0.01,  # pruned at once, the network does not survive the rate of the others
    "lr_schedule": "cosine",
    "rounds": 1,
    "epochs": 1,
    "final_epochs": 23,
    "splicing": False,
}


def methods() -> dict[str, dict[str, Any]]:
    """What each method adds to `COMMON`; those with the most to tell come first."""
    table: dict[str, dict[str, Any]] = {
        "joint": {**GRADUAL, "search": "budget", "trials": 8, "look_ahead": 10}
    }
    for allocation in ALLOCATIONS:
        for name, schedule in (("gradual", GRADUAL), ("iterative", ITERATIVE), ("one-shot", ONE_SHOT)):
            table[f"{name}-{allocation}"] = {**schedule, "search": "none", "allocation": allocation}
    table["gradual-fisher"] = {**GRADUAL, "search": "none", "allocation": "global", "saliency": "fisher"}
    table["joint-at-once"] = {**table["joint"], "look_ahead": 0}
    table["random"] = {**table["joint"], "search": "random"}
    table["paper"] = {**table["joint"], "search": "paper"}
    table["dns"] = {**GRADUAL, "search": "none", "splicing": True}
    table["dense"] = {
        "search": "none",
        "rounds": 1,
        "epochs": 1,
        "final_epochs": PRUNE_EPOCHS - 1,
        "prune_lr": 0.01,
    }
    return table


def ablations() -> dict[str, dict[str, Any]]:
    """The joint method with one option changed; measured with the first seed at `ABLATION_DENSITY`."""
    changes: dict[str, dict[str, Any]] = {
        "fisher": {"saliency": "fisher"},
        "splicing": {"splicing": True},
        "ema": {"ema": 0.99},
        "distillation": {"distillation": 0.5, "temperature": 2.0},
        "label-smoothing": {"label_smoothing": 0.1},
        "l2-sp": {"l2_sp": 0.001},
        "rise": {"lr_schedule": "rise"},
        "dropout": {"prune_dropout": None},
        "limit-1": {"prune_max_grad_norm": 1.0},
        "no-limit": {"prune_max_grad_norm": 0.0},
        "geometric": {"density_schedule": "geometric"},
        "cosine": {"lr_schedule": "cosine"},
        "third-rate": {"prune_lr": 0.01},
        "double-rate": {"prune_lr": 0.06},
        "batch-32": {"batch_size": 32},
        "theta-1": {"theta_bound": 1.0},
        "adam": {"optimizer": "adam", "prune_lr": 0.0005, "prune_max_grad_norm": 0.0},
        "wise-ft": {"wise_ft": True},
        "adversarial-2": {"adversarial_epsilon": 2.0, "adversarial_steps": 3},
    }
    joint = methods()["joint"]
    return {f"joint+{name}": {**joint, **change} for name, change in changes.items()}


def options_of(name: str) -> dict[str, Any]:
    """What the method adds to `COMMON`."""
    return {**methods(), **ablations()}[name]


REPEATED = ("joint", "gradual-global", "gradual-lamp", "iterative-global", "gradual-fisher")
"""Methods with all seeds; the others have the first one."""


def planned(
    names: list[str] | None, densities: list[float], seeds: list[int]
) -> list[tuple[str, float, int]]:
    """(method, density, seed) of every row, in the order in which they are measured."""
    rows = []
    for seed in seeds:
        for name in [*REPEATED, *(name for name in methods() if name not in REPEATED)]:
            if (name not in names) if names else (name not in REPEATED and seed != seeds[0]):
                continue
            rows += [(name, density, seed) for density in ([1.0] if name == "dense" else densities)]
    for name in ablations():
        if names is None:
            rows.append((name, ABLATION_DENSITY, seeds[0]))
        elif name in names:
            rows += [(name, density, seed) for seed in seeds for density in densities]
    if names is None:  # the repeated methods of every seed come before the single rows of the first
        rows.sort(key=lambda row: (row[0] not in REPEATED, row[0] in ablations(), row[2]))
    return rows


def start(seed: int, options: argparse.Namespace) -> tuple[Path, float]:
    """Weights after dense fine-tuning with this seed, and the seconds that took."""
    dense = {"search": "none", "rounds": 1, "epochs": 1, "final_epochs": 0, "target_density": 1.0}
    given = {**dense, "weights": str(options.weights), "dense_epochs": DENSE_EPOCHS}
    report = finished(options.work / f"start-s{seed}", seed, given, options)
    return options.work / f"start-s{seed}" / "checkpoints" / "dense.safetensors", report["seconds"]["dense"]


def finished(out: Path, seed: int, given: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The report of the run in ``out``: made, gone on with, or read."""
    resume = out if (out / "config.yaml").exists() else None
    config = CompressConfig(**{**COMMON, **given, "data": str(options.data), "seed": seed, "out": str(out)})
    return compress(config, resume=resume)


def objectives(run: Path) -> list[list[float]]:
    """What the search minimised, of every trial of every round; empty without a search."""
    trials = run / "trials.jsonl"
    if not trials.exists():
        return []
    rounds: dict[int, list[float]] = {}
    for line in trials.read_text().splitlines():
        trial = json.loads(line)
        rounds.setdefault(trial["round"], []).append(round(trial["objective"], 5))
    return list(rounds.values())


def row_of(
    name: str, density: float, seed: int, report: dict[str, Any], run: Path, dense_seconds: float
) -> dict[str, Any]:
    """The raw row of a finished run, the dense fine-tuning that it started from included."""
    return {
        "method": name,
        "density": density,
        "seed": seed,
        "accuracy": report["accuracy"],
        "dense_accuracy": report["dense_accuracy"],
        "validation_loss": report["history"][-1]["validation_loss"],
        "epochs": DENSE_EPOCHS + len(report["history"]),
        "seconds": round(dense_seconds + report["seconds"]["total"], 1),
        "search_seconds": round(report["seconds"]["search"], 1),
        "date": time.strftime("%Y-%m-%d"),
        "processor": report["environment"]["processor"],
        "threads": report["environment"]["threads"],
        "torch": report["environment"]["packages"]["torch"],
        "trials": [[entry["baseline_loss"], entry["best_loss"]] for entry in report["rounds"]],
        "objectives": objectives(run),
        "options": options_of(name),
        **{key: report[key] for key in ("robust", "wise_ft_alpha") if report.get(key) is not None},
    }


def row_without_end(name: str, density: float, seed: int, error: TrainingError) -> dict[str, Any]:
    """The row of a run that training could not finish."""
    return {
        "method": name,
        "density": density,
        "seed": seed,
        "accuracy": None,
        "ended": str(error),
        "date": time.strftime("%Y-%m-%d"),
        "options": options_of(name),
    }


def load() -> dict[str, Any]:
    if RESULTS.exists():
        content: dict[str, Any] = json.loads(RESULTS.read_text())
        return content
    return {
        "what": "UC Merced test accuracy, SqueezeNet 1.1 trunk, 128 px; see benchmarks/method_grid.py",
        "common": COMMON,
        "dense_epochs": DENSE_EPOCHS,
        "rows": [],
    }


def save(content: dict[str, Any]) -> None:
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("weights", nargs="?", type=Path)
    parser.add_argument("--methods", nargs="+", choices=[*methods(), *ablations()], metavar="METHOD")
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--work", type=Path, default=Path("runs/method_grid"), help="run directories")
    parser.add_argument("--jobs", type=int, default=1, help="rows measured at a time")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    content = load()
    done = {(row["method"], row["density"], row["seed"]) for row in content["rows"]}
    rows = planned(options.methods, options.densities, options.seeds)
    print(f"{len(rows)} rows, {sum(row in done for row in rows)} of them measured already")
    if options.dry_run:
        for row in rows:
            print(*row, "measured" if row in done else "missing")
        return
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; it must be at least 1")
    if options.data is None or options.weights is None:
        parser.error("DATA and WEIGHTS are needed to measure")
    threads = max(1, torch.get_num_threads() // options.jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes to come
    print(json.dumps(describe_environment("cpu")))
    missing = [row for row in rows if row not in done]
    # Leaving the block ends the workers at once, also on Ctrl-C: a run goes on from its last step.
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        seeds = sorted({seed for _, _, seed in missing})
        pool.starmap(start, [(seed, options) for seed in seeds], chunksize=1)
        failed = 0
        for row, took in pool.imap_unordered(functools.partial(measured, options), missing):
            if isinstance(row, str):
                failed += 1
                print(row, flush=True)
                continue
            content["rows"].append(row)
            save(content)
            label = f"{row['method']} {row['density']:g} seed {row['seed']}"
            outcome = row["ended"] if "ended" in row else f"test {row['accuracy']:.4f}"
            print(f"{label}: {outcome}, {took:.0f} s", flush=True)
    if failed:
        raise SystemExit(
            f"{failed} rows failed; the errors stand above, and the command tries those rows again"
        )


def measured(
    options: argparse.Namespace, planned_row: tuple[str, float, int]
) -> tuple[dict[str, Any] | str, float]:
    """The row, or why there is none, and the seconds that it took just now."""
    name, density, seed = planned_row
    started = time.monotonic()
    weights, dense_seconds = start(seed, options)
    given = {**options_of(name), "weights": str(weights), "dense_epochs": 0, "target_density": density}
    run = options.work / f"{name}-{density:g}-s{seed}"
    try:
        report = finished(run, seed, given, options)
    except TrainingError as error:
        return row_without_end(name, density, seed, error), time.monotonic() - started
    except Exception:
        return f"{name} {density:g} seed {seed} failed:\n{traceback.format_exc()}", time.monotonic() - started
    return row_of(name, density, seed, report, run, dense_seconds), time.monotonic() - started


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    main()
