"""What the free text of a record names, unless it says that it was not so."""

from __future__ import annotations

import re

from mpsim.validation.records import Record

_CLAUSE = re.compile(r"[.;:,()\n]\s")
_DENIED_BEFORE = re.compile(
    r"\b(no|not|non|without|never|vs|versus|than|unlike|against|compared (with|to)|instead of)\b",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"\b(off|disabled|unused|not used|false)\b|(?<![\d.])0(\.0)?(?![\d.])", re.IGNORECASE
)
_REACH = 4
"""Words before and after a name among which a denial of it may stand."""


def says(name: re.Pattern[str], text: str) -> bool:
    """Whether a text has a name in a clause that does not deny it.

    >>> says(re.compile("DeepEP"), "dispatcher DeepEP, overlap off")
    True
    >>> says(re.compile("DeepEP"), "DeepEP off"), says(re.compile("DeepEP"), "no DeepEP")
    (False, False)
    """
    return any(not _denied(text, found) for found in name.finditer(text))


def last_said(name: re.Pattern[str], text: str) -> str | None:
    """The last match of a name in a clause that does not deny it."""
    found = [match[0] for match in name.finditer(text) if not _denied(text, match)]
    return found[-1] if found else None


def names(name: re.Pattern[str], record: Record) -> bool:
    """Whether the provenance or the notes of a record have a name and do not deny it."""
    return says(name, f"{record.where or ''}. {record.notes}")


def _denied(text: str, found: re.Match[str]) -> bool:
    before = _CLAUSE.split(text[: found.start()])[-1].split()[-_REACH:]
    after = _CLAUSE.split(text[found.end() :])[0].split()[:_REACH]
    return bool(_DENIED_BEFORE.search(" ".join(before)) or _DENIED_AFTER.search(" ".join(after)))
