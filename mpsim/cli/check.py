"""``mpsim check`` and ``mpsim budget``: predictions against a real run, or a measured step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from mpsim.calibration.cells import QUIET
from mpsim.cli.measuring import check_place, parse_seconds
from mpsim.cli.outputs import write_text
from mpsim.cli.tracing import traced
from mpsim.cost.compiled import Compiled, compile_scenario
from mpsim.cost.peak import device_memory
from mpsim.engine import longest_path
from mpsim.errors import CalibrationError, InfeasibleError, ScenarioError
from mpsim.report.interval import on_workers, step_interval
from mpsim.simulation import simulate
from mpsim.spec.model import Network, Transformer
from mpsim.spec.profile import Profile, load_profile
from mpsim.spec.reader import load
from mpsim.spec.scenario import Scenario
from mpsim.units import format_bytes, format_seconds
from mpsim.validation.gap import CAUSES, Gap, Span, gap, worker_times
from mpsim.validation.spans import host_shares, measured_spans, predicted_spans, trace_of

if TYPE_CHECKING:
    from mpsim.hardware.devices import Placement
    from mpsim.hardware.pipeline import PipelineJob, PipelineRun

_PROFILE = "machine.yaml"
_LOSSES = ("softmax", "cross_entropy", "binary_cross_entropy", "mse")
_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override a field by its dotted path, as in plan.pipeline=2; repeatable.",
)
_SHOWN = 8
_RESOLUTION = 1e-9  # s that the clocks here tell: less is what sums of floats leave


@click.command()
@click.argument("file")
@_SET
@click.option(
    "--profile", default=_PROFILE, show_default=True, help="Profile that mpsim calibrate wrote."
)
@click.option(
    "--devices", help="Devices of the workers, as cpu,cpu; default: those of the profile."
)
@click.option("--steps", type=click.IntRange(3, 1000), default=20, show_default=True)
@click.option("--trace", type=click.Path(path_type=Path), help="Write both steps as one trace.")
@click.option("--realtime", is_flag=True, help="Run the workers ahead of all other work.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def check(
    file: str,
    *,
    overrides: Sequence[str],
    profile: str,
    devices: str | None,
    steps: int,
    trace: Path | None,
    realtime: bool,
    as_json: bool,
) -> None:
    """Run a small scenario FILE in torch with the simulated schedule, and explain the gap.

    The run trains in fp32 with plain gradient descent and no clipping, and so does the simulation
    that it is held against.
    """
    if trace is not None:
        check_place(trace, "--trace")
    fitted = _load(profile)
    compiled = compile_scenario(*prepared(traced(load(file, overrides), file), fitted))
    job = _job(compiled, steps)
    run = _run(job, _place(compiled, devices or _devices(fitted, compiled)), realtime=realtime)
    done = compare(compiled, run)
    if as_json:
        click.echo(json.dumps(_as_json(done, compiled), indent=1))
    else:
        _show(done, compiled, Console(emoji=False))
    if trace is not None:
        write_text(json.dumps(trace_of(done.predicted, done.measured)), trace)


@click.command()
@click.argument("file")
@_SET
@click.option("--measured", required=True, help="Measured seconds of a step, as 1.93s.")
@click.option("--profile", help="Profile of the zoo, or a file that mpsim calibrate wrote.")
@click.pass_context
def budget(
    ctx: click.Context, file: str, *, overrides: Sequence[str], measured: str, profile: str | None
) -> None:
    """Say whether a measured step lies in the interval predicted for scenario FILE.

    Exit code 0 if it does, 1 if not, with what the predicted step is made of.
    """
    seconds = parse_seconds(measured, "--measured")
    scenario = traced(load(file, overrides), file)
    report = simulate(scenario, profile=load_profile(profile) if profile else None)
    low, high = report.interval or (report.step_time * 0.85, report.step_time * 1.15)
    basis = "90 % interval" if report.interval else "within 15 %: the profile gives no interval"
    inside = low <= seconds <= high
    click.echo(
        f"{scenario.name}: measured {format_seconds(seconds, 4)}, predicted "
        f"{format_seconds(report.step_time, 4)} ({format_seconds(low, 4)} to "
        f"{format_seconds(high, 4)}, {basis}): {'inside' if inside else 'OUTSIDE'}"
    )
    if not inside:
        over = seconds - report.step_time
        click.echo(f"{format_seconds(abs(over))} {'more' if over > 0 else 'less'} than predicted")
        for cause, part in sorted(report.waterfall.items(), key=lambda item: -item[1])[:_SHOWN]:
            share = part / report.step_time
            click.echo(f"    {cause:<18} {format_seconds(part):>10}  {share:.0%} of the prediction")
        click.echo("run `mpsim check` on this machine to see which of them it is")
    ctx.exit(0 if inside else 1)


@dataclass(frozen=True, eq=False)
class Compared:
    """A scenario predicted and run."""

    predicted: list[Span]
    measured: list[Span]
    gap: Gap
    seconds: tuple[float, ...]  # s of each step that was run
    interval: tuple[float, float] | None  # s, 90 %


def _load(name: str) -> Profile:
    """The profile, or what to do where there is none."""
    if name == _PROFILE and not Path(name).exists():
        raise CalibrationError(
            f"{name} is not there: run `mpsim calibrate`, or name a profile with --profile"
        )
    return load_profile(name)


def prepared(scenario: Scenario, profile: Profile) -> tuple[Scenario, Profile]:
    """The scenario as torch's pipeline runtime runs it here, and the profile.

    Raises:
        ScenarioError: If it asks for what the runner does not do.
        CalibrationError: If the profile is not of a measured machine.
    """
    plan = scenario.plan
    if profile.workers is None:
        raise CalibrationError(f"{profile.name}: is not the profile of a measured machine")
    if plan.devices != plan.pipeline or plan.pipeline < 2:
        raise ScenarioError(
            "plan", "mpsim check runs pipelines: tensor, data and context 1, pipeline 2 or more"
        )
    if plan.recompute != "none":
        raise ScenarioError("plan.recompute", "mpsim check runs without recomputation: use none")
    training = scenario.training.model_copy(
        update={"precision": "fp32", "optimizer": "sgd", "gradient_clipping": False}
        | {"parameter_type": None, "framework": "torch"}
    )
    return on_workers(scenario.model_copy(update={"training": training}), profile), profile


def _devices(profile: Profile, compiled: Compiled) -> str:
    """One device for each stage, as the profile was measured, then round again."""
    assert profile.workers is not None
    names = profile.workers.devices
    count = compiled.scenario.plan.pipeline
    return ",".join(names[index % len(names)] for index in range(count))


def _job(compiled: Compiled, steps: int) -> PipelineJob:
    """What the workers run."""
    from mpsim.hardware.pipeline import PipelineJob
    from mpsim.hardware.schedules import torch_text

    scenario, order = compiled.scenario, compiled.order
    assert order is not None
    model = scenario.model
    assert isinstance(model, Network | Transformer)  # a torch module has been traced
    if isinstance(model, Network) and any(layer.type == "traced" for layer in model.network):
        raise ScenarioError("model.torch", "a traced module is simulated only; check runs networks")
    counts = [len(stage) for stage in compiled.stages]
    if isinstance(model, Network) and model.network[-1].type in _LOSSES:
        counts[-1] -= 1
    if not counts[-1]:
        wanted = [*counts[:-1], 2]  # one of them from the stage that has most
        wanted[int(np.argmax(counts))] -= 1
        raise ScenarioError(
            "plan.partition",
            f"the last of {len(counts)} stages has the loss alone, and each needs a layer: "
            + (f"write plan.partition={wanted}" if min(wanted) else "take fewer stages"),
        )
    return PipelineJob(
        model,
        tuple(counts),
        torch_text(order),
        scenario.microbatches,
        scenario.training.global_batch,
        sequence=scenario.training.sequence,
        steps=steps,
        warmup=3,
        learning_rate=1e-3,
        count=True,
    )


def _place(compiled: Compiled, devices: str) -> Placement:
    """Workers on the devices.

    Raises:
        InfeasibleError: If what the workers are predicted to hold is more than there is room for:
            the system would end them.
    """
    from mpsim.hardware.measure import choose_placement
    from mpsim.hardware.memory import available_memory

    placement = choose_placement(devices, count=compiled.scenario.plan.pipeline)
    needs: dict[str, float] = dict.fromkeys(placement.devices, 0.0)
    for device, need in zip(placement.devices, device_memory(compiled).tolist(), strict=True):
        needs[device] += need
    for device, need in needs.items():
        have = available_memory(device)
        if need > have:
            raise InfeasibleError(
                f"{compiled.scenario.name}: needs {format_bytes(need)} on {device}, this machine "
                f"has {format_bytes(have)} to give: take fewer or narrower layers, or a smaller "
                "batch",
                need=need,
                have=have,
                where=device,
                components={"simulated peak of the workers": need},
            )
    return placement


def _run(job: PipelineJob, placement: Placement, *, realtime: bool) -> PipelineRun:
    """Run it for real."""
    from mpsim.hardware.pipeline import run_pipeline
    from mpsim.hardware.workers import Workers

    click.echo(f"running {job.steps} steps on {placement.describes}", err=True)
    with Workers(placement, realtime=realtime) as workers:
        return run_pipeline(workers, job)


def compare(compiled: Compiled, run: PipelineRun) -> Compared:
    """The prediction beside the run's step at the quiet quantile."""
    order = np.argsort(run.step_seconds)
    chosen = int(order[round(QUIET * (len(order) - 1))])
    events = [event for event in run.events if event.step == chosen]
    first = next(event.worker for event in events if event.op == "0F0")
    begin = run.spans[first][chosen][0]  # as the seconds of a step count
    shares = host_shares(compiled, events, run.kernels)
    measured = measured_spans(events, begin, host=shares)
    timeline = longest_path.run(compiled.graph, compiled.work)
    predicted = predicted_spans(compiled, timeline)
    interval = step_interval(compiled).bounds
    return Compared(
        predicted, measured, gap(predicted, measured), tuple(run.step_seconds), interval
    )


