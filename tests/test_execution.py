"""Many runs at once: real worker processes, killed, failing and interrupted."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from lottery.errors import LotteryError
from lottery.running.executors import Local, chosen, execute, worker_count

ROOT = Path(__file__).parent.parent
PATIENCE = 30  # seconds, at most, for something that takes a fraction of one


def nothing(worker):
    """Nothing to prepare."""


def append(path, text="x"):
    with open(path, "a") as file:
        file.write(text)


def wait_for(condition):
    """Waits until the condition holds; False where it does not in time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class Described:
    def describe(self, result):
        return "as it should"


def drawn(seed, round_):
    """What stands for the result of a run."""
    return hashlib.sha256(f"{seed}:{round_}".encode()).hexdigest()


@dataclass(frozen=True)
class Draw(Described):
    """Computes its result in some steps, and reports each."""

    seed: int
    round: int = 0
    iterations: int = 10

    @property
    def name(self):
        return f"seed {self.seed}, round {self.round}"

    def __call__(self, report):
        for done in range(0, self.iterations + 1, 5):
            report(done)
        return drawn(self.seed, self.round)


@dataclass(frozen=True)
class Echo(Described):
    """Gives back what it was made with, and the process that it ran in."""

    value: object
    name: str = "echo"
    iterations: int = 0

    def __call__(self, report):
        return self.value, os.getpid()


@dataclass(frozen=True)
class Meet(Described):
    """Waits for the other one to have started too."""

    folder: Path
    me: str
    other: str
    iterations: int = 1

    @property
    def name(self):
        return self.me

    def __call__(self, report):
        (self.folder / self.me).touch()
        return wait_for((self.folder / self.other).exists)


@dataclass(frozen=True)
class Fail(Described):
    error: Exception
    name: str = "seed 1, ticket, round 3"
    iterations: int = 10

    def __call__(self, report):
        report(5)
        raise self.error


@dataclass(frozen=True)
class KillOwnWorker(Described):
    """Kills its worker the first ``times`` times that it is run."""

    counter: Path
    times: int
    name: str = "seed 2, ticket, round 6"
    iterations: int = 10

    def __call__(self, report):
        append(self.counter)
        report(5)
        if self.counter.stat().st_size <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.counter.stat().st_size


@dataclass(frozen=True)
class Sleep(Described):
    """Says which process it runs in, then sleeps for longer than a test takes."""

    folder: Path
    name: str
    iterations: int = 10

    def __call__(self, report):
        (self.folder / f"{os.getpid()}.pid").touch()
        time.sleep(600)


def chain_of(tasks, results, ends=None):
    """A chain that collects its results, and says how it ended."""
    try:
        for task in tasks:
            results.append((yield task))
        if ends is not None:
            ends.append("finished")
    except GeneratorExit:
        if ends is not None:
            ends.append("ended")
        raise


def run(chains, *, workers=1, runs=1, iterations=10, prepare=nothing, title="prune"):
    execute(chains, Local(prepare, workers), title=title, runs=runs, iterations=iterations)


def progress_lines(capfd):
    captured = capfd.readouterr()
    return [line for line in (captured.out + captured.err).splitlines() if line.strip()]


def test_chains_get_their_results_back_in_order():
    results = [[] for _ in range(5)]
    run(
        [
            chain_of([Echo((number, step)) for step in range(4)], results[number])
            for number in range(5)
        ],
        workers=2,
    )
    for number in range(5):
        assert [value for value, _ in results[number]] == [(number, step) for step in range(4)]
    processes = {pid for chain in results for _, pid in chain}
    assert 1 <= len(processes) <= 2
    assert os.getpid() not in processes


def test_a_chain_may_choose_its_next_task_by_the_result_of_the_last():
    sums = []

    def doubling():
        value = 1
        while value < 20:
            value, _ = yield Echo(2 * value)
        sums.append(value)

    run([doubling(), doubling()])
    assert sums == [32, 32]


