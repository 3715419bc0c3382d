"""Grids: rows, resumption, files, executors that give the same results."""

import csv
import json
import signal
import subprocess
import sys
import time

import pytest

from mpsim.errors import ScenarioError
from mpsim.planner.evaluate import Runner, evaluate
from mpsim.planner.executors import mapper, simulator
from mpsim.planner.executors.local import local_map
from mpsim.planner.grid import make_grid
from mpsim.planner.results import open_results
from mpsim.planner.search import search
from mpsim.planner.space import load_problem
from mpsim.planner.sweep import row, run_task, sweep, tasks
from mpsim.planner.tables import plot_rows, rows_table, write_rows
from mpsim.spec.reader import changed, load

VARY = ["plan.pipeline=6,12,7", "cluster.network.bandwidth=5GB/s:25GB/s:2"]


@pytest.fixture(scope="module")
def scenario():
    return load("gpt3_bf16.yaml", {"training.global_batch": 32})


@pytest.fixture(scope="module")
def grid(scenario):
    return make_grid(scenario, VARY, fill="data")


@pytest.fixture(scope="module")
def rows(grid, tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "rows.jsonl"
    with mapper("local", None, jobs=1) as run:
        return sweep(grid, open_results(path, grid.key), run)


def test_each_row_is_its_scenario_simulated(scenario, rows):
    assert [one["status"] for one in rows] == ["ok"] * 4 + ["invalid"] * 2
    for one in rows[:4]:
        fields = {path: one[path] for path in ("plan.pipeline", "cluster.network.bandwidth")}
        fields["plan.data"] = 24 // fields["plan.pipeline"]
        outcome = evaluate(changed(scenario, fields))
        assert (one["step_time_s"], one["memory_bytes"]) == (outcome.step, outcome.memory)
    assert "tensor (8) x pipeline (7)" in rows[4]["reason"]


def test_a_point_that_does_not_fit_says_what_it_needs(scenario):
    one = row(scenario, {"cluster.device.memory": "20 GiB"}, Runner())
    assert one["status"] == "infeasible"
    assert one["reason"].startswith("needs ")
    assert one["step_time_s"] > 0


def test_a_grid_that_is_done_is_read_and_not_run(grid, rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    with mapper("local", None, jobs=1) as run:
        sweep(grid, open_results(path, grid.key), run)

    def never(function, items):
        raise AssertionError("simulated again")

    assert sweep(grid, open_results(path, grid.key), never) == rows


def test_an_interrupted_grid_goes_on_where_it_was(grid, rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    with mapper("local", None, jobs=1) as run:
        sweep(grid, open_results(path, grid.key), run)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # cut off within a line
    found = open_results(path, grid.key)
    assert sorted(found.rows) == [0, 1]
    done = []
    with mapper("local", None, jobs=1) as run:
        assert sweep(grid, found, run, progress=done.append) == rows
    assert sum(done) == len(grid)
    assert len(open_results(path, grid.key).rows) == len(grid)


def test_results_of_another_grid_are_not_touched(grid, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"grid": "other"}\n')
    with pytest.raises(ScenarioError, match="holds the results of another scenario"):
        open_results(path, grid.key)
    path.write_text("precious\n")
    with pytest.raises(ScenarioError, match="is no result file of mpsim"):
        open_results(path, grid.key)
    assert path.read_text() == "precious\n"


def test_files_hold_all_rows(rows, tmp_path):
    for kind in ("csv", "json", "parquet"):
        if kind == "parquet":
            pytest.importorskip("pyarrow")
        write_rows(rows, tmp_path / f"rows.{kind}", kind)
    with (tmp_path / "rows.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(one["step_time_s"]) for one in read[:4]] == [
        one["step_time_s"] for one in rows[:4]
    ]
    assert json.loads((tmp_path / "rows.json").read_text()) == list(rows)
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [one["status"] for one in table] == [one["status"] for one in rows]


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_two_axes_are_a_heat_map_and_one_is_a_line(scenario, grid, rows, tmp_path, ending):
    plot_rows(grid, rows, tmp_path / f"heat.{ending}")
    line = make_grid(scenario, ["cluster.device.memory=20GiB,40GiB,80GiB,0GiB"])
    one = [row(scenario, fields, Runner()) for fields in line.points()]
    assert {entry["status"] for entry in one} == {"ok", "infeasible", "invalid"}
    plot_rows(line, one, tmp_path / f"line.{ending}")
    assert (tmp_path / f"heat.{ending}").stat().st_size > 1000
    assert (tmp_path / f"line.{ending}").stat().st_size > 1000


def test_other_pictures_are_refused(scenario, grid, rows, tmp_path):
    with pytest.raises(ScenarioError, match="ending must be"):
        plot_rows(grid, rows, tmp_path / "a.txt")
    three = make_grid(scenario, ["seed=1", "plan.zero=1", "plan.bucket=1MB"])
    with pytest.raises(ScenarioError, match="shows one axis or two, not 3"):
        plot_rows(three, [], tmp_path / "a.svg")


def test_the_table_shows_each_point(grid, rows):
    assert rows_table(grid, rows).row_count == len(rows)


def test_processes_give_what_one_process_gives(grid, rows, tmp_path):
    with local_map(2) as run:
        assert sweep(grid, open_results(tmp_path / "two.jsonl", grid.key), run) == rows


def test_an_address_goes_with_dask():
    with (
        pytest.raises(ScenarioError, match="--address: goes with --executor dask"),
        mapper("local", "tcp://127.0.0.1:1"),
    ):
        pass
    with (
        pytest.raises(ScenarioError, match="--address: is needed with --executor dask"),
        mapper("dask", None),
    ):
        pass


def test_nobody_at_the_address_is_said(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("mpsim.planner.executors.dask._PATIENCE", 1)
    with (
        pytest.raises(ScenarioError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"),
        mapper("dask", "tcp://127.0.0.1:1"),
    ):
        pass


@pytest.fixture
def cluster():
    """A scheduler and two workers, processes of their own on the loopback address."""
    pytest.importorskip("distributed")
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    scheduler = start(
        "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"
    )
    address = ""
    for line in scheduler.stderr:
        if "Scheduler at:" in line:
            address = line.split()[-1]
            break
    workers = [
        start(
            "distributed.cli.dask_worker", address, "--host", "127.0.0.1", "--nthreads", "1",
            "--no-dashboard", "--no-nanny",
        )
        for _ in range(2)
    ]  # fmt: skip
    yield address, workers
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_killed_worker_loses_nothing(cluster, scenario, tmp_path, monkeypatch):
    address, workers = cluster
    monkeypatch.setattr("mpsim.planner.sweep._CHUNK", 4)
    grid = make_grid(scenario, ["cluster.network.bandwidth=5GB/s:25GB/s:60"])
    alone = [entry for task in tasks(grid, {}) for _, entry in run_task(task)]
    done = 0

    def progress(count):
        nonlocal done
        before, done = done, done + count
        if before < 8 <= done:
            workers[0].send_signal(signal.SIGKILL)

    results = open_results(tmp_path / "dask.jsonl", grid.key)
    with mapper("dask", address) as run:
        assert sweep(grid, results, run, progress=progress) == alone
    assert workers[0].wait(timeout=10) == -signal.SIGKILL
    assert workers[1].poll() is None
    assert open_results(tmp_path / "dask.jsonl", grid.key).rows == dict(enumerate(alone))
    _search_is_the_same(address)


def _search_is_the_same(address):
    """The same cluster also simulates the plans of a search."""
    space = load_problem(
        "plan_gpt3.yaml",
        ["plan.tensor=8", "plan.pipeline=[8, 16]", "plan.schedule=1f1b", "plan.chunks=1",
         "plan.context=1", "plan.partition=layers", "training.microbatch=[1, 2]"],
    )  # fmt: skip
    with simulator("dask", address) as simulate:
        far = search(space, top=3, simulate=simulate)
    near = search(space, top=3)
    assert [one.outcome for one in far.best] == [one.outcome for one in near.best]
    assert far.evaluated == near.evaluated


def test_ctrl_c_keeps_what_is_computed(tmp_path):
    results = tmp_path / "kept.jsonl"
    command = [
        sys.executable, "-m", "mpsim", "whatif", "gpt3_bf16.yaml", "--jobs", "1",
        "--vary", "cluster.network.bandwidth=5GB/s:25GB/s:4000", "--results", str(results),
    ]  # fmt: skip
    # a run in the background, as of a script, ignores Ctrl-C and hands that down
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while time.monotonic() < end and not (results.exists() and results.read_text().count("\n") > 9):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    kept = results.read_text().count("\n") - 1
    assert 9 <= kept < 4000
