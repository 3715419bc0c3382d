"""An independent timing of orders: the longest path by brute force, over the ops' text."""

from functools import cache

import pytest


class Timed:
    """When each op of some lists runs, found by trying what can run until nothing moves.

    Reads nothing but the text of the ops: ``2F0``, ``0F1.2``, fused pairs ``(0F3+3B1)``.
    """

    def __init__(self, lists, seconds, *, hop=0.0, fused=None):
        self.cells = [
            [[parse(text) for text in cell.strip("()").split("+")] for cell in row] for row in lists
        ]
        self.seconds, self.hop, self.fused = seconds, hop, fused
        self.home = {op: rank for rank, row in enumerate(self.cells) for cell in row for op in cell}
        self.stages = max(op[0] for op in self.home) + 1
        self.slices = max(op[3] for op in self.home) + 1
        self.ends = {}
        self.first = [None] * len(self.cells)
        self.free = [0.0] * len(self.cells)
        head = [0] * len(self.cells)
        while any(self.advance(rank, head) for rank in range(len(head))):
            pass
        self.stuck = any(at < len(row) for at, row in zip(head, self.cells, strict=True))

    def advance(self, rank, head):
        """Run what a device can; whether it ran anything."""
        start = head[rank]
        for cell in self.cells[rank][start:]:
            arrivals = [self.arrival(need, rank) for op in cell for need in self.needs(op)]
            if None in arrivals:
                break
            begin = max([self.free[rank], *arrivals])
            self.free[rank] = begin + self.length(cell)
            if self.first[rank] is None:
                self.first[rank] = begin
            self.ends |= dict.fromkeys(cell, self.free[rank])
            head[rank] += 1
        return head[rank] > start

    def arrival(self, need, rank):
        end = self.ends.get(need)
        return end if end is None or self.home[need] == rank else end + self.hop

    def length(self, cell):
        if len(cell) > 1 and self.fused is not None:
            return self.fused
        return sum(self.seconds[op[1]][op[0]] for op in cell)

    def backward(self, stage, microbatch, cut):
        whole = (stage, "B", microbatch, cut)
        return whole if whole in self.home else (stage, "I", microbatch, cut)

    def needs(self, op):
        stage, kind, microbatch, cut = op
        if kind == "W":
            return [(stage, "I", microbatch, cut)]
        if kind == "F":
            before = [(stage - 1, "F", microbatch, cut)] if stage else []
            return before + ([(stage, "F", microbatch, cut - 1)] if cut > 0 else [])
        needs = [(stage, "F", microbatch, cut)]
        if stage < self.stages - 1:
            needs.append(self.backward(stage + 1, microbatch, cut))
        if 0 <= cut < self.slices - 1:
            needs.append(self.backward(stage, microbatch, cut + 1))
        return needs

    @property
    def makespan(self):
        return max(self.free)

    @property
    def span(self):
        return max(end - begin for begin, end in zip(self.first, self.free, strict=True))

    @property
    def busy(self):
        return [sum(map(self.length, row)) for row in self.cells]

    @property
    def most_idle(self):
        return max(self.makespan - busy for busy in self.busy)

    def peaks(self, freed_at):
        peaks = []
        for row in self.cells:
            held = peak = 0
            for op in (op for cell in row for op in cell):
                held += (op[1] == "F") - (op[1] in ("B", freed_at))
                peak = max(peak, held)
            peaks.append(peak)
        return peaks


@cache
def parse(text):
    """(stage, kind, microbatch, slice) of an op's text."""
    at = next(index for index, letter in enumerate(text) if letter.isalpha())
    microbatch, _, cut = text[at + 1 :].partition(".")
    return int(text[:at]), text[at], int(microbatch), int(cut) if cut else -1


@pytest.fixture(scope="session")
def brute_force():
    """``brute_force(lists of op texts, f, i, w, hop=, fused=)`` → ``Timed``.

    Times are numbers, or lists by stage.
    """

    def timed(lists, forward, backward_input, weight, **options):
        stages = 1 + max(parse(cell.strip("()").split("+")[0])[0] for row in lists for cell in row)
        given = {"F": forward, "I": backward_input, "W": weight}
        seconds = {
            kind: value if isinstance(value, list) else [value] * stages
            for kind, value in given.items()
        }
        seconds["B"] = [sum(pair) for pair in zip(seconds["I"], seconds["W"], strict=True)]
        return Timed(lists, seconds, **options)

    return timed
