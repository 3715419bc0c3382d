"""One measured run beside its prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mpsim.validation.records import Record


@dataclass(frozen=True)
class Comparison:
    """One measured run beside its prediction.

    Attributes:
        record: The measured run.
        step_time: Predicted step time, s; None if there is no prediction.
        memory: Predicted peak memory of the kind that was measured, bytes (where nothing was, of
            what the driver would show); None where nothing was and ``fits`` is None.
        fits: Whether the prediction says that the run fits; None where that hangs on a microbatch
            or recomputation that the record does not state.
        parts: Seconds of the predicted step by cause; they sum to the step.
        memory_parts: Bytes at the predicted peak by component.
        assumptions: What the record leaves open and how it was filled.
        skipped: Why there is no prediction; None if there is one.
    """

    record: Record
    step_time: float | None = None
    memory: float | None = None
    fits: bool | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    memory_parts: Mapping[str, float] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    skipped: str | None = None

    @property
    def step_time_error(self) -> float | None:
        """Predicted over measured step time, minus one."""
        return _error(self.step_time, self.record.measured.step_time_s)

    @property
    def memory_error(self) -> float | None:
        """Predicted over measured peak memory, minus one; None where the run did not fit."""
        return _error(self.memory, self.record.measured.peak_memory_bytes)

    def as_json(self) -> dict[str, Any]:
        """The row for machines."""
        measured = self.record.measured
        return {
            "id": self.record.id,
            "source": self.record.source,
            "predicted_step_time_s": self.step_time,
            "measured_step_time_s": measured.step_time_s,
            "predicted_peak_memory_bytes": self.memory,
            "measured_peak_memory_bytes": measured.peak_memory_bytes,
            "skipped": self.skipped,
            "predicted_fits": self.fits,
            "measured_fits": not measured.oom,
            "assumptions": list(self.assumptions),
        }


def _error(predicted: float | None, measured: float | None) -> float | None:
    """Relative error, where both numbers exist."""
    return None if predicted is None or measured is None else predicted / measured - 1
