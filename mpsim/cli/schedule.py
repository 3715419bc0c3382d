"""``mpsim schedule``: draw, time, check, export and compare pipeline schedules."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isclose
from pathlib import Path
from typing import Any

import click

from mpsim.errors import ScheduleError, did_you_mean
from mpsim.report.grid import draw, strips
from mpsim.report.schedule_compare import Comparison, Wanted, compare
from mpsim.report.schedule_measures import ScheduleMeasures, measure, steady_period
from mpsim.schedule.check import read_order
from mpsim.schedule.comms import with_comms
from mpsim.schedule.ops import Kind, Order
from mpsim.schedule.orders import SCHEDULES, OpTimes, make_order
from mpsim.schedule.text import cell_text, rows_of, write_csv

_COLOURS: dict[Kind | None, tuple[str, str | None]] = {
    Kind.F: ("white", "blue"),
    Kind.B: ("black", "yellow"),
    Kind.I: ("black", "yellow"),
    Kind.W: ("black", "green"),
    None: ("bright_black", None),
}
"""Letters and background of each kind of op in a terminal."""
_PIPED_WIDTH = 160  # characters of a grid that is not shown in a terminal
_SHOWN_DEVICES = 64  # devices listed in the tables


def _read_times(ctx: click.Context, param: click.Parameter, value: str) -> OpTimes:
    """The op times of a text such as ``F=1,I=1,W=1`` or ``F=1,B=2``; ``FB`` is a fused block."""
    given: dict[str, float] = {}
    for part in value.split(","):
        letter, _, number = part.strip().partition("=")
        try:
            given[letter.strip().upper()] = float(number)
        except ValueError:
            raise click.BadParameter(f"'{part}' is not a time such as F=1", ctx, param) from None
    if unknown := set(given) - {"F", "B", "I", "W", "FB"}:
        raise click.BadParameter(f"'{min(unknown)}' is none of F, B, I, W and FB", ctx, param)
    if not all(0 <= number < float("inf") for number in given.values()):
        raise click.BadParameter("times must be numbers of 0 or more", ctx, param)
    first, second = _backward_parts(given)
    apart = not isclose(first + second, given.get("B", first + second))
    if apart or min(first, second) < 0:
        what = f"B={given['B']:g} is not I + W ({first:g} + {second:g})"
        raise click.BadParameter(what, ctx, param)
    return OpTimes(given.get("F", 1.0), first, second, fused=given.get("FB"))


def _backward_parts(given: Mapping[str, float]) -> tuple[float, float]:
    """I and W: as given, what B leaves of them, or half of B each."""
    if "B" not in given:
        return given.get("I", 1.0), given.get("W", 1.0)
    whole = given["B"]
    if "I" in given:
        return given["I"], given.get("W", whole - given["I"])
    if "W" in given:
        return whole - given["W"], given["W"]
    return whole / 2, whole / 2


@click.command()
@click.argument("name", required=False)
@click.option("--stages", type=click.IntRange(min=1), help="Devices of the pipeline.")
@click.option("--microbatches", type=click.IntRange(min=1), help="Microbatches of an iteration.")
@click.option("--chunks", type=click.IntRange(min=1), help="Stages on each device.")
@click.option(
    "--group-size",
    type=click.IntRange(min=1),
    help="Microbatches dealt together (interleaved); pipelines (chimera).",
)
@click.option("--slices", type=click.IntRange(min=1), default=1, help="Slices of the sequence.")
@click.option(
    "--drain",
    type=click.Choice(["ascending", "descending"]),
    default="ascending",
    help="Order of gpipe's backwards: torch's (ascending) or the paper's.",
)
@click.option(
    "--times",
    callback=_read_times,
    metavar="F=..,I=..,W=..",
    default="F=1,I=1,W=1",
    show_default=True,
    help="Times of one op of the list (a stage, a microbatch, a slice), B = I + W, FB a fused "
    "block; with --compare of a device's stages for a microbatch.",
)
@click.option(
    "--hop",
    type=click.FloatRange(min=0, max=1e12),
    default=0.0,
    callback=lambda _ctx, _option, value: _finite(value),
    help="Time between devices.",
)
@click.option("--memory-limit", type=float, help="Activations that a searched order may hold.")
@click.option(
    "--freed-at-input",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of an activation freed at I (the rest at W) in the memory limit.",
)
@click.option("--csv", "csv_path", help="Write the order as torch's CSV to a file, or - to show.")
@click.option("--comms", is_flag=True, help="Write the CSV with torch's communication ops.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the order (svg, png, pdf).")
@click.option("--compare", "compared", help="Rank schedules: 'all', or names with commas.")
def schedule(name: str | None, **options: Any) -> None:  # noqa: ANN401
    """Draw, time and export the schedule NAME, or one of your own from a CSV file.

    Times have no unit: what comes out is in the unit of what goes in.
    """
    options["times"] = replace(options["times"], hop=options["hop"])
    if options["compared"]:
        _print_comparison(options)
        return
    if name is None:
        raise click.UsageError(
            f"name a schedule or a CSV file, or --compare all; schedules: {', '.join(SCHEDULES)}"
        )
    order, make = _load(name, options)
    if options["csv_path"]:
        rows = with_comms(order) if options["comms"] else rows_of(order)
        _write(options["csv_path"], write_csv(rows))
        if options["csv_path"] == "-":
            return
    measures = measure(order, options["times"])
    period = None
    if make is not None and not order.synchronous:
        period = steady_period(make, options["times"], num_devices=order.num_devices)
    if options["plot"]:
        draw(measures, options["plot"])
    if options["as_json"]:
        click.echo(json.dumps(_record(measures, period), indent=1))
    else:
        _print(measures, period)


def _finite(value: float) -> float:
    """Refuse NaN, which passes every range."""
    if math.isnan(value):
        raise click.BadParameter("must be a number")
    return value


def _load(name: str, options: Mapping[str, Any]) -> tuple[Order, Callable[[int], Order] | None]:
    """The order of a CSV file or of a schedule, and how to make it for other microbatches."""
    path = Path(name)
    if name not in SCHEDULES and (path.suffix == ".csv" or path.is_file() or name == "-"):
        text = sys.stdin.read() if name == "-" else path.read_text(encoding="utf-8")
        order = read_order(text, name=name)
        _require_asked(order, options, name)
        return replace(order, schedule=path.stem), None
    if options["stages"] is None or options["microbatches"] is None:
        raise click.UsageError(f"{name} needs --stages and --microbatches")

    def make(num_microbatches: int) -> Order:
        return make_order(
            name,
            num_devices=options["stages"],
            num_microbatches=num_microbatches,
            num_chunks=options["chunks"],
            group_size=options["group_size"],
            num_slices=options["slices"],
            drain=options["drain"],
            times=options["times"],
            memory_limit=options["memory_limit"],
            freed_at_input=options["freed_at_input"],
        )

    return make(options["microbatches"]), make


def _require_asked(order: Order, options: Mapping[str, Any], name: str) -> None:
    """Refuse a file whose numbers are not those asked for.

    Raises:
        ScheduleError: Naming the number of the file and the one asked for.
    """
    for option, have in (
        ("stages", order.num_devices),
        ("microbatches", order.num_microbatches),
        ("chunks", order.num_stages // order.num_devices),
    ):
        asked = options[option]
        if asked is not None and asked != have:
            raise ScheduleError(f"{name} has {have} {option}, --{option} says {asked}")


def _write(path: str, text: str) -> None:
    if path == "-":
        click.echo(text, nl=False)
    else:
        Path(path).write_text(text, encoding="utf-8")


def _record(measures: ScheduleMeasures, period: float | None) -> dict[str, Any]:
    """The measures as JSON; times in the unit of the op times, activations of one stage."""
    order = measures.order
    record = {
        "schedule": order.schedule,
        "devices": order.num_devices,
        "stages": order.num_stages,
        "microbatches": order.num_microbatches,
        "makespan": measures.makespan,
        "span": measures.span,
        "makespan_bubble": measures.makespan_bubble,
        "span_bubble": measures.span_bubble,
        "makespan_bubble_fraction": _share(measures.makespan_bubble, measures.makespan),
        "span_bubble_fraction": _share(measures.span_bubble, measures.span),
        "busy": measures.busy.tolist(),
        "idle": measures.idle.tolist(),
        "peak_activations": {
            "freed_at_I": measures.peaks_freed_at_input.tolist(),
            "freed_at_W": measures.peaks_freed_at_weight.tolist(),
        },
        "p2p": measures.p2p,
        "weight_copies": order.weight_copies,
        "weight_versions": list(order.weight_versions or [1] * order.num_devices),
        "ops": [[cell_text(cell) for cell in row] for row in rows_of(order)],
    }
    if period is not None:
        record["steady_period"] = period
    return record


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _print(measures: ScheduleMeasures, period: float | None) -> None:
    order = measures.order
    known = SCHEDULES.get(order.schedule)
    placement = f", placement {known.placement}" if known else ""
    click.echo(
        f"{order.schedule}: {order.num_stages} stages on {order.num_devices} devices, "
        f"{order.num_microbatches} microbatches{placement}"
    )
    if known:
        click.echo(known.summary)
        if known.source:
            click.echo(f"Source: {known.source}")
    click.echo()
    _print_grid(measures)
    click.echo()
    for title, value, bubble in (
        ("makespan", measures.makespan, measures.makespan_bubble),
        ("longest span", measures.span, measures.span_bubble),
    ):
        click.echo(
            f"{title:<13}{value:<10.6g} bubble {bubble:.6g} ({_share(bubble, value):.2%}), "
            f"work {measures.work:.6g}"
        )
    if period is not None:
        work = measures.work / order.num_microbatches
        click.echo(
            f"{'steady state':<13}{period:<10.6g} a microbatch, bubble {period - work:.6g}: the "
            "pipeline fills and drains once in a run"
        )
    click.echo()
    _print_devices(measures)
    copies = "one copy" if order.weight_copies == 1 else f"{order.weight_copies} copies"
    versions = order.weight_versions
    kept = f", versions kept {', '.join(map(str, versions))}" if versions else ""
    click.echo(f"weights      {copies} on a device{kept}")


def _print_grid(measures: ScheduleMeasures) -> None:
    """The grid, in colours where a terminal shows them."""
    terminal = sys.stdout.isatty()
    head = len(f"device {measures.order.num_devices - 1} ")
    width = (shutil.get_terminal_size().columns if terminal else _PIPED_WIDTH) - head
    for device, strip in enumerate(strips(measures, width=max(width, 20))):
        pieces = (
            click.style(text, fg=_COLOURS[kind][0], bg=_COLOURS[kind][1]) if terminal else text
            for text, kind in strip
        )
        click.echo(f"{f'device {device}':<{head}}" + "".join(pieces).rstrip())


def _print_devices(measures: ScheduleMeasures) -> None:
    """Busy time, idle time, activations and messages of each device."""
    sent: dict[int, int] = {}
    for pair, count in measures.p2p.items():
        source = int(pair.split()[1].partition("->")[0])
        sent[source] = sent.get(source, 0) + count
    click.echo("device       busy       idle       peak activations     messages sent")
    click.echo("                                   to I      to W")
    for device in range(min(measures.order.num_devices, _SHOWN_DEVICES)):
        click.echo(
            f"{device:<13}{measures.busy[device]:<11.6g}{measures.idle[device]:<11.6g}"
            f"{measures.peaks_freed_at_input[device]:<10}"
            f"{measures.peaks_freed_at_weight[device]:<11}{sent.get(device, 0)}"
        )
    click.echo(f"messages     {sum(measures.p2p.values())} in all: ", nl=False)
    pairs = [f"{pair} {count}" for pair, count in measures.p2p.items()]
    click.echo(", ".join(pairs[:12]) + (" …" if len(pairs) > 12 else "") if pairs else "none")


def _known(name: str) -> str:
    """The name of a schedule to compare.

    Raises:
        ScheduleError: If there is no such schedule; with the nearest name, if one is near.
    """
    if name not in SCHEDULES:
        hint = did_you_mean(name, SCHEDULES) or f"; there are {', '.join(SCHEDULES)}"
        raise ScheduleError(f"--compare: '{name}' is not a schedule{hint}")
    return name


def _print_comparison(options: Mapping[str, Any]) -> None:
    if options["stages"] is None or options["microbatches"] is None:
        raise click.UsageError("--compare needs --stages and --microbatches")
    names = list(SCHEDULES)
    if options["compared"] != "all":
        names = [_known(name.strip()) for name in options["compared"].split(",")]
    result = compare(
        Wanted(
            num_devices=options["stages"],
            num_microbatches=options["microbatches"],
            times=options["times"],
            num_chunks=options["chunks"],
            group_size=options["group_size"],
            num_slices=options["slices"],
            memory_limit=options["memory_limit"],
            freed_at_input=options["freed_at_input"],
        ),
        names,
    )
    if not result.rows and len(names) == 1:
        raise ScheduleError(result.refused[names[0]])
    click.echo(_comparison_json(result) if options["as_json"] else _comparison_text(result))


def _comparison_text(result: Comparison) -> str:
    lines = [
        f"{'schedule':<21}{'chunks':>7}{'makespan':>12}{'bubble':>9}{'span':>12}{'bubble':>9}"
        f"{'peak':>8}{'weights':>9}{'messages':>10}"
    ]
    for row in result.rows:
        weights = f"{row.weight_copies * row.weight_versions}x"
        lines.append(
            f"{row.name:<21}{row.num_chunks:>7}{row.makespan:>12.6g}{row.bubble_fraction:>9.2%}"
            f"{row.span:>12.6g}{row.span_bubble_fraction:>9.2%}{row.peak:>8.4g}{weights:>9}"
            f"{row.num_messages:>10}"
        )
    lines += [
        "",
        "makespan: m microbatches; of pipedream and pipedream_2bw in the long run. peak:",
        "microbatches of a device's stages, part of each freed at I. weights: copies x versions.",
    ]
    if result.refused:
        lines += ["", "not possible here:"]
        lines += [f"  {name:<19}  {reason}" for name, reason in result.refused.items()]
    return "\n".join(lines)


def _comparison_json(result: Comparison) -> str:
    rows = [
        {
            "schedule": row.name,
            "chunks": row.num_chunks,
            "makespan": row.makespan,
            "span": row.span,
            "work": row.work,
            "makespan_bubble_fraction": row.bubble_fraction,
            "span_bubble_fraction": row.span_bubble_fraction,
            "peak_activations": row.peak,
            "weight_copies": row.weight_copies,
            "weight_versions": row.weight_versions,
            "messages": row.num_messages,
        }
        for row in result.rows
    ]
    return json.dumps({"schedules": rows, "refused": result.refused}, indent=1)