def _show(done: Compared, compiled: Compiled, console: Console) -> None:
    """The two steps, the waterfall of the gap, the workers, the ops."""
    found = done.gap
    median = float(np.median(done.seconds))
    console.print(
        f"[bold]{compiled.scenario.name}[/]: predicted {format_seconds(found.predicted, 4)}, "
        f"measured {format_seconds(found.measured, 4)} "
        f"({found.predicted / found.measured - 1:+.1%}): the step at the lower quartile of "
        f"{len(done.seconds)}, whose median is {format_seconds(median, 4)}"
    )
    if done.interval:
        low, high = done.interval
        inside = "inside" if low <= found.measured <= high else "outside"
        console.print(
            f"90 % interval {format_seconds(low, 4)} to {format_seconds(high, 4)}: the measured "
            f"step is {inside}"
        )
    console.print(_gap_table(found))
    console.print(_worker_table(done))
    console.print(_op_table(done))


def _as_json(done: Compared, compiled: Compiled) -> dict[str, object]:
    """Both steps in seconds: whole, interval, causes of the gap, devices, medians of ops."""
    both = {"predicted": done.predicted, "measured": done.measured}
    return {
        "scenario": compiled.scenario.name,
        "predicted_step_time_s": done.gap.predicted,
        "measured_step_time_s": done.gap.measured,
        "interval_s": done.interval,
        "steps_s": done.seconds,
        "gap_s": {cause: done.gap.causes[cause] for cause in CAUSES},
        "devices_s": {name: worker_times(spans) for name, spans in both.items()},
        "ops_s": {name: _medians(spans) for name, spans in both.items()},
    }


