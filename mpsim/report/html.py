"""The report as one HTML page that needs nothing else: facts, tables, pictures inside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mpsim.report.ledger import ledger, ledger_table
from mpsim.report.metrics import Report
from mpsim.report.plot import pictures
from mpsim.report.text import comparison, sections

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1150px;
       margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 2.5rem 0 .5rem; }
h2, caption { font-size: 1.05rem; font-weight: 600; text-align: left; margin: 1.6rem 0 .3rem;
              white-space: nowrap; }
.headline { border-left: .35rem solid #4c78a8; padding: .3rem 1rem; background: #f4f6f9; }
.headline p { margin: .2rem 0; font-size: 1.1rem; }
.headline p:first-child { font-weight: 600; }
.no { border-color: #c0392b; }
table { border-collapse: collapse; margin: 1.2rem 0; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #999; font-weight: 500; color: #555; }
.right { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: inline-block; height: .7rem; background: #4c78a8; }
.plain td:first-child { color: #777; white-space: nowrap; padding-right: 1.2rem; }
p.note { color: #666; margin: .2rem 0; }
svg { width: 100%; height: auto; }
"""


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(reports: Sequence[Report]) -> str:
    """One page of the reports: variants compared first, then each with its pictures."""
    title = escape(reports[0].scenario.name)
    body = [] if len(reports) == 1 else list(_element(comparison(reports)))
    for number, report in enumerate(reports):
        body += _report(report, number)
    return _PAGE.format(title=title, style=_STYLE, body="\n".join(body))


def _report(report: Report, number: int) -> Iterator[str]:
    """The elements of one report; its number keeps the names inside its pictures apart."""
    headline, facts, *tables = sections(report)
    yield f"<h1>{escape(_name(report))}</h1>"
    box = "headline" if report.fits else "headline no"
    yield f'<div class="{box}">'
    yield from _element(headline)
    yield "</div>"
    yield from _element(facts)
    drawn = pictures(report)
    for name, heading in (("timeline", "The step over time"), ("memory", "Memory over time")):
        yield f"<h2>{heading}</h2>"
        yield _inline(drawn[name], f"{name}{number}")
    for table in tables:
        yield from _element(table)
    yield from _element(ledger_table(ledger(report)))


def _name(report: Report) -> str:
    """Scenario and variant."""
    scenario = report.scenario
    return scenario.name + (f" · {scenario.variant}" if scenario.variant != "base" else "")


def _element(part: RenderableType) -> Iterator[str]:
    """A part of the terminal page as HTML elements."""
    if isinstance(part, Panel):
        yield from _element(part.renderable)
    elif isinstance(part, Group):
        for one in part.renderables:
            yield from _element(one)
    elif isinstance(part, Table):
        yield _table(part)
    elif isinstance(part, Text):
        kind = ' class="note"' if part.style == "dim" else ""
        yield f"<p{kind}>{escape(part.plain)}</p>"


def _table(table: Table) -> str:
    """A table, with bars for cells of blocks."""
    right = [column.justify == "right" for column in table.columns]
    heads = [str(column.header) for column in table.columns]
    lines = [f"<caption>{escape(str(table.title))}</caption>"] if table.title else []
    if any(heads):
        cells = zip(heads, right, strict=True)
        lines.append("<tr>" + "".join(_cell(text, r, tag="th") for text, r in cells) + "</tr>")
    for row in zip(*(column.cells for column in table.columns), strict=True):
        cells = zip(map(_plain, row), right, strict=True)
        lines.append("<tr>" + "".join(_cell(text, r) for text, r in cells) + "</tr>")
    kind = "" if any(heads) else ' class="plain"'
    return f"<table{kind}>\n" + "\n".join(lines) + "\n</table>"


def _plain(cell: RenderableType) -> str:
    """The text of a cell."""
    return cell.plain if isinstance(cell, Text) else str(cell)


def _cell(text: str, right: bool, *, tag: str = "td") -> str:
    """A cell; one of blocks alone becomes a bar of their number."""
    if text and not text.strip("█"):
        return f'<{tag}><span class="bar" style="width:{len(text) * 0.6:.1f}rem"></span></{tag}>'
    kind = ' class="right"' if right else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _inline(svg: str, prefix: str) -> str:
    """An SVG file's text for use inside a page: without its prologue, its names made its own."""
    picture = svg[svg.index("<svg") :]
    return re.sub(r'((?:id="|href="#|url\(#))', rf"\g<1>{prefix}-", picture)