def test_results_do_not_depend_on_the_number_of_workers():
    def with_workers(workers):
        results = [[] for _ in range(4)]
        chains = [chain_of([Draw(s, r) for r in range(3)], results[s]) for s in range(4)]
        run(chains, workers=workers, runs=12, iterations=120)
        return results

    alone = with_workers(1)
    assert alone == [[drawn(s, r) for r in range(3)] for s in range(4)]
    assert with_workers(3) == alone


def test_chains_run_side_by_side(tmp_path):
    results = []
    chains = [chain_of([Meet(tmp_path, *names)], results) for names in (("a", "b"), ("b", "a"))]
    run(chains, workers=2, runs=2, iterations=2)
    assert results == [True, True]


def test_no_chains_and_chains_without_tasks_are_done_at_once():
    ends = []
    run([])
    run([chain_of([], [], ends), chain_of([], [], ends)], workers=2)
    assert ends == ["finished", "finished"]


def mark_process(folder, worker):
    append(folder / str(os.getpid()))


def test_each_worker_is_prepared_once_and_serves_many_tasks(tmp_path):
    results = []
    run(
        [chain_of([Echo(1), Echo(2)], results) for _ in range(4)],
        workers=2,
        prepare=partial(mark_process, tmp_path),
    )
    assert len(results) == 8
    prepared = {int(path.name): path.read_text() for path in tmp_path.iterdir()}
    assert set(prepared.values()) == {"x"}
    assert len(prepared) <= 2
    assert {pid for _, pid in results} <= set(prepared)


def test_there_are_no_more_workers_than_chains_and_none_is_left(tmp_path):
    results = []
    run([chain_of([Echo(1), Echo(2)], results)], workers=8, prepare=partial(mark_process, tmp_path))
    (worker,) = [int(path.name) for path in tmp_path.iterdir()]
    assert results == [(1, worker), (2, worker)]
    assert not psutil.pid_exists(worker)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            LotteryError("data/masks/seed-1: damaged"),
            "seed 1, ticket, round 3: data/masks/seed-1: damaged",
        ),
        (ValueError("no such layer"), "ValueError: no such layer"),
    ],
)
def test_a_failing_task_ends_its_chain_and_the_others_finish(error, said):
    results, ends = [[], [], []], [[], [], []]
    chains = [
        chain_of([Draw(0), Draw(0, 1)], results[0], ends[0]),
        chain_of([Draw(1), Fail(error), Draw(1, 2)], results[1], ends[1]),
        chain_of([Draw(2), Draw(2, 1)], results[2], ends[2]),
    ]
    with pytest.raises(LotteryError) as raised:
        run(chains, workers=2, runs=7, iterations=70)
    assert [len(of_chain) for of_chain in results] == [2, 1, 2]
    assert ends == [["finished"], ["ended"], ["finished"]]
    message = str(raised.value)
    assert message.startswith("seed 1, ticket, round 3: ")
    assert said in message
    assert "5 of 7 runs finished" in message


def test_each_of_several_failures_is_named():
    chains = [chain_of([Fail(LotteryError("broken"), name=f"seed {s}")], []) for s in range(3)]
    with pytest.raises(LotteryError) as raised:
        run(chains, runs=3, iterations=30)
    assert sorted(str(raised.value).splitlines()[:3]) == [f"seed {s}: broken" for s in range(3)]


def test_a_task_that_kills_its_worker_twice_finishes_at_the_third_attempt(tmp_path):
    results = [[], []]
    chains = [
        chain_of([KillOwnWorker(tmp_path / "attempts", 2), Echo("next")], results[0]),
        chain_of([Draw(0), Draw(0, 1)], results[1]),
    ]
    run(chains, workers=2, runs=3, iterations=30)
    assert results[0][0] == 3
    assert results[0][1][0] == "next"
    assert len(results[1]) == 2


