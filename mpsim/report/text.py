"""The report for people: a terminal page, widest fact first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mpsim.report.metrics import Amdahl, DeviceUse, Report
from mpsim.spec.model import Transformer
from mpsim.units import format_bytes, format_count, format_seconds, format_si
from mpsim.workload.parameters import parameter_count

_SHOWN_DEVICES = 16
_SHOWN_COMPONENTS = 8
_MOST_COLUMNS = 3
_BAR = 30  # characters of a bar for the whole
_WIDE = 80  # characters of a page from which on the comparison says what makes up the step


def show(report: Report, console: Console) -> None:
    """Print one report."""
    for section in sections(report, wide=console.width >= _WIDE):
        console.print(section)


def sections(report: Report, *, wide: bool = True) -> Iterator[RenderableType]:
    """The parts of a report, in the order of the page; a narrow one leaves columns out."""
    yield _headline(report)
    yield _facts(report)
    bar = _BAR if wide else _BAR // 3
    yield _waterfall(report, bar)
    yield _parts(report)
    yield _devices(report, wide=wide)
    yield _memory(report, bar)
    yield _bounds(report)
    for note in report.notes:
        yield Text(f"note: {note}", style="dim")


def compare(reports: Sequence[Report], console: Console) -> None:
    """Print variants side by side: what differs first."""
    console.print(comparison(reports, wide=console.width >= _WIDE))


def comparison(reports: Sequence[Report], *, wide: bool = True) -> RenderableType:
    """Variants side by side.

    A few are columns, one line a figure; many are lines, with the main figures.
    """
    return _columns(reports) if len(reports) <= _MOST_COLUMNS else _lines(reports, wide=wide)


def _columns(reports: Sequence[Report]) -> RenderableType:
    """A column for each variant; lines that differ come first."""
    table = Table(box=box.SIMPLE_HEAVY, title=Text(reports[0].scenario.name), title_justify="left")
    table.add_column("")
    for report in reports:
        table.add_column(report.scenario.variant, justify="right", overflow="fold")
    rows = [_comparison(report) for report in reports]
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in sorted(names, key=lambda name: len({row.get(name, "") for row in rows}) == 1):
        table.add_row(name, *(row.get(name, "–") for row in rows))
    return table


def _lines(reports: Sequence[Report], *, wide: bool) -> RenderableType:
    """A line for each variant: fit, step and its ratio to the first, and where the time goes."""
    table = Table(box=box.SIMPLE_HEAVY, title=Text(reports[0].scenario.name), title_justify="left")
    table.add_column("variant", overflow="fold")
    for name in ("fits", "step", "of first", "memory", "idle"):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("most of it", overflow="fold")
    for report in reports:
        step = report.step_time
        order = sorted(report.waterfall.items(), key=lambda item: -item[1])
        table.add_row(
            report.scenario.variant,
            "yes" if report.fits else "NO",
            format_seconds(step),
            _ratio(step / reports[0].step_time),
            format_bytes(report.fullest.reserved),
            f"{report.idle_fraction:.0%}",
            *([", ".join(f"{cause} {seconds / step:.0%}" for cause, seconds in order[:3])] * wide),
        )
    return table


def _ratio(value: float) -> str:
    """A ratio as people read it: 85%, or 12.9 times."""
    return f"{value:.0%}" if value < 10 else f"x {value:.1f}"


def _comparison(report: Report) -> dict[str, str]:
    """The lines of a report that are worth comparing."""
    use, step = report.utilisation, report.step_time
    return {
        "fits": "yes" if report.fits else "NO",
        "step time": format_seconds(step, 4),
        "throughput": f"{format_si(report.samples_per_second, 'samples/s')}",
        "peak memory": format_bytes(report.peak_memory),
        "memory as the driver shows it": format_bytes(report.fullest.reserved),
        "devices": str(report.scenario.cluster.devices),
        "idle": f"{report.idle_fraction:.1%}",
        "bubble": f"{report.bubble_fraction:.1%}",
        "speed-up over one device": f"{report.amdahl.speed_up:.3g}",
        "Amdahl's α": _fraction_alone(report.amdahl),
        "busy at once, at most": str(report.busy_at_once),
        "MFU (6N)": f"{use.six_n:.1%}" if use else "–",
        **{
            f"time: {cause}": f"{format_seconds(seconds)} ({seconds / step:.0%})"
            for cause, seconds in report.waterfall.items()
        },
        "moved between stages": format_bytes(report.traffic.measured),
        **{
            f"moved in {axis}": format_bytes(nbytes)
            for axis, nbytes in report.traffic.exchanges.items()
        },
        **({"cost of a step": _usd(report.usd_per_step)} if report.usd_per_step else {}),
    }


def _headline(report: Report) -> RenderableType:
    """Fits or not, step time, throughput."""
    scenario, fullest = report.scenario, report.fullest
    capacity = scenario.cluster.device.memory
    verdict = (
        Text("FITS", style="bold green") if report.fits else Text("DOES NOT FIT", style="bold red")
    )
    verdict.append(
        f"  {format_bytes(fullest.reserved)} of {format_bytes(capacity)} "
        f"on {report.device_names[fullest.index]} "
        f"({fullest.reserved / capacity:.0%})",
        style="default",
    )
    step = Text(f"{format_seconds(report.step_time, 4)} a step", style="bold")
    if report.interval:
        low, high = report.interval
        step.append(
            f"  (90 %: {format_seconds(low, 4)} to {format_seconds(high, 4)})", style="default"
        )
    rate = f"{format_si(report.samples_per_second, 'samples/s')}"
    if isinstance(scenario.model, Transformer):
        per_device = report.tokens_per_second / scenario.cluster.devices
        rate += f", {format_si(report.tokens_per_second, 'tokens/s')}"
        rate += f" ({format_si(per_device, 'tokens/s')} a device)"
    title = scenario.name + (f" · {scenario.variant}" if scenario.variant != "base" else "")
    return Panel(Group(verdict, step, Text(rate)), title=Text(title), title_align="left")


def _facts(report: Report) -> RenderableType:
    """The scenario in four lines, with utilisation and price."""
    scenario, plan, cluster = report.scenario, report.scenario.plan, report.scenario.cluster
    grid = _grid()
    grid.add_row("model", _model_line(report))
    between = ""
    if cluster.network and cluster.nodes > 1:
        rate = format_si(cluster.network.bandwidth, "B/s")
        between = f", {cluster.network.name} between nodes ({rate} a device)"
    grid.add_row(
        "cluster",
        f"{cluster.nodes} x {cluster.node.devices} {cluster.device.name}, "
        f"{cluster.node.link.name} inside{between}",
    )
    degrees = [
        f"{axis} {getattr(plan, axis)}"
        for axis in ("tensor", "pipeline", "data", "context", "expert")
        if getattr(plan, axis) > 1
    ] or ["one device"]
    if plan.zero:
        degrees.append(f"ZeRO-{plan.zero}")
    if plan.recompute != "none":
        degrees.append(f"{plan.recompute} recomputation")
    schedule = f"{plan.schedule}, " if plan.pipeline > 1 else ""
    grid.add_row(
        "plan",
        f"{', '.join(degrees)}; {schedule}{format_count(scenario.microbatches, 'microbatch')} "
        "a replica",
    )
    use = report.utilisation
    if use:
        grid.add_row(
            "utilisation",
            f"{use.six_n:.1%} of {format_si(use.peak, 'FLOP/s')} (6N); "
            f"{use.with_attention:.1%} with attention; {use.hardware:.1%} hardware FLOPs",
        )
    if report.usd_per_step is not None:
        source = cluster.price_source or "price given without a source"
        grid.add_row("cost", f"{_usd(report.usd_per_step)} a step ({source})")
    if report.minimum_devices:
        wall = ", ".join(f"{name}: {count}" for name, count in report.minimum_devices.items())
        grid.add_row("memory wall", f"devices at the least for {wall}")
    return grid


def _model_line(report: Report) -> str:
    """Name and size of the model."""
    training = report.scenario.training
    model, size = report.scenario.model, ""
    if isinstance(model, Transformer):
        count = parameter_count(model, sequence=training.sequence)
        size = f" ({_millions(count)} parameters)"
    text = f"{model.name}{size}, {training.precision}, {training.optimizer}"
    batch = f"batch {training.global_batch}"
    return f"{text}, {batch}" + (f" x {training.sequence}" if training.sequence > 1 else "")


def _millions(count: float) -> str:
    """A count in millions, billions or trillions.

    >>> _millions(83_150_000), _millions(174.6e9), _millions(999_990_000), _millions(1e12)
    ('83.15 million', '174.6 billion', '1 billion', '1 trillion')
    """
    for scale, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if float(f"{count:.4g}") >= scale:
            return f"{count / scale:.4g} {name}"
    return f"{count:,.0f}"


def _waterfall(report: Report, whole: int) -> RenderableType:
    """Where the time goes, with a bar for each cause."""
    table = Table(box=box.SIMPLE, title="Where the time goes", title_justify="left")
    _add_columns(table, "cause", "seconds")
    for cause, seconds in sorted(report.waterfall.items(), key=lambda item: -item[1]):
        share = seconds / report.step_time
        bar = "█" * round(share * whole)
        table.add_row(cause, format_seconds(seconds), f"{share:.1%}", bar)
    return table


def _add_columns(table: Table, name: str, figure: str) -> None:
    """Columns of a name, a figure, its share, and a bar."""
    table.add_column(name, no_wrap=True)
    table.add_column(figure, justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)


def _parts(report: Report) -> RenderableType:
    """The six parts of a training step."""
    table = Table(box=box.SIMPLE, title="The parts of a step", title_justify="left")
    for name in ("part", "mean", "what"):
        table.add_column(name, justify="right" if name == "mean" else "left")
    for name, text in report.phases.items():
        seconds = report.phase_seconds.get(name)
        table.add_row(name, "–" if seconds is None else format_seconds(seconds), text)
    return table


def _devices(report: Report, *, wide: bool) -> RenderableType:
    """Time and memory of each device; the middle of a long list is left out."""
    table = Table(box=box.SIMPLE, title="Devices", title_justify="left", pad_edge=False)
    first = report.device_names[0].split()[0]
    table.add_column(first, no_wrap=True)
    table.add_column("holds", overflow="fold")
    for name in ("compute", "exchange", "idle", "peak", "at") if wide else ("idle", "peak"):
        table.add_column(name, justify="right", no_wrap=True)
    for index in _ends(range(len(report.devices)), _SHOWN_DEVICES):
        if index is None:
            table.add_row("…")
            continue
        device = report.devices[index]
        name = report.device_names[index].removeprefix(first).strip()
        idle, peak = f"{device.idle / report.step_time:.0%}", format_bytes(device.memory.peak)
        if wide:
            times = format_seconds(device.compute), format_seconds(device.exchange)
            at = format_seconds(device.memory.peak_time)
            table.add_row(name, device.layers, *times, idle, peak, at)
        else:
            table.add_row(name, device.layers, idle, peak)
    return table


def _memory(report: Report, whole: int) -> RenderableType:
    """What the fullest device's peak is made of, largest first, and what the driver shows."""
    device = report.fullest
    title = (
        f"Memory of {report.device_names[device.index]}, "
        f"{format_seconds(device.memory.peak_time)} into the step"
    )
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    _add_columns(table, "component", "size")
    capacity = report.scenario.cluster.device.memory
    order = sorted(device.memory.at_peak.items(), key=lambda item: -item[1])
    shown = dict(order[:_SHOWN_COMPONENTS])
    if len(order) > _SHOWN_COMPONENTS:
        shown["the rest"] = sum(size for _, size in order[_SHOWN_COMPONENTS:])
    for name, size in shown.items():
        bar = "█" * round(min(size / capacity, 1) * whole)
        table.add_row(name.replace("_", " "), format_bytes(size), f"{size / capacity:.1%}", bar)
    _add_beyond_allocated(table, device, capacity)
    return table


