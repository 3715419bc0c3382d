"""Pieces joined into a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpsim.workload.layers import Exchange, Kernel, Layer
from mpsim.workload.pieces import Piece, Steps


def join(
    name: str, kind: str, pieces: Sequence[Piece], *, output: float, workspace: float
) -> Layer:
    """One layer from its pieces; exchanges learn what share of the kernels they may run beside."""
    forward = tuple(step for piece in pieces for step in piece.forward)
    backward = tuple(step for piece in reversed(pieces) for step in piece.backward_input)
    weights = tuple(step for piece in reversed(pieces) for step in piece.backward_weight)
    of_forward, of_backward = _flops_by_name(forward), _flops_by_name((*backward, *weights))
    return Layer(
        name,
        kind,
        sum(piece.parameters for piece in pieces),
        _hidden(forward, of_forward),
        _hidden(backward, of_backward),
        weights,
        tuple(saved for piece in pieces for saved in piece.saved),
        output,
        workspace,
        sum(piece.expert_parameters for piece in pieces),
    )


def _flops_by_name(steps: Steps) -> dict[str, float]:
    flops: dict[str, float] = {}
    for step in steps:
        if isinstance(step, Kernel) and step.kind != "memory":
            flops[step.name] = flops.get(step.name, 0.0) + step.flops * step.count
    return flops


def _hidden(steps: Steps, flops: dict[str, float]) -> Steps:
    """Exchanges with ``hidden_behind``: the FLOP of the kernel beside over those of all."""
    total = sum(flops.values())
    flops = {**flops, "*": total}
    if not total:
        return steps
    return tuple(
        replace(step, hidden_behind=flops.get(step.beside, 0.0) / total)
        if isinstance(step, Exchange) and step.beside
        else step
        for step in steps
    )