def compile_for(file: str, profile: str) -> Compiled:
    """A scenario file as it would be run on the machine of a profile."""
    return compile_scenario(*prepared(load(file), _load(profile)))


def lay_beside(compiled: Compiled, run: PipelineRun, console: Console) -> None:
    """Show the simulated step of a scenario beside one that was run."""
    _show(compare(compiled, run), compiled, console)


def _signed(seconds: float) -> str:
    """Seconds with their sign; what no clock here tells is nothing."""
    if abs(seconds) < _RESOLUTION:
        return "0 s"
    return f"{'-' if seconds < 0 else '+'}{format_seconds(abs(seconds))}"


def _plain(seconds: float) -> str:
    """Seconds; what no clock here tells is nothing."""
    return format_seconds(seconds if abs(seconds) >= _RESOLUTION else 0.0)


def _gap_table(found: Gap) -> Table:
    """The waterfall: predicted, each cause and where it is largest, measured."""
    table = Table(title="The gap along the critical path", title_justify="left")
    for name in ("cause", "seconds", "most of it"):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    table.add_row("predicted", format_seconds(found.predicted, 4), "")
    for cause in CAUSES:
        places = sorted(
            (
                (seconds, place)
                for (of, place), seconds in found.places.items()
                if of == cause and abs(seconds) >= _RESOLUTION
            ),
            key=lambda item: -abs(item[0]),
        )
        shown = ", ".join(f"{place} {_signed(seconds)}" for seconds, place in places[:3])
        table.add_row(cause, _signed(found.causes[cause]), shown)
    table.add_row("measured", format_seconds(found.measured, 4), "")
    return table


def _worker_table(done: Compared) -> Table:
    """What each device spends its step on, predicted and measured."""
    table = Table(title="Devices, predicted / measured", title_justify="left")
    table.add_column("device")
    for cause in CAUSES:
        table.add_column(cause, justify="right")
    predicted, measured = worker_times(done.predicted), worker_times(done.measured)
    for device in sorted(measured):
        cells = [
            f"{_plain(predicted[device][cause])} / {_plain(measured[device][cause])}"
            for cause in CAUSES
        ]
        table.add_row(str(device), *cells)
    return table


def _op_table(done: Compared) -> Table:
    """Own seconds of the ops by stage and letter, medians."""
    table = Table(title="Ops, medians of their own time", title_justify="left")
    for name in ("op", "predicted", "measured", ""):
        table.add_column(name, justify="left" if name == "op" else "right")
    medians = [_medians(spans) for spans in (done.predicted, done.measured)]
    for kind in sorted(medians[0].keys() & medians[1].keys()):
        a, b = medians[0][kind], medians[1][kind]
        table.add_row(kind, format_seconds(a), format_seconds(b), f"{a / b - 1:+.0%}")
    return table


def _medians(spans: Sequence[Span]) -> dict[str, float]:
    """Median own seconds by stage and letter."""
    kinds: dict[str, list[float]] = {}
    for span in spans:
        kinds.setdefault(span.op.rstrip("0123456789"), []).append(span.own)
    return {kind: float(np.median(values)) for kind, values in kinds.items()}
