"""zb_auto against the exact optimum, by mixed-integer programming (HiGHS)."""

from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from mpsim.schedule.orders import OpTimes, make_order
from mpsim.schedule.text import cell_text, rows_of

HELD = {"F": 1.0, "I": -0.5, "W": -0.5}
"""Change of the activations held, as ``zb_auto`` counts by default."""


class Program:
    """Ends of ops, who goes first of each pair that is not ordered, and the longest span."""

    def __init__(self, p, m, seconds):
        self.p, self.m, self.seconds = p, m, seconds
        self.ops = [(r, kind, k) for r in range(p) for kind in "FIW" for k in range(m)]
        self.end = {op: column for column, op in enumerate(self.ops)}
        free = [
            pair
            for pair in combinations(self.ops, 2)
            if pair[0][0] == pair[1][0] and not before(*pair) and not before(*reversed(pair))
        ]
        self.first = {pair: len(self.ops) + at for at, pair in enumerate(free)}
        self.span = len(self.ops) + len(free)
        self.rows, self.lows = [], []

    def at_least(self, coefficients, low):
        row = np.zeros(self.span + 1)
        for column, value in coefficients:
            row[column] += value
        self.rows.append(row)
        self.lows.append(low)

    def order(self, hop):
        """Each op after what it needs, and after or before each of its device."""
        for op in self.ops:
            seconds = self.seconds[op[1]]
            self.at_least([(self.end[op], 1)], seconds)
            for need, gap in needs(op, self.p, hop):
                self.at_least([(self.end[op], 1), (self.end[need], -1)], seconds + gap)
        horizon = 3 * self.p * self.m * (sum(self.seconds.values()) + hop)
        for (one, other), first in self.first.items():  # 1: ``one`` goes first
            ends = [(self.end[other], 1), (self.end[one], -1), (first, -horizon)]
            self.at_least(ends, self.seconds[other[1]] - horizon)
            ends = [(self.end[one], 1), (self.end[other], -1), (first, horizon)]
            self.at_least(ends, self.seconds[one[1]])

    def hold(self, limit):
        """What is held after each op: itself and all that goes before it."""
        for op in self.ops:
            known, unknown = HELD[op[1]], []
            for other in self.ops:
                if (other, op) in self.first:
                    unknown.append((self.first[other, op], -HELD[other[1]]))
                elif (op, other) in self.first:
                    known += HELD[other[1]]
                    unknown.append((self.first[op, other], HELD[other[1]]))
                elif other[0] == op[0] and before(other, op):
                    known += HELD[other[1]]
            self.at_least(unknown, known - limit)

    def least_span(self):
        for r in range(self.p):
            ends = [(self.span, 1), (self.end[r, "W", self.m - 1], -1), (self.end[r, "F", 0], 1)]
            self.at_least(ends, self.seconds["F"])
        binary = np.zeros(self.span + 1)
        binary[len(self.ops) : self.span] = 1
        goal = np.zeros(self.span + 1)
        goal[-1] = 1
        found = milp(
            goal,
            constraints=LinearConstraint(np.array(self.rows), np.array(self.lows)),
            bounds=Bounds(np.zeros(self.span + 1), np.where(binary == 1, 1.0, np.inf)),
            integrality=binary,
        )
        assert found.success
        return found.fun


def before(one, other):
    """Whether an op always goes before another of its device: of its kind or its microbatch."""
    kinds = "FIW"
    return one != other and kinds.index(one[1]) <= kinds.index(other[1]) and one[2] <= other[2]


def needs(op, p, hop):
    """(op, gap) of what an op waits for."""
    r, kind, k = op
    if k:
        yield (r, kind, k - 1), 0
    if kind == "F" and r:
        yield (r - 1, "F", k), hop
    if kind == "I":
        yield (r, "F", k), 0
        if r < p - 1:
            yield (r + 1, "I", k), hop
    if kind == "W":
        yield (r, "I", k), 0


@pytest.mark.parametrize(
    ("p", "m", "times", "limit"),
    [
        (2, 2, (1, 1, 1, 0), 2),
        (2, 3, (1, 1, 1, 0), 2),
        (2, 3, (1, 1, 1, 0), 3),
        (2, 3, (5, 6, 4, 1), 2),
        (2, 3, (4, 7, 3, 0), 3),
        (3, 2, (5, 6, 4, 0), 3),
        (3, 3, (1, 1, 1, 0), 3),
    ],
)
def test_zb_auto_is_within_one_percent_of_the_optimum_and_its_limit(
    brute_force, p, m, times, limit
):
    f, i, w, c = times
    order = make_order(
        "zb_auto",
        num_devices=p,
        num_microbatches=m,
        times=OpTimes(f, i, w, hop=c),
        memory_limit=limit,
    )
    lists = [[cell_text(cell) for cell in row] for row in rows_of(order)]
    span = brute_force(lists, f, i, w, hop=c).span
    program = Program(p, m, {"F": f, "I": i, "W": w})
    program.order(c)
    program.hold(limit)
    best = program.least_span()
    assert best - 1e-6 <= span <= 1.01 * best
    for row in lists:
        held = np.cumsum([HELD[text.lstrip("0123456789")[0]] for text in row])
        assert held.max() <= limit