def _add_beyond_allocated(table: Table, device: DeviceUse, capacity: float) -> None:
    """Rows of what the driver shows beyond the allocated peak, and of what it could show."""
    beyond = {"fragmentation": device.fragmentation, **device.outside}
    lines = {
        "allocated": device.memory.peak,
        **{name: size for name, size in beyond.items() if size},
    }
    table.add_section()
    for name, size in (*lines.items(), ("as the driver shows it", device.reserved)):
        table.add_row(name.replace("_", " "), format_bytes(size), f"{size / capacity:.1%}", "")
    table.add_row("capacity", format_bytes(capacity), "", "")


def _bounds(report: Report) -> RenderableType:
    """Amdahl, bubble, communication."""
    grid, amdahl, traffic = _grid(), report.amdahl, report.traffic
    grid.add_row(
        "Amdahl",
        f"{amdahl.speed_up:.4g} times one (imaginary) device that takes "
        f"{format_seconds(amdahl.one_device)}; {_fraction(amdahl)}",
    )
    if amdahl.devices > 1 and _has_fraction(amdahl):
        causes = ", ".join(
            f"{cause} {share:.4f}" for cause, share in amdahl.causes.items() if abs(share) >= 5e-5
        )
        grid.add_row("", f"1 - α = {1 - amdahl.fraction:.4f}: {causes or 'nothing'}")
    if len(report.devices) > 1:
        grid.add_row(
            "bubble",
            f"{report.bubble_fraction:.2%} of the step{_closed_form(report)}; idle "
            f"{report.idle_fraction:.2%}; span {format_seconds(report.span, 4)}",
        )
        grid.add_row("busy at once", f"at most {report.busy_at_once} of {len(report.devices)}")
        grid.add_row(
            "between stages",
            f"{format_bytes(traffic.measured)} measured on the links, "
            f"{format_bytes(traffic.formula)} by C = 2 Σ s b"
            + (" (one replica)" if report.scenario.plan.data > 1 else ""),
        )
    for axis, nbytes in traffic.exchanges.items():
        grid.add_row(f"{axis}", f"{format_bytes(nbytes)} sent by each device")
    return Group(Text("Bounds", style="italic"), grid)


