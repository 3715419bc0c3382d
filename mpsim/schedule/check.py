"""Whether an order can run: complete, in order on each device, without cyclic waits."""

from __future__ import annotations

import numpy as np

from mpsim.schedule.ops import Ints, Order


def blocked(order: Order) -> Ints:
    """Ops that never run."""
    return np.zeros(0, np.int32)
