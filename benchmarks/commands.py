"""Speed of the commands and of one prediction: ``python benchmarks/commands.py [--json]``.

Whole processes are timed from start to end, best and median of several; the baseline of each is a
Python that imports numpy, in the same run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from mpsim.cost.compiled import compile_scenario
from mpsim.schedule.compiled import warm
from mpsim.simulation import simulate, step_seconds
from mpsim.spec.reader import load

COMMANDS = {
    "python -c 'import numpy'": ["-c", "import numpy"],
    "mpsim --help": ["-m", "mpsim", "--help"],
    "mpsim scenario gpt3_fp32.yaml": ["-m", "mpsim", "scenario", "gpt3_fp32.yaml"],
    "mpsim schedule --compare all, p=16, m=128": [
        *("-m", "mpsim", "schedule", "--compare", "all"),
        *("--stages", "16", "--microbatches", "128"),
    ],
}
"""Name → arguments of the Python interpreter."""


def seconds_of(function: Callable[[], object], times: int) -> list[float]:
    """Wall seconds of each of several calls, after one that is not counted."""
    function()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        function()
        found.append(time.perf_counter() - begin)
    return found


def process(arguments: Sequence[str]) -> None:
    """Run the interpreter and wait for it."""
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def main() -> None:
    """Print the table, or JSON."""
    rows = {name: seconds_of(lambda a=args: process(a), 5) for name, args in COMMANDS.items()}
    warm()
    gpt3 = load(
        "gpt3_bf16.yaml",
        ["cluster.nodes=128", "plan.data=8", "plan.pipeline=16", "training.global_batch=1536"],
    )
    rows["one prediction, GPT-3 on 1024 devices, warm"] = seconds_of(
        lambda: step_seconds(compile_scenario(gpt3)), 50
    )
    rows["the same with its whole report"] = seconds_of(lambda: simulate(gpt3, engine="fast"), 20)
    if "--json" in sys.argv:
        print(json.dumps({name: statistics.median(found) for name, found in rows.items()}))
        return
    for name, found in rows.items():
        print(f"{name:48} {statistics.median(found):8.4f} s median {min(found):8.4f} s best")


if __name__ == "__main__":
    main()
