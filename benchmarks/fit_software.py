"""Refit the constants of ``mpsim/cost/software.py`` and ``clock.py`` on measured runs.

    python benchmarks/fit_software.py [FOLDER]

The rows: of each source at most 60, drawn with seed 1, at most half of its rows; runs whose
software and split are not known (nnscaler, nemo_launcher_a100) and those without a step time are
left out.
Coordinate descent on the mean over sources of the mean |log error|, an error clipped at 0.5. Prints
the constants, and the errors on the rows drawn and on all others.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mpsim.cost import clock, software
from mpsim.cost.compiled import compile_scenario
from mpsim.engine import longest_path
from mpsim.errors import MpsimError
from mpsim.spec.scenario import Scenario
from mpsim.validation.conversion import to_scenario
from mpsim.validation.records import Record, read_records

ROWS, SEED, CLIP = 60, 1, 0.5
LEFT_OUT = ("nnscaler", "nemo_launcher_a100")
SILICON = {
    "ampere": ("a100_sxm",),
    "hopper": ("h100_sxm",),
    "blackwell": ("b200_sxm", "b300_sxm", "gb200"),
}

Rows = list[tuple[Record, Scenario]]


def current() -> dict[str, float]:
    """The constants as they stand in the code."""
    found = {"clock.exponent": clock.EXPONENT, "host.sharpness": software.HOST_SHARPNESS}
    found |= {f"clock.{name}": clock.FULL_CLOCK[group[0]] for name, group in SILICON.items()}
    found["legacy_megatron.dispatches"] = software.SOFTWARE["legacy_megatron"].dispatches
    megatron, fsdp = software.SOFTWARE["megatron"], software.SOFTWARE["fsdp"]
    found["megatron.dispatches"] = megatron.dispatches
    found["megatron.experts"] = megatron.experts
    found["fsdp.attention"] = fsdp.attention
    found["fsdp.attention_since_hopper"] = fsdp.attention_since_hopper
    return found


def install(constants: Mapping[str, float]) -> None:
    """Put constants in place."""
    for path, value in constants.items():
        group, name = path.split(".")
        if path == "clock.exponent":
            clock.EXPONENT = value
        elif path == "host.sharpness":
            software.HOST_SHARPNESS = value
        elif group == "clock":
            clock.FULL_CLOCK.update(dict.fromkeys(SILICON[name], value))
        else:
            software.SOFTWARE[group] = replace(software.SOFTWARE[group], **{name: value})


def errors(rows: Rows) -> dict[str, list[float]]:
    """|log error| of each row by source."""
    found: dict[str, list[float]] = {}
    for record, scenario in rows:
        try:
            compiled = compile_scenario(scenario)
        except MpsimError:
            continue
        step = float(longest_path.run(compiled.graph, compiled.work).end.max())
        off = abs(float(np.log(step / (record.measured.step_time_s or step))))
        found.setdefault(record.source, []).append(off)
    return found


def loss(rows: Rows, constants: Mapping[str, float]) -> float:
    """Mean over sources of the mean clipped error."""
    install(constants)
    by_source = errors(rows).values()
    return float(np.mean([np.minimum(offs, CLIP).mean() for offs in by_source]))


def drawn(folder: Path) -> tuple[Rows, Rows]:
    """The rows to fit on, and all others."""
    generator = random.Random(SEED)
    by_source: dict[str, Rows] = {}
    for record in read_records([folder])[0]:
        if record.measured.step_time_s and record.source not in LEFT_OUT:
            by_source.setdefault(record.source, []).append((record, to_scenario(record).scenario))
    chosen: Rows = []
    for group in by_source.values():
        chosen += generator.sample(group, min(ROWS, len(group) // 2 + 1))
    used = {record.id for record, _ in chosen}
    return chosen, [row for group in by_source.values() for row in group if row[0].id not in used]


def descend(rows: Rows, constants: dict[str, float]) -> dict[str, float]:
    """One constant after the other, by ever smaller steps, while it helps."""
    best = loss(rows, constants)
    for step in (1.12, 1.06, 1.03):
        for name in list(constants):
            for factor in (step, 1 / step):
                while True:
                    tried = constants | {name: constants[name] * factor}
                    found = loss(rows, tried)
                    if found > best - 1e-5:
                        break
                    best, constants = found, tried
        print(f"step {step}: {best:.4f}", flush=True)
    return constants


def main() -> None:
    """Fit, and print constants and errors."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/measured")
    rows, others = drawn(folder)
    print(f"{len(rows)} rows drawn, {len(others)} others")
    constants = descend(rows, current())
    for name, value in constants.items():
        print(f"  {name} = {value:.4g}")
    install(constants)
    fitted, held = errors(rows), errors(others)
    for source in fitted:
        print(
            f"  {source}: {np.mean(fitted[source]):.3f} drawn, {np.mean(held.get(source, [0])):.3f}"
        )


if __name__ == "__main__":
    main()
