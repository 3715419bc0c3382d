"""A simulated step against theory: Amdahl, bubbles, volumes, sums that must come out."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.cost.compiled import compile_scenario
from mpsim.engine import events, longest_path
from mpsim.errors import ScenarioError
from mpsim.report import explain
from mpsim.schedule.ops import Kind
from mpsim.simulation import simulate
from mpsim.spec.reader import build, load

UNIFORM = {
    "model": {
        "input": [256],
        "network": [{"type": "linear", "inputs": 256, "outputs": 256, "bias": False}] * 8,
    },
    "cluster": {
        "device": {
            "memory": "80 GiB",
            "memory_bandwidth": "2 TB/s",
            "peak": {"fp32": "19.5 TFLOP/s"},
            "multiprocessors": 108,
        },
        "node": {
            "devices": 4,
            "link": {"kind": "nvlink", "bandwidth": "1e9 TB/s", "latency": "0 s"},
        },
    },
    "plan": {"pipeline": 4, "schedule": "1f1b", "step_barrier": False},
    "training": {
        "global_batch": 64,
        "microbatch": 8,
        "precision": "fp32",
        "optimizer": "sgd",
        "gradient_clipping": False,
    },
}
"""A uniform pipeline without communication time."""


TRANSFORMER = {
    **UNIFORM,
    "model": {"layers": 8, "hidden": 512, "heads": 8, "vocab": 1024, "tied_embeddings": False},
    "cluster": {
        "device": "a100-sxm-80gb",
        "node": {
            "devices": 4,
            "link": {"kind": "nvlink", "bandwidth": "300 GB/s", "latency": "3 us"},
        },
    },
    "training": {"global_batch": 16, "sequence": 256},
}
"""A small transformer on four devices."""


def uniform(scenario):
    """The compiled scenario, its stages made alike and its updates of no time, and its step.

    The layers are alike but for the first one's backward, which needs no gradient of its input (as
    in torch): every op gets the seconds of the last stage's.
    """
    compiled = compile_scenario(scenario)
    graph, seconds = compiled.graph, np.zeros(compiled.graph.num_ops)
    for kind in (Kind.F, Kind.B):
        last = (graph.kind == kind) & (graph.stage == graph.num_stages - 1)
        seconds[graph.kind == kind] = compiled.work.seconds[last][0]
    work = dataclasses.replace(compiled.work, seconds=seconds, parts={"compute": seconds})
    return compiled, work, float(longest_path.run(graph, work).end.max())


@pytest.mark.parametrize("microbatches", [1, 2, 8, 32])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_a_uniform_pipeline_has_an_amdahl_fraction_of_exactly_one_minus_one_over_m(
    microbatches, devices
):
    scenario = build(
        UNIFORM,
        {
            "cluster.node.devices": devices,
            "plan.pipeline": devices,
            "training.global_batch": 8 * microbatches,
        },
    )
    compiled, work, step = uniform(scenario)
    compute = np.isin(compiled.graph.kind, (Kind.F, Kind.B))
    speed_up = float(work.seconds[compute].sum()) / step
    fraction = (1 - 1 / speed_up) / (1 - 1 / devices)
    assert fraction == pytest.approx(1 - 1 / microbatches, abs=1e-9)


def test_a_naive_split_speeds_nothing_up():
    # exact but for the update, which both devices do at the same time
    report = simulate(build(UNIFORM, {"plan.schedule": "naive"}))
    assert report.amdahl.fraction == pytest.approx(0.0, abs=0.02)
    assert report.busy_at_once == 1


def test_the_bubble_of_the_timeline_is_that_of_the_closed_form():
    for schedule, chunks in (("1f1b", 1), ("gpipe", 1), ("interleaved_1f1b", 2)):
        scenario = build(UNIFORM, {"plan.schedule": schedule, "plan.chunks": chunks})
        compiled, work, step = uniform(scenario)
        causes = explain.waterfall(compiled.graph, work, step, run=longest_path.run)
        formula = {"1f1b": 3 / 11, "gpipe": 3 / 11, "interleaved_1f1b": 3 / 19}[schedule]
        assert causes["bubble"] / step == pytest.approx(formula, rel=1e-9)
        # the report's closed form takes the mean op times, so it is that of the uniform pipeline
        assert simulate(scenario).bubble_formula == pytest.approx(formula, rel=1e-9)


SPLITS = [
    {},
    {"plan": {"tensor": 2, "pipeline": 2}},
    {"plan": {"tensor": 2, "data": 2}},
    {"plan": {"data": 4, "zero": 3}},
    {"plan": {"data": 4, "zero": 1, "overlap_data": False}},
    {"plan": {"data": 2, "pipeline": 2, "zero": 2}},
    {"plan": {"pipeline": 4, "p2p": "batched"}},
    {"plan": {"pipeline": 2, "tensor": 2, "sequence_parallel": True, "recompute": "selective"}},
    {"plan": {"pipeline": 4, "chunks": 2, "schedule": "interleaved_1f1b"}},
    {"plan": {"context": 2, "pipeline": 2, "recompute": "full"}},
    {"plan": {"pipeline": 4, "schedule": "zb_h1"}},
    {"cluster.node.shared_uplink": True},
]


@pytest.mark.parametrize("fields", SPLITS)
def test_causes_and_phases_sum_to_the_step(small, fields):
    report = simulate(small(fields))
    assert sum(report.waterfall.values()) == pytest.approx(report.step_time, rel=1e-12)
    assert sum(report.phase_seconds.values()) == pytest.approx(report.step_time, rel=1e-9)
    assert all(seconds >= -1e-9 * report.step_time for seconds in report.waterfall.values())


@pytest.mark.parametrize("fields", SPLITS)
def test_busy_and_idle_sum_to_devices_times_step(small, fields):
    report = simulate(small(fields))
    total = sum(device.compute + device.exchange + device.idle for device in report.devices)
    assert total == pytest.approx(len(report.devices) * report.step_time, rel=1e-9)


@pytest.mark.parametrize("fields", SPLITS)
def test_the_causes_of_amdahl_sum_to_the_serial_fraction(small, fields):
    amdahl = simulate(small(fields)).amdahl
    assert sum(amdahl.causes.values()) == pytest.approx(1 - amdahl.fraction, abs=1e-9)


@pytest.mark.parametrize("fields", SPLITS[:-1])
def test_both_engines_agree_where_no_link_is_shared(small, fields):
    scenario = small(fields)
    slow, fast = simulate(scenario, engine="events"), simulate(scenario, engine="fast")
    np.testing.assert_allclose(slow.timeline.end, fast.timeline.end, rtol=1e-12)
    np.testing.assert_allclose(slow.timeline.begin, fast.timeline.begin, rtol=1e-12, atol=1e-18)


def test_a_shared_uplink_is_never_faster(small):
    fields = {"plan": {"pipeline": 4}, "cluster.node.link.bandwidth": "1 GB/s"}
    alone = simulate(small(fields))
    shared = simulate(small({**fields, "cluster.node.shared_uplink": True}))
    assert shared.step_time >= alone.step_time
    assert np.all(
        events.run(shared.graph, shared.work).end
        >= longest_path.run(shared.graph, shared.work).end * (1 - 1e-12)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"plan.schedule": "gpipe"},
        {"plan": {"pipeline": 2, "data": 2}},
        {"plan": {"pipeline": 4, "chunks": 2, "schedule": "interleaved_1f1b"}},
        {"plan": {"pipeline": 4, "partition": [1, 2, 2, 3]}},
    ],
)
def test_the_volume_on_the_links_is_the_cut_formula_to_the_byte(small, fields):
    traffic = simulate(small(fields)).traffic
    assert traffic.measured == traffic.formula
    assert traffic.measured == sum(traffic.by_link.values()) > 0


def test_the_two_part_networks_traffic_by_hand():
    # the cut is 20 floats wide; 64 samples; the activation there and its gradient back
    report = simulate(load("two_device_mlp.yaml"))
    assert report.traffic.measured == 2 * 20 * 4 * 64
    assert report.busy_at_once == 1


def test_torchs_data_parallel_sends_inputs_weights_outputs_and_gradients():
    report = simulate(load("cnn_data_parallel.yaml"))
    inputs, weights, outputs = 50 * 28 * 28 * 4, 21840 * 4, 50 * 10 * 4
    assert report.traffic.measured == inputs + weights + 2 * outputs + weights
    assert report.traffic.measured == report.traffic.formula
    # all state but the copies of weights and gradients is on the first device
    assert report.devices[0].memory.peak >= report.devices[1].memory.peak


def test_data_parallel_refuses_what_torch_does_not_do(small):
    with pytest.raises(ScenarioError, match="runs the whole batch at once: use 4, or ddp"):
        simulate(small({"plan": {"data": 4, "data_parallel": "data_parallel"}}))


def test_an_unknown_schedule_gets_a_near_miss(small):
    with pytest.raises(ScenarioError, match=r"plan\.schedule: no schedule '1f1c'; did you mean"):
        simulate(small({"plan.schedule": "1f1c"}))


def test_memory_in_flight_of_1f1b_falls_along_the_pipeline(small):
    report = simulate(small({"model.vocab": 8, "training.microbatch": 2}))
    static = {"parameters", "gradients", "optimizer_state", "master_weights", "workspace"}
    alive = [
        max(
            sum(
                series
                for name, series in device.memory.components.items()
                if name == "mlp_up_input" and name not in static
            )
        )
        for device in report.devices
    ]
    # 8 microbatches: p - r are in flight on device r
    assert [round(nbytes / alive[-1]) for nbytes in alive] == [4, 3, 2, 1]


def test_gpipe_holds_all_microbatches_and_recomputation_holds_less(small):
    gpipe, one = simulate(small({"plan.schedule": "gpipe"})), simulate(small())
    full = simulate(small({"plan.recompute": "full"}))
    assert gpipe.peak_memory > one.peak_memory > full.peak_memory
    assert full.step_time > one.step_time


def test_memory_returns_to_its_static_part_at_the_end(small):
    for device in simulate(small({"plan.schedule": "zb_h1"})).devices:
        static = device.memory.total[0] - device.memory.components["mlp_up_input"][0]
        assert device.memory.components["mlp_up_input"][-1] == 0.0
        assert device.memory.total[-1] <= device.memory.peak
        assert static > 0


def test_split_backward_frees_later_when_released_at_w(small):
    at_w = simulate(small({"plan.schedule": "zb_h1", "plan.release": "weight"}))
    at_i = simulate(small({"plan.schedule": "zb_h1", "plan.release": "input"}))
    assert at_i.peak_memory <= at_w.peak_memory


def test_equal_scenarios_and_seeds_give_equal_reports(small):
    fields = {"disturbance.jitter": 0.1, "seed": 7}
    first, again = simulate(small(fields)), simulate(small(fields))
    other = simulate(small({**fields, "seed": 8}))
    assert first.interval == again.interval != other.interval
    np.testing.assert_array_equal(first.timeline.end, again.timeline.end)
    low, high = first.interval
    assert low < high


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["cluster.node.link.bandwidth", "cluster.device.memory_bandwidth"]),
    st.floats(1.1, 10.0),
    st.sampled_from(SPLITS),
)
def test_a_better_link_or_memory_never_slows_a_step(path, factor, fields):
    base = build(TRANSFORMER, fields)
    value = base.cluster.node.link.bandwidth
    if path.endswith("memory_bandwidth"):
        value = base.cluster.device.memory_bandwidth
    better = build(TRANSFORMER, {**fields, path: f"{value * factor} B/s"})
    assert simulate(better, engine="fast").step_time <= simulate(base, engine="fast").step_time * (
        1 + 1e-12
    )


def test_the_memory_wall_of_gpt3_by_hand():
    # 174.6e9 parameters x 4 B = 698 GB over 79.15 GiB less the context: 9 devices for the weights,
    # twice that with gradients, four times with Adam's two numbers
    wall = simulate(load("gpt3_fp32.yaml"), engine="fast").minimum_devices
    assert wall == {"weights": 9, "SGD": 17, "Adam": 34}


def test_asynchronous_schedules_are_told_in_their_steady_state(small):
    # never flushed: the slowest stage sets the pace (closed form A6 without hops), nothing bubbles
    fields = {"training.global_batch": 32, "cluster.node.link.bandwidth": "1e6 TB/s"}
    fields |= {"cluster.node.link.latency": "0 s", "plan.schedule": "pipedream_2bw"}
    report, flushed = simulate(small(fields)), simulate(small({**fields, "plan.schedule": "1f1b"}))
    passes = np.isin(report.graph.kind, (Kind.F, Kind.B))
    slowest = max(
        float(report.work.seconds[passes & (report.graph.device == device)].sum())
        for device in range(4)
    )
    update = max(float(report.work.seconds[report.graph.kind == Kind.STEP].max()), 0.0)
    assert report.step_time == pytest.approx(slowest + update, rel=1e-9)
    assert report.step_time < flushed.step_time
    assert "bubble" not in report.waterfall
    assert sum(report.waterfall.values()) == pytest.approx(report.step_time, rel=1e-12)


def test_pipedream_updates_after_every_microbatch_and_keeps_versions(small):
    two, every = (
        simulate(small({"plan.schedule": name})) for name in ("pipedream_2bw", "pipedream")
    )
    assert every.waterfall["update"] > two.waterfall["update"]
    weights = [report.devices[0].memory.components["parameters"][0] for report in (two, every)]
    # four versions on the first of four devices, two with double buffering
    assert weights[1] == 2 * weights[0]


def test_the_span_leaves_out_filling_and_update(small):
    report = simulate(small({"plan.schedule": "zb_h2", "training.global_batch": 32}))
    assert report.span < report.makespan == report.step_time


def test_zb_auto_stays_below_what_fits(small):
    free = simulate(small({"plan.schedule": "zb_auto", "training.global_batch": 64}))
    tight = {"plan.schedule": "zb_auto", "training.global_batch": 64, "plan.memory_limit": 4}
    assert simulate(small(tight)).peak_memory < free.peak_memory


def test_options_that_the_schedule_does_not_use_are_told():
    used = load("two_device_mlp.yaml", ["plan.schedule=gpipe", "plan.drain=descending"])
    assert not [note for note in simulate(used).notes if "not used" in note]
    unused = load("two_device_mlp.yaml", ["plan.schedule=1f1b", "plan.drain=descending"])
    assert "plan.drain is not used by 1f1b" in simulate(unused).notes


def test_a_link_with_an_unknown_profile_is_refused():
    scenario = load("two_device_mlp.yaml", ["cluster.node.link.profile=h100_sxn"])
    with pytest.raises(ScenarioError, match="h100_sxm"):
        simulate(scenario)
