"""A report as `compress` returns it, in small."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def report() -> dict[str, Any]:
    rounds = [
        {"round": 1, "budget": 0.32, "density": 0.32, "trials": 3, "search": "budget", "best_loss": 0.31}
        | {"baseline_loss": 0.35, "validation_loss": 0.2, "validation_accuracy": 0.94, "spliced": 12},
        {"round": 2, "budget": 0.1, "density": 0.1, "trials": 3, "search": "budget", "best_loss": 0.8}
        | {"baseline_loss": 0.9, "validation_loss": 0.3, "validation_accuracy": 0.91, "spliced": 7},
    ]
    trials = [
        {
            "density": density,
            "loss": 1.0 - density + 0.05 * i,
            "accuracy": 0.6 + density - 0.05 * i,
            "kind": "trial",
        }
        for density in (0.32, 0.1)
        for i in range(3)
    ]
    return {
        "name": "alexnet-20250101-120000",
        "date": "2025-01-01T12:00:00+0000",
        "model": "alexnet",
        "data": "photos",
        "seed": 3,
        "config": {"target_density": 0.1, "search": "budget", "out": "runs/alexnet-20250101-120000"},
        "environment": {"python": "3.11.7", "torch": "2.14.1"},
        "dense_accuracy": 0.962,
        "dense_validation_loss": 0.15,
        "accuracy": 0.948,
        "sparse_accuracy": 0.948,
        "density": 0.1,
        "target_density": 0.1,
        "bytes_dense": 4_000_000,
        "bytes_sparse": 640_000,
        "classes": ["field", "forest", "water"],
        "images": {"train": 160, "validation": 40, "test": 50},
        "layers": [
            {"name": "features.0", "shape": [8, 3, 3, 3], "size": 216, "nnz": 108, "density": 0.5},
            {"name": "classifier.1", "shape": [3, 800], "size": 2400, "nnz": 154, "density": 154 / 2400},
        ],
        "seconds": {"dense": 61.0, "search": 8.5, "fine_tune": 90.0, "export": 2.0, "total": 161.5},
        "rounds": rounds,
        "pareto": [
            {"density": 1.0, "loss": 0.15, "accuracy": 0.96, "kind": "dense"},
            *trials,
            {"density": 0.32, "loss": 0.2, "accuracy": 0.94, "kind": "round"},
            {"density": 0.1, "loss": 0.3, "accuracy": 0.91, "kind": "round"},
            {"density": 0.1, "loss": 0.25, "accuracy": 0.93, "kind": "final"},
        ],
        "history": [],
    }
