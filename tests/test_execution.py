"""Many tasks at once: real worker processes, killed, failing and interrupted."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from lottery.errors import LotteryError
from lottery.running import machine
from lottery.running.executors import Task, compute
from lottery.running.progress import Progress
from lottery.running.workers import worker_count

ROOT = Path(__file__).parent.parent
PATIENCE = 30  # seconds, at most, for something that takes a fraction of one


def nothing(worker):
    """Nothing to prepare."""


def wait_for(condition):
    """Waits until the condition holds; False where it does not in time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def drawn(seed, round_):
    """What stands for the result of a run."""
    return hashlib.sha256(f"{seed}:{round_}".encode()).hexdigest()


def draw(seed, rounds, report):
    """Computes its runs in some steps, and reports each; with the process that it ran in."""
    for round_ in range(rounds):
        for done in (0, 5, 10):
            report(f"seed {seed}, round {round_}", done, 10, None)
        report(f"seed {seed}, round {round_}", 10, 10, "as it should")
    return [drawn(seed, round_) for round_ in range(rounds)], os.getpid()


def fail(error, report):
    report("seed 1, ticket, round 3", 5, 10, None)
    raise error


def give_back_what_cannot_be_sent(report):
    return threading.Lock()


def meet(folder, me, other, report):
    """Waits for the other one to have started too."""
    (folder / me).touch()
    return wait_for((folder / other).exists)


def kill_own_worker(counter, times, further, report):
    """Kills its worker ``times`` times; each time ``further`` on, as a run with checkpoints is."""
    with open(counter, "a") as file:
        file.write("x")
    attempt = counter.stat().st_size
    report("seed 2, ticket, round 6", attempt if further else 5, 10, None)
    if attempt <= times:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    report("seed 2, ticket, round 6", 10, 10, "as it should")
    return attempt


def sleep(folder, report):
    """Says which process it runs in, then sleeps for longer than a test takes."""
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(600)


def draws(seeds, rounds=1):
    return [Task(f"seed {s}", partial(draw, s, rounds), rounds, 10 * rounds) for s in range(seeds)]


def task(name, function, *arguments):
    return Task(name, partial(function, *arguments), 1, 10)


def run(tasks, *, prepare=nothing, title="retrain"):
    return compute(tasks, prepare, title=title, threads=1)


@pytest.fixture(autouse=True)
def two_workers(monkeypatch):
    monkeypatch.setenv("LOTTERY_WORKERS", "2")


