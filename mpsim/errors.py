"""What can go wrong, as data: each error carries its attributes and builds its text from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import ClassVar


class MpsimError(Exception):
    """Anything mpsim can say to its user; the command line prints it and exits with the code."""

    exit_code: ClassVar[int] = 1


class ScenarioError(MpsimError):
    """What was written cannot be meant.

    Attributes:
        where: Dotted path of the field, or the file, that is wrong; empty if none is.
        what: What is wrong with it and what would be right.
    """

    exit_code = 2

    def __init__(self, where: str, what: str) -> None:
        """Keep the place and the complaint; the text is ``where: what``."""
        self.where, self.what = where, what
        super().__init__(f"{where}: {what}" if where else what)


class ScenarioErrors(ScenarioError):  # noqa: N818  (the plural of ScenarioError)
    """Several complaints about one scenario, collected and raised once.

    Attributes:
        problems: The single errors, in the order of the file.
    """

    def __init__(self, problems: Sequence[ScenarioError]) -> None:
        """Join the texts of the problems, one a line."""
        self.problems = tuple(problems)
        super().__init__("", "\n".join(str(problem) for problem in problems))


class ScheduleError(MpsimError):
    """An order that is incomplete, illegal or deadlocks.

    Attributes:
        what: What is wrong.
        grid: The order as text with a mark on the offending op; empty if no op is to blame.
        ops: Entries of the order that are to blame, by index; empty if none is.
    """

    exit_code = 2

    def __init__(self, what: str, grid: str = "", ops: Sequence[int] = ()) -> None:
        """Keep the complaint and the marked grid; the text is both."""
        self.what, self.grid, self.ops = what, grid, tuple(ops)
        super().__init__(f"{what}\n{grid}" if grid else what)


class InfeasibleError(MpsimError):
    """A well-formed scenario that does not fit on its devices.

    Attributes:
        need: Bytes needed on the fullest device.
        have: Bytes that the device offers.
        where: The device and stage.
        components: What the need is made of, bytes by name.
        remedies: The smallest single changes that would fit, as text.
    """

    exit_code = 3

    def __init__(
        self,
        what: str,
        *,
        need: float,
        have: float,
        where: str,
        components: Mapping[str, float],
        remedies: Sequence[str] = (),
    ) -> None:
        """Keep the figures; the text is ``what``, which states them with units."""
        self.need, self.have, self.where = need, have, where
        self.components, self.remedies = dict(components), tuple(remedies)
        super().__init__(what)


class CalibrationError(MpsimError):
    """Measurements that cannot be made, read or fitted."""

    exit_code = 4


_BEGINNING = 3
"""Letters from which on a name may be the beginning of another."""
_OFFERED = 8
"""Names that a hint offers at most."""
_CUTOFF = 0.7
"""Least share of letters in common (Ratcliff and Obershelp) with which a name is near."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A near-miss hint to append to a message: ``; did you mean 'pipeline'?`` or nothing.

    Names that begin with what was written come before those that look like it. An ending that all
    known names share, such as ``.yaml``, makes none of them near.

    >>> did_you_mean("pipelin", ["tensor", "pipeline"])
    "; did you mean 'pipeline'?"
    >>> did_you_mean("a100", ["a10", "a100-sxm-40gb", "a100-sxm-80gb"])
    "; did you mean 'a100-sxm-40gb' or 'a100-sxm-80gb'?"
    >>> did_you_mean("zzz", ["tensor"])
    ''
    """
    names = list(dict.fromkeys(known))
    close = [other for other in names if other.casefold().startswith(name.casefold())]
    if len(name) < _BEGINNING or not close:
        ending = _shared_ending(names) if len(names) > 1 else ""
        bare = {other.removesuffix(ending): other for other in names}
        near = get_close_matches(name.removesuffix(ending), list(bare), n=1, cutoff=_CUTOFF)
        close = [bare[other] for other in near]
    if not close:
        return ""
    quoted = [f"'{other}'" for other in close[:_OFFERED]]
    if len(close) > _OFFERED:
        return f"; did you mean {', '.join(quoted)}, …?"
    return f"; did you mean {' or '.join([', '.join(quoted[:-1]), quoted[-1]][len(quoted) < 2 :])}?"


def _shared_ending(names: Sequence[str]) -> str:
    """What all names have after their last dot, with the dot; empty if nothing."""
    endings = {"." + name.rpartition(".")[2] for name in names}
    return endings.pop() if len(endings) == 1 and "." in names[0] else ""