def test_a_task_that_always_kills_its_worker_fails_by_name_after_three_attempts(tmp_path):
    results, ends = [[], []], [[], []]
    chains = [
        chain_of([KillOwnWorker(tmp_path / "attempts", 100), Echo("next")], results[0], ends[0]),
        chain_of([Draw(0, r) for r in range(4)], results[1], ends[1]),
    ]
    with pytest.raises(
        LotteryError, match=r"seed 2, ticket, round 6: its worker died 3 times \(exit status -9\)"
    ) as raised:
        run(chains, workers=2, runs=5, iterations=50)
    assert (tmp_path / "attempts").read_text() == "xxx"
    assert [len(of_chain) for of_chain in results] == [0, 4]
    assert ends == [["ended"], ["finished"]]
    assert "4 of 5 runs finished" in str(raised.value)


LINE = re.compile(
    r"retrain: +(\d+)/(\d+) (seed [^:]+)(?:: .+)? \((\d+):(\d\d), (\d+):(\d\d) left\)"
)


def test_without_a_terminal_each_finished_run_gives_a_line_with_the_time_remaining(capfd):
    run(
        [chain_of([Draw(s, r) for r in range(2)], []) for s in range(3)],
        runs=6,
        iterations=60,
        title="retrain",
    )
    announcement, *lines = progress_lines(capfd)
    assert announcement == "retrain: 6 runs of 10 iterations, 1 at a time"
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    assert [match[1] for match in found] == ["1", "2", "3", "4", "5", "6"]
    assert {match[2] for match in found} == {"6"}
    assert sorted(match[3] for match in found) == [
        f"seed {s}, round {r}" for s in range(3) for r in range(2)
    ]
    assert found[-1].group(6, 7) == ("0", "00")


def test_tasks_without_iterations_give_no_progress_line(capfd):
    results = []
    run([chain_of([Echo(1), Draw(0), Echo(2)], results)], runs=1, title="retrain")
    assert len(results) == 3
    _, line = progress_lines(capfd)
    assert LINE.fullmatch(line)[3] == "seed 0, round 0"


def test_a_task_taken_up_again_is_said_by_name(tmp_path, capfd):
    run([chain_of([KillOwnWorker(tmp_path / "attempts", 1)], [])], title="retrain")
    _, first, last = progress_lines(capfd)
    assert "seed 2, ticket, round 6" in first
    assert "worker died (exit status -9)" in first
    assert LINE.fullmatch(last).group(1, 2) == ("1", "1")


# Workers that cannot do what they are asked to


def refuse(worker):
    raise RuntimeError("no such device")


@dataclass(frozen=True)
class GiveBack(Described):
    """Its result cannot be sent to another process."""

    name: str = "seed 3, ticket, round 1"
    iterations: int = 10

    def __call__(self, report):
        return lambda: None


def test_a_worker_that_cannot_be_prepared_fails_its_tasks_once_and_says_why(capfd):
    with pytest.raises(LotteryError) as error:
        execute(
            [chain_of([Draw(0)], []), chain_of([Draw(1)], [])],
            Local(refuse, 1),
            title="t",
            runs=2,
            iterations=20,
        )
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines if "could not start" in line] == [
        "seed 0, round 0",
        "seed 1, round 0",
    ]
    assert lines.count("RuntimeError: no such device") == 2
    assert "taken up again" not in capfd.readouterr().out


def test_a_result_that_cannot_be_sent_fails_its_run_and_not_its_worker(capfd):
    results = []
    chains = [chain_of([GiveBack()], []), chain_of([Draw(1)], results)]
    with pytest.raises(
        LotteryError, match=r"(?s)seed 3, ticket, round 1: .*Can't (pickle|get) local object"
    ):
        execute(chains, Local(nothing, 1), title="t", runs=2, iterations=20)
    assert results == [drawn(1, 0)]
    assert "taken up again" not in capfd.readouterr().out