@pytest.mark.parametrize(
    "environment",
    [{"LOTTERY_WORKERS": "1"}, {"LOTTERY_WORKERS": "8"}, {"LOTTERY_EXECUTOR": "in-process"}],
)
def test_results_come_in_the_order_of_the_tasks_wherever_they_are_computed(
    environment, monkeypatch, tmp_path
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    results = run(draws(3, rounds=2), prepare=partial(mark_process, tmp_path))
    expected = [[drawn(seed, round_) for round_ in range(2)] for seed in range(3)]
    assert [values for values, _ in results] == expected
    prepared = dict(path.name.split("-") for path in tmp_path.iterdir())
    assert {process for _, process in results} == set(map(int, prepared.values()))
    # no more workers than tasks, each with its number, and none is left
    assert set(prepared) == ({"0", "1", "2"} if "8" in environment.values() else {"0"})
    left = [int(pid) for pid in prepared.values() if psutil.pid_exists(int(pid))]
    assert left == ([os.getpid()] if "LOTTERY_EXECUTOR" in environment else [])


def mark_process(folder, worker):
    (folder / f"{worker}-{os.getpid()}").touch()


def test_tasks_run_side_by_side_and_none_are_done_at_once(tmp_path):
    assert run([task(me, meet, tmp_path, me, other) for me, other in ("ab", "ba")]) == [True, True]
    assert run([]) == []


@pytest.mark.parametrize("executor", ["processes", "in-process"])
def test_failing_tasks_are_each_named_and_the_others_finish(executor, monkeypatch, capfd):
    monkeypatch.setenv("LOTTERY_EXECUTOR", executor)
    mistake, defect = LotteryError("data/masks: damaged"), ValueError("no such layer")
    tasks = [*draws(2), task("first", fail, mistake), task("second", fail, defect), *draws(1)]
    tasks.append(task("third", fail, SystemExit(0)))
    with pytest.raises(LotteryError) as raised:
        run(tasks)
    lines = str(raised.value).splitlines()
    assert "first: data/masks: damaged" in lines
    assert "ValueError: no such layer" in lines
    assert any(line.startswith("second: Traceback") or '"""' in line for line in lines)
    assert "third: sys.exit(0) was called" in lines
    assert lines[-1].startswith("3 of 6 runs finished and are kept")
    assert "taken up again" not in capfd.readouterr().out


def refuse(worker):
    raise RuntimeError("no such device")


def leave(worker):
    raise SystemExit(0)


def test_workers_that_cannot_start_and_results_that_cannot_be_sent_fail_by_name(capfd):
    with pytest.raises(LotteryError) as error:
        run(draws(2), prepare=refuse)
    for seed in (0, 1):
        assert f"seed {seed}: its worker could not start: Traceback" in str(error.value)
    assert str(error.value).splitlines().count("RuntimeError: no such device") == 2
    with pytest.raises(LotteryError, match=r"(?s)could not start: .*SystemExit: 0"):
        run(draws(1), prepare=leave)
    with pytest.raises(LotteryError, match=r"(?s)mine: .*cannot pickle '_thread.lock' object"):
        run([*draws(1), task("mine", give_back_what_cannot_be_sent)])
    assert "taken up again" not in capfd.readouterr().out


# Workers that die


def test_a_task_whose_worker_dies_is_taken_up_again_and_the_others_never_notice(tmp_path, capfd):
    tasks = [task("seed 2", kill_own_worker, tmp_path / "attempts", 2, False), *draws(3)]
    attempts, *others = run(tasks)
    assert attempts == 3
    assert [values for values, _ in others] == [[drawn(seed, 0)] for seed in range(3)]
    lines = capfd.readouterr().out.splitlines()
    assert lines.count("retrain: seed 2: its worker died; taken up again") == 2
    assert sum("taken up again" in line for line in lines) == 2


def test_after_three_deaths_without_progress_a_task_fails_by_name(tmp_path):
    tasks = [*draws(4), task("seed 2", kill_own_worker, tmp_path / "attempts", 99, False)]
    with pytest.raises(LotteryError, match=r"seed 2: its worker died 3 times; .*memory") as raised:
        run(tasks)
    assert (tmp_path / "attempts").read_text() == "xxx"
    assert "4 of 5 runs finished" in str(raised.value)


def test_a_task_that_gets_further_each_time_is_taken_up_again_as_often_as_it_takes(tmp_path):
    assert run([task("seed 2", kill_own_worker, tmp_path / "attempts", 5, True)]) == [6]


# Progress

LINE = re.compile(r"retrain: (\d)/6 (seed \d, round \d): as it should, \d+:\d\d")


def test_without_a_terminal_each_finished_run_gives_a_line(capfd):
    run(draws(3, rounds=2))
    announcement, *lines = capfd.readouterr().out.splitlines()
    assert announcement == "retrain: 6 runs of 10 iterations, 2 at a time"
    found = [LINE.fullmatch(line) for line in lines]
    assert [match[1] for match in found] == list("123456")
    assert sorted(m[2] for m in found) == [f"seed {s}, round {r}" for s in range(3) for r in (0, 1)]


def test_the_time_left_is_told_once_ten_seconds_of_training_are_known(capfd, monkeypatch):
    """Neither TensorFlow's start nor what comes from the run store counts."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress("prune", runs=4, iterations=400)
    progress.begin("here")
    for second, run, done, how in (
        (5, "a", 0, None),
        (8, "a", 20, None),  # from here on
        (12, "b", 100, "from the run store"),
        (13, "a", 100, "80 iterations"),
        (18, "c", 0, None),
        (28, "c", 100, "100 iterations"),  # 180 iterations in 20 s
        (29, "d", 0, None),
        (38, "d", 100, "100 iterations"),
    ):
        clock[0] = 100.0 + second
        progress.hear(0, run, done, 100, how)
    assert capfd.readouterr().out.splitlines() == [
        "prune: 4 runs of 100 iterations, here",
        "prune: 1/4 b: from the run store, 0:12",
        "prune: 2/4 a: 80 iterations, 0:13",
        "prune: 3/4 c: 100 iterations, 0:28, 0:11 left",
        "prune: 4/4 d: 100 iterations, 0:38",
    ]


# What the environment says


def test_an_unknown_executor_is_an_error_that_names_the_variable(monkeypatch):
    monkeypatch.setenv("LOTTERY_EXECUTOR", "slurm")
    with pytest.raises(LotteryError) as error:
        run(draws(1))
    said = "LOTTERY_EXECUTOR: got 'slurm'; accepted: processes, in-process or ray"
    assert str(error.value) == said


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", " ", "+3", "9" * 5000])
def test_a_bad_number_of_workers_is_an_error_that_names_the_variable(monkeypatch, value):
    monkeypatch.setenv("LOTTERY_WORKERS", value)
    with pytest.raises(LotteryError) as error:
        worker_count(1)
    accepted = "accepted: a whole number from 1 to 9999"
    assert str(error.value) == f"LOTTERY_WORKERS: got {value!r}; {accepted}"


def test_by_default_the_workers_threads_fill_the_cores(monkeypatch):
    monkeypatch.setenv("LOTTERY_WORKERS", "")
    cores = len(os.sched_getaffinity(0))
    assert worker_count(1) == cores
    assert worker_count(2) == max(1, cores // 2)
    assert worker_count(1000) == 1


# Interrupted and killed


def drive(folder):
    """What the driver below runs: three tasks that never end, on two workers."""
    for which in (signal.SIGINT, signal.SIGTERM):  # ignored where tests run in the background
        signal.signal(which, signal.default_int_handler)
    try:
        run([task(f"sleep {n}", sleep, folder) for n in range(3)])
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.fixture
def driver(tmp_path):
    """A driver in a process group of its own, with both workers at work; all its processes."""
    code = f"import pathlib, test_execution; test_execution.drive(pathlib.Path({str(tmp_path)!r}))"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", code]
    with open(tmp_path / "output", "w") as out:
        how = {"cwd": ROOT, "env": env, "stdout": out, "stderr": out, "start_new_session": True}
        process = subprocess.Popen(command, **how)
    try:
        working = lambda: len(list(tmp_path.glob("*.pid"))) == 2  # noqa: E731
        assert wait_for(working), (tmp_path / "output").read_text()
        started = psutil.Process(process.pid).children(recursive=True)
        assert {int(path.stem) for path in tmp_path.glob("*.pid")} <= {p.pid for p in started}
        yield process, started
    finally:
        for path in tmp_path.glob("*.pid"):
            if psutil.pid_exists(int(path.stem)):
                os.kill(int(path.stem), signal.SIGKILL)
        process.kill()
        process.wait()


def has_ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda pid: os.killpg(pid, signal.SIGINT), 130),  # Ctrl-C
        (lambda pid: os.kill(pid, signal.SIGTERM), 130),
        (lambda pid: os.kill(pid, signal.SIGKILL), -signal.SIGKILL),
    ],
)
def test_workers_end_with_their_driver_however_that_ends(driver, tmp_path, end, status):
    process, started = driver
    at = time.monotonic()
    end(process.pid)
    assert process.wait(PATIENCE) == status
    assert wait_for(lambda: all(map(has_ended, started)))
    assert time.monotonic() - at < 10
    said = (tmp_path / "output").read_text()
    assert "Traceback" not in said
    assert "taken up again" not in said


def test_a_cpu_without_a_name_is_told_by_its_part_and_features_in_brackets(monkeypatch):
    known = "processor : 0\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU part : 0xd40\n\n"
    monkeypatch.setattr(machine.Path, "exists", lambda path: True)
    monkeypatch.setattr(machine.Path, "read_text", lambda path, encoding: known)
    monkeypatch.setattr("platform.processor", lambda: "aarch64")
    assert machine.cpu_model.__wrapped__() == "aarch64 (0x41 0xd40 fp asimd)"


def test_variables_that_change_arithmetic_count_those_that_libraries_set_as_they_start_do_not(
    monkeypatch,
):
    before = machine.variables()
    for name in ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "OMP_NUM_THREADS", "TF_CPP_X"):
        monkeypatch.setenv(name, "1")
    assert machine.variables() == before
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert machine.variables() == before | {"TF_ENABLE_ONEDNN_OPTS": "0"}
