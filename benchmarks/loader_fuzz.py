"""Loads mutated model directories, runs mutated plans and inputs: typed error or right result, nothing else.

    python benchmarks/loader_fuzz.py                      # 100,000 directories, 10,000 plans, 10,000 inputs
    python benchmarks/loader_fuzz.py --directories 5000 --plans 0 --inputs 0 --seed 7
    python benchmarks/loader_fuzz.py --replay directories 26138   # one case of a seed, with its traceback

The cases are those of tests/sparse/mutations.py and tests/engine/plan_mutations.py, of which the suite runs
a share. They run in child processes, so that a crash or a hang costs one case and is counted. A case is a
finding if the child dies, if it takes more than LIMIT_S seconds of processor time, if anything but the typed
error comes out, or if what loads does not give the result of the reference executor; so is a chunk of cases
that raises the resident set of its process by more than LIMIT_BYTES. The summary goes to
benchmarks/results/loader_fuzz.json, with at least 10,000 cases of each; the exit code is 1 with findings.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from finepruning.bench.machine import describe

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT.parent / "tests" / folder) for folder in ("sparse", "engine")]

import fuzz_models  # noqa: E402
import mutations  # noqa: E402
import plan_mutations  # noqa: E402

RESULTS = ROOT / "results" / "loader_fuzz.json"
LIMIT_S = 10
LIMIT_BYTES = 1 << 30
CHUNK = 2000

Case = Callable[[random.Random, int], tuple[str, str]]


def directory_case(folder: Path) -> Case:
    """Mutates one model directory and loads it; returns the kind of mutation and the outcome."""
    bases = fuzz_models.write_all(folder / "models")
    models = [mutations.Model.read(base) for base in bases]
    kinds = [*mutations.MUTATIONS, "files"]

    def run(chance: random.Random, case: int) -> tuple[str, str]:
        kind = kinds[case % len(kinds)]
        index = chance.randrange(len(models))
        path = folder / f"case-{os.getpid()}"
        if kind == "files":
            models[index].write(path)
            path = mutations.tamper(chance, path, bases[index])
        else:
            mutations.MUTATIONS[kind](chance, models[index]).write(path)
        return kind, fuzz_models.judge(path)

    return run


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(case: Case, seed: str, cases: range, log: Path) -> None:
    """Run the cases; the log holds a line for each when it begins and one when it is over."""
    worst_s, counts = 0.0, Counter[str]()
    before = peak_bytes()
    with log.open("w", buffering=1) as file:
        for number in cases:
            print(json.dumps({"begin": number}), file=file)
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)  # ends the process
            start = time.process_time()
            try:
                kind, outcome = case(random.Random(f"{seed} {number}"), number)
                counts[f"{kind}: {outcome}"] += 1
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error)[:200]}"
                print(json.dumps({"finding": reason, "case": number}), file=file)
            signal.setitimer(signal.ITIMER_PROF, 0)
            worst_s = max(worst_s, time.process_time() - start)
        summary = {"counts": counts, "worst_s": worst_s, "grown": peak_bytes() - before}
        print(json.dumps(summary), file=file)


def sweep(case: Case, name: str, seed: int, total: int, folder: Path) -> dict[str, Any]:
    """Run all cases in child processes, one chunk after the other."""
    counts, findings, worst_s, grown, first, printed = Counter[str](), [], 0.0, 0, 0, 0
    start = time.perf_counter()
    log = folder / "log"
    while first < total:
        cases = range(first, min(first + CHUNK, total))
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            status = 1
            try:
                child(case, f"{name} {seed}", cases, log)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        findings += [line for line in lines if "finding" in line]
        first = cases.stop
        if status:
            first = next(line["begin"] for line in reversed(lines) if "begin" in line) + 1
            findings.append({"finding": f"the process ended with status {status}", "case": first - 1})
        else:
            counts.update(lines[-1]["counts"])
            worst_s, grown = max(worst_s, lines[-1]["worst_s"]), max(grown, lines[-1]["grown"])
            if lines[-1]["grown"] > LIMIT_BYTES:
                findings.append({"finding": f"{lines[-1]['grown']} bytes more", "case": cases.start})
        for finding in findings[printed:]:
            print(f"{name} {finding['case']}: {finding['finding']}")
        printed = len(findings)
        print(f"{name}: {first} of {total}, {printed} findings", flush=True)
    outcomes = Counter[str]()
    for key, count in counts.items():
        outcomes[key.split(": ")[1]] += count
    return {
        "cases": total,
        "findings": findings,
        "outcomes": dict(outcomes),
        "longest_case_cpu_s": round(worst_s, 3),
        "peak_growth_mib": round(grown / 2**20, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "by_kind": dict(sorted(counts.items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directories", type=int, default=100_000)
    parser.add_argument("--plans", type=int, default=10_000)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", nargs=2, metavar=("WHAT", "CASE"), help="run one case in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases: dict[str, Case] = {
            "directories": directory_case(folder),
            "plans": plan_mutations.plan_case(),
            "inputs": plan_mutations.input_case(),
        }
        if options.replay:
            what, number = options.replay[0], int(options.replay[1])
            try:
                print(cases[what](random.Random(f"{what} {options.seed} {number}"), number))
            except Exception:
                traceback.print_exc()
            return
        totals = {what: getattr(options, what) for what in cases}
        context = describe(torch.device("cpu"), 1)
        parts = {
            what: sweep(cases[what], what, options.seed, total, folder)
            for what, total in totals.items()
            if total
        }
    findings = sum(len(part["findings"]) for part in parts.values())
    if all(totals[what] >= 10_000 for what in totals):
        RESULTS.write_text(json.dumps({**context, "seed": options.seed, **parts}, indent=1) + "\n")
    for what, part in parts.items():
        print(what, json.dumps({key: part[key] for key in part if key != "by_kind"}))
    raise SystemExit(findings > 0)


if __name__ == "__main__":
    main()