@dataclass(frozen=True)
class KillOwnWorkerFurtherOn(Described):
    """Kills its worker at each of its steps, one further each time, as a run that goes on from checkpoints does."""

    counter: Path
    name: str = "seed 2, ticket, round 6"
    iterations: int = 6

    def __call__(self, report):
        append(self.counter)
        done = self.counter.stat().st_size
        report(done)
        if done < self.iterations:
            os.kill(os.getpid(), signal.SIGKILL)
        return done


def test_a_task_that_gets_further_each_time_is_taken_up_again_as_often_as_it_takes(tmp_path):
    results = []
    run([chain_of([KillOwnWorkerFurtherOn(tmp_path / "attempts")], results)], iterations=6)
    assert results == [6]


# How many workers


def test_an_unknown_executor_is_an_error_that_names_the_variable(monkeypatch):
    monkeypatch.setenv("LOTTERY_EXECUTOR", "slurm")
    with pytest.raises(LotteryError) as error:
        chosen(nothing, 1)
    assert str(error.value) == "LOTTERY_EXECUTOR: got 'slurm'; accepted: local or ray"


def test_the_environment_sets_the_number_of_workers(monkeypatch):
    monkeypatch.setenv("LOTTERY_WORKERS", "7")
    assert worker_count(1) == 7
    assert worker_count(4) == 7


@pytest.mark.parametrize(
    "value", ["0", "-1", "two", "1.5", " ", "1e3", "0x2", "+3", "1 2", "9" * 5000]
)
def test_a_bad_number_of_workers_is_an_error_that_names_the_variable(monkeypatch, value):
    monkeypatch.setenv("LOTTERY_WORKERS", value)
    with pytest.raises(LotteryError) as error:
        worker_count(1)
    assert (
        str(error.value)
        == f"LOTTERY_WORKERS: got {value!r}; accepted: a whole number from 1 to 9999"
    )


@pytest.mark.parametrize("value", [None, ""])
def test_by_default_the_workers_threads_fill_the_cores(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("LOTTERY_WORKERS", raising=False)
    else:
        monkeypatch.setenv("LOTTERY_WORKERS", value)
    cores = len(os.sched_getaffinity(0))
    assert worker_count(1) == cores
    assert worker_count(cores) == 1
    assert worker_count(2) == max(1, cores // 2)
    assert worker_count(1000) == 1


# Interrupted and killed


def drive(folder):
    """What the driver below runs: three chains that never end, on two workers."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where the tests run in a shell's background
    try:
        run(
            [chain_of([Sleep(folder, f"sleep {n}")], []) for n in range(3)],
            workers=2,
            runs=3,
            iterations=30,
        )
    except KeyboardInterrupt:
        (folder / "interrupted").touch()
        sys.exit(130)


@pytest.fixture
def driver(tmp_path):
    """A driver in a process group of its own, with both of its workers at work; its workers."""
    code = f"import pathlib, test_execution; test_execution.drive(pathlib.Path({str(tmp_path)!r}))"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=env,
            start_new_session=True,
            stdout=output,
            stderr=output,
        )
    try:
        assert wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2), (
            tmp_path / "output"
        ).read_text()
        started = psutil.Process(process.pid).children(recursive=True)
        workers = {int(path.stem) for path in tmp_path.glob("*.pid")}
        assert workers <= {child.pid for child in started}
        yield process, started
    finally:
        for child in (
            psutil.Process(process.pid).children(recursive=True)
            if psutil.pid_exists(process.pid)
            else []
        ):
            child.kill()
        process.kill()
        process.wait()


def has_ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_ctrl_c_ends_all_workers_within_seconds(driver, tmp_path):
    process, started = driver
    at = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert wait_for(lambda: all(map(has_ended, started)))
    assert time.monotonic() - at < 10
    assert (tmp_path / "interrupted").exists()
    assert "Traceback" not in (tmp_path / "output").read_text()


def test_workers_end_when_their_driver_is_killed(driver):
    process, started = driver
    assert len(started) >= 2
    at = time.monotonic()
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert wait_for(lambda: all(map(has_ended, started)))
    assert time.monotonic() - at < 10
