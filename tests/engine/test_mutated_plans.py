"""A seeded share of the plans and inputs of benchmarks/loader_fuzz.py."""

from __future__ import annotations

import random
from collections import Counter

from plan_mutations import input_case, plan_case


def test_mutated_plans() -> None:
    """Each is refused with a typed error or gives the reference's result."""
    run = plan_case()
    results = Counter(run(random.Random(case), case)[1] for case in range(300))
    assert results["refused"] > 150
    assert results["accepted, run"] > 10


def test_inputs_of_all_kinds() -> None:
    """Each is refused with a typed error or gives the network's result."""
    run = input_case()
    results = Counter(run(random.Random(case), case)[1] for case in range(200))
    assert min(results["refused"], results["run"]) > 40
