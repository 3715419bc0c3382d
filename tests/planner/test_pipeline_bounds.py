"""Rules of schedules against the orders themselves."""

import numpy as np
import pytest

from mpsim.errors import MpsimError
from mpsim.planner.pipeline_bounds import held_nbytes, placement, takes
from mpsim.schedule.ops import Kind
from mpsim.schedule.orders import SCHEDULES, make_order

NUMBERS = [
    (p, m, v) for p in (1, 2, 3, 4, 6) for m in (1, 2, 3, 4, 6, 8, 12, 16) for v in (1, 2, 3)
]


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_schedule_that_is_ruled_out_would_be_refused(name):
    for p, m, v in NUMBERS:
        said = bool(takes(name, p, np.array([m]), v)[0])
        try:
            make_order(name, num_devices=p, num_microbatches=m, num_chunks=v)
        except MpsimError:
            continue
        assert said, f"{name} takes p={p} m={m} v={v}"


@pytest.mark.parametrize("release", ["weight", "input"])
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_no_device_holds_less_than_is_said(name, release):
    rng = np.random.default_rng(1)
    for p, m, v in NUMBERS:
        try:
            order = make_order(name, num_devices=p, num_microbatches=m, num_chunks=v)
        except MpsimError:
            continue
        if SCHEDULES[name].slices or not order.synchronous:
            continue
        where = placement(SCHEDULES[name].placement, p, v)
        size = rng.random(p * v)
        free = Kind.W if release == "weight" else Kind.I
        for device in range(p):
            ops = slice(order.starts[device], order.starts[device + 1])
            kind, kept = order.kind[ops], size[order.stage[ops]]
            comes = np.where(kind == Kind.F, kept, 0.0)
            goes = np.where((kind == free) | (kind == Kind.B), kept, 0.0)
            most = (np.cumsum(comes) - (np.cumsum(goes) - goes)).max()
            held = np.unique(where.stages[device])
            said = held_nbytes(
                name, (device, p), np.array([m]), size[held][None, :], release=release
            )
            assert said[0] <= most + 1e-9, (name, p, m, v, device)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_placements_are_those_of_the_orders(name):
    schedule = SCHEDULES[name]
    chunks = schedule.default_chunks
    order = make_order(name, num_devices=4, num_microbatches=8, num_chunks=chunks)
    where = placement(schedule.placement, 4, chunks)
    for device in range(4):
        found = np.unique(order.stage[order.starts[device] : order.starts[device + 1]])
        assert found.tolist() == np.unique(where.stages[device]).tolist()
