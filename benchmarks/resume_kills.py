"""SIGKILL at random moments of a small run, --resume, and the model files compared byte for byte.

    python benchmarks/resume_kills.py --kills 200

The run has every part of a real one (dense fine-tuning, two searches, two rounds with splicing, a final phase
with a weight average, the export), on the CPU with one thread. Each run is killed up to eight times and
resumed until it ends; then its model files are compared with those of a run that nothing disturbed. Saved
trials and epochs may never grow fewer by a kill. Writes benchmarks/results/resume_kills.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from finepruning.environment import describe_environment

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "resume_kills.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        script = ROOT.parent / "tests" / "kill_runs.py"
        command = [sys.executable, "-W", "ignore", str(script), folder, str(options.kills), str(options.seed)]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    phases = Counter(kill["phase"] for kill in result["kills"])
    content = {
        "what": "kills by what the run would do next, and runs whose files equal the undisturbed run's",
        "date": time.strftime("%Y-%m-%d"),
        "seed": options.seed,
        "seconds": round(time.monotonic() - started, 1),
        "kills": len(result["kills"]),
        "kills_in": dict(phases),
        "runs": len(result["equal"]),
        "runs_equal": sum(result["equal"]),
        "environment": describe_environment("cpu"),
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(
        f"{content['kills']} kills in {dict(phases)}; {content['runs_equal']} of {content['runs']} runs equal"
    )


if __name__ == "__main__":
    main()