def _has_fraction(amdahl: Amdahl) -> bool:
    """Whether α says anything: n devices slower than 1/n of one share no work by Amdahl's law."""
    return amdahl.speed_up * amdahl.devices >= 1


def _fraction_alone(amdahl: Amdahl) -> str:
    """α by itself."""
    return f"{amdahl.fraction:.4f}" if _has_fraction(amdahl) else "undefined"


def _fraction(amdahl: Amdahl) -> str:
    """α with the limit that follows from it."""
    if not _has_fraction(amdahl):
        return f"α is undefined: {amdahl.devices} devices are slower than 1/{amdahl.devices} of one"
    limit = "∞" if amdahl.limit == float("inf") else f"{amdahl.limit:.3g}"
    return f"α = {amdahl.fraction:.4f} over {amdahl.devices}; limit {limit}"


def _closed_form(report: Report) -> str:
    """The closed form of the bubble, beside the measured one over the passes alone."""
    if report.bubble_formula is None:
        return ""
    causes = ("bubble", "compute", "launch")
    passes = sum(report.waterfall.get(cause, 0.0) for cause in causes)
    measured = report.waterfall.get("bubble", 0.0) / passes if passes else 0.0
    return f", {measured:.2%} of the passes (closed form {report.bubble_formula:.2%})"


def _grid() -> Table:
    """A table without lines: a dim name, then text."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    return grid


def _ends(indices: Iterable[int], most: int) -> list[int | None]:
    """The first and last of a long list, None where the middle is left out."""
    items = list(indices)
    if len(items) <= most:
        return list(items)
    half = most // 2
    return [*items[:half], None, *items[-half:]]


def _usd(value: float | None) -> str:
    """Dollars to three digits."""
    if value is None:
        return "–"
    return f"{value:,.0f} USD" if value >= 1000 else f"{value:.3g} USD"
