"""Workers that do what they are told, and workers that do not: nothing hangs, nothing is left."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mpsim.errors import CalibrationError
from mpsim.hardware.devices import Machine, place
from mpsim.hardware.workers import Workers

TASKS = """
import os, signal, sys, time
import torch
import torch.distributed as dist

def whoami(context):
    return context.rank, os.getpid(), sorted(os.sched_getaffinity(0)), torch.get_num_threads()

def total(context, value):
    tensor = torch.tensor(float(value + context.rank))
    dist.all_reduce(tensor)
    return tensor.item()

def die(context, rank, code):
    if context.rank == rank:
        print("farewell", flush=True)
        os._exit(code)
    dist.barrier()

def killed(context):
    if context.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

def hang(context):
    if context.rank == 1:
        time.sleep(60)

def fail(context, what):
    if context.rank == 1:
        raise ValueError(what)
    dist.barrier()

def exhaust(context):
    if context.rank == 0:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    dist.barrier()
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A module of tasks that workers find by its name."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "worker_tasks_for_tests.py").write_text(textwrap.dedent(TASKS))
    sys.path.insert(0, str(folder))
    import worker_tasks_for_tests

    yield worker_tasks_for_tests
    sys.path.remove(str(folder))


@pytest.fixture
def two():
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return place(("cpu", "cpu"), Machine(gpus=(), cores=cores))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_are_pinned_to_disjoint_cores_and_meet(tasks, two):
    with Workers(two) as workers:
        (first, second) = workers.run(tasks.whoami)
        assert (first[0], second[0]) == (0, 1)
        assert (first[1], second[1]) == workers.pids
        assert not set(first[2]) & set(second[2])
        assert first[3] == second[3] == 1
        assert workers.run(tasks.total, 10) == [21.0, 21.0]
        pids = workers.pids
    assert not any(alive(pid) for pid in pids)


def broken(task, *arguments, timeout=60.0, placement):
    """The message of a task that goes wrong, after checking that no process is left."""
    with Workers(placement, timeout=timeout) as workers:
        pids = workers.pids
        begin = time.monotonic()
        with pytest.raises(CalibrationError) as caught:
            workers.run(task, *arguments)
        assert time.monotonic() - begin < 10
        assert not any(alive(pid) for pid in pids)
        with pytest.raises(CalibrationError, match="the workers have ended"):
            workers.run(task, *arguments)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_a_worker_that_dies_is_named_with_its_last_words(tasks, two):
    message = broken(tasks.die, 1, 7, placement=two)
    assert message.startswith(
        "worker 1 ended with code 7 while running its part\n  its last words:\n"
    )
    assert message.endswith("farewell")


def test_a_worker_that_is_killed_is_named_with_the_signal(tasks, two):
    message = broken(tasks.killed, placement=two)
    assert message == (
        "worker 0 was killed by signal 9 while running its part: perhaps the machine ran out of "
        "memory"
    )


def test_a_worker_that_hangs_is_ended(tasks, two):
    message = broken(tasks.hang, timeout=1.0, placement=two)
    assert message == "worker 1 did not end running its part within 1 s; ended"


def test_a_task_that_raises_is_told(tasks, two):
    message = broken(tasks.fail, "no such thing", placement=two)
    assert message.startswith("worker 1 (cpu) failed running its part: ValueError: no such thing")


def test_out_of_memory_is_told_as_such(tasks, two):
    message = broken(tasks.exhaust, placement=two)
    assert message.startswith(
        "worker 0 (cpu) failed running its part: out of memory: CUDA out of memory. Tried to "
    )


INTERRUPTED = """
import sys, time
from mpsim.hardware.devices import Machine, place
from mpsim.hardware.workers import Workers
sys.path.insert(0, {folder!r})
import worker_tasks_for_tests as tasks

with Workers(place(("cpu", "cpu"), Machine(gpus=(), cores=(0,)))) as workers:
    print(*workers.pids, flush=True)
    workers.run(tasks.hang)
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGKILL"])
def test_no_worker_outlives_its_parent(tasks, signal):
    import signal as signals

    folder = str(Path(tasks.__file__).parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(folder=folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a run in the background, as of a script, ignores Ctrl-C and hands that down
        preexec_fn=lambda: signals.signal(signals.SIGINT, signals.SIG_DFL),
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(getattr(signals, signal))
    parent.communicate(timeout=20)
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
