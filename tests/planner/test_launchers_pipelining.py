"""The exported schedule and script, text and run."""

import subprocess
import sys

import pytest

from mpsim.errors import ScheduleError
from mpsim.planner.launchers.translate import export_scenario
from mpsim.schedule.orders import make_order
from mpsim.schedule.text import order_of, read_csv, rows_of
from mpsim.spec.reader import build

MODEL = {
    "layers": 6,
    "hidden": 32,
    "heads": 4,
    "kv_heads": 2,
    "vocab": 50,
    "ffn": 48,
    "gated_mlp": True,
    "bias": False,
    "norm": "rmsnorm",
    "tied_embeddings": False,
}


def scenario(devices=2, model=(), **plan):
    return build(
        {
            "name": "tiny",
            "model": MODEL | dict(model),
            "cluster": {"base": "two-cpu", "node": {"devices": devices}},
            "plan": plan,
            "training": {"global_batch": 8, "sequence": 8, "precision": "fp32"},
        }
    )


@pytest.mark.parametrize(
    "plan",
    [
        {"schedule": "1f1b"},
        {"schedule": "gpipe", "drain": "descending"},
        {"schedule": "zb_h1"},
        {"schedule": "interleaved_1f1b", "chunks": 2, "partition": [1, 2, 2, 1]},
        {"schedule": "zb_v", "chunks": 2, "partition": [1, 2, 2, 1]},
    ],
)
def test_the_csv_is_the_order_that_is_simulated(plan):
    exported = export_scenario(scenario(pipeline=2, **plan), "torch-pipelining")
    chunks = plan.get("chunks", 1)
    order = make_order(
        plan["schedule"],
        num_devices=2,
        num_microbatches=8,
        num_chunks=chunks,
        drain=plan.get("drain", "ascending"),
    )
    again = order_of(read_csv(exported.files[".csv"]), name="again")
    assert rows_of(again) == rows_of(order)
    compile(exported.files[".py"], "exported.py", "exec")


def test_what_the_script_does_not_do_is_named_in_it():
    exported = export_scenario(
        scenario(devices=4, pipeline=2, tensor=2, recompute="full", model={"position": "rope"}),
        "torch-pipelining",
    )
    assert {
        "plan.tensor = 2 (the file has 1)",
        "plan.recompute = full (the file has none)",
        "model.position = rope (the file has none)",
    } <= {str(item) for item in exported.lost}
    for item in exported.lost:
        assert f"# not expressed: {item}" in exported.files[".py"]


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"schedule": "pipedream"}, "pipedream is asynchronous"),
        ({"schedule": "seq_1f1b", "slices": 2}, "seq_1f1b cuts the sequence"),
        ({"schedule": "chimera"}, "chimera holds stages on two devices"),
    ],
)
def test_what_torch_cannot_run_is_refused(plan, reason):
    with pytest.raises(ScheduleError) as caught:
        export_scenario(scenario(pipeline=2, **plan), "torch-pipelining")
    assert str(caught.value) == f"{reason}, which torch's pipeline runtime cannot"


def test_the_script_trains_on_two_processes(tmp_path):
    """V-shaped zero bubbles, uneven stages, grouped queries: losses printed by the last stage."""
    pytest.importorskip("torch", reason="the hardware extra is not installed")
    made = scenario(pipeline=2, schedule="zb_v", chunks=2, partition=[1, 2, 2, 1])
    exported = export_scenario(made, "torch-pipelining", csv_name="tiny.csv")
    (tmp_path / "tiny.csv").write_text(exported.files[".csv"])
    script = tmp_path / "tiny.py"
    script.write_text(exported.files[".py"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(script), "--steps", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    # stage 3 of a V stands on device 0
    assert [line.split(" took")[0] for line in result.stdout.splitlines()] == [
        "rank 0: step 0",
        "rank 0: step 1",
    ]
