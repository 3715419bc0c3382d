"""Two scenarios side by side: what they declare differently, each number, and what caused it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mpsim.planner.text import counts_tokens
from mpsim.report.metrics import Report
from mpsim.spec.scenario import Scenario


@dataclass(frozen=True)
class Difference:
    """A number of two reports."""

    name: str  # its key in JSON, with the unit
    first: float | None
    second: float | None

    @property
    def change(self) -> float | None:
        """Second less first."""
        if self.first is None or self.second is None:
            return None
        return self.second - self.first

    @property
    def ratio(self) -> float | None:
        """Second over first."""
        return self.second / self.first if self.first and self.second is not None else None


@dataclass(frozen=True)
class Comparison:
    """Two reports, compared."""

    fields: tuple[tuple[str, Any, Any], ...]  # dotted path, value in the first, in the second
    numbers: tuple[Difference, ...]
    causes: tuple[Difference, ...]  # seconds of the step by cause; changes sum to the step's


def compare_reports(first: Report, second: Report) -> Comparison:
    """The differences of two reports, largest causes first."""
    names = dict.fromkeys([*first.waterfall, *second.waterfall])
    causes = [
        Difference(name, first.waterfall.get(name, 0.0), second.waterfall.get(name, 0.0))
        for name in names
    ]
    return Comparison(
        tuple(changed_fields(first.scenario, second.scenario)),
        tuple(_numbers(first, second)),
        tuple(sorted(causes, key=lambda one: -abs(one.change or 0.0))),
    )


def changed_fields(first: Scenario, second: Scenario) -> Iterator[tuple[str, Any, Any]]:
    """Fields that differ, by dotted path; names and descriptions apart."""
    left, right = (dict(_flat(one.model_dump(mode="json"))) for one in (first, second))
    for path in dict.fromkeys([*left, *right]):
        last = path.rsplit(".", 1)[-1]
        about = last in ("name", "description", "variant", "source", "price_source")
        if left.get(path) != right.get(path) and not about and not path.startswith("variants"):
            yield path, left.get(path), right.get(path)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):  # an empty one says what a missing one does
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _numbers(first: Report, second: Report) -> Iterator[Difference]:
    """Each number of both reports."""
    left, right = _figures(first), _figures(second)
    for name, value in left.items():
        yield Difference(name, value, right[name])


def _figures(report: Report) -> dict[str, float | None]:
    use = report.utilisation
    return {
        "step_time_s": report.step_time,
        "samples_per_s": report.samples_per_second,
        "tokens_per_s": report.tokens_per_second if counts_tokens(report.scenario) else None,
        "reserved_memory_bytes": report.fullest.reserved,
        "peak_memory_bytes": report.peak_memory,
        "idle_fraction": report.idle_fraction,
        "bubble_fraction": report.bubble_fraction,
        "model_flops_utilisation": use.six_n if use else None,
        "devices": float(report.scenario.cluster.devices),
        "stage_to_stage_bytes": report.traffic.measured,
        "exchanged_per_device_bytes": sum(report.traffic.exchanges.values()),
        "usd_per_step": report.usd_per_step,
    }
