"""Many runs at once: worker processes of this machine that stay alive through a stage, or a Ray cluster.

Work comes as chains: generators that yield a task, get its result back, and may yield the next.
Chains run side by side, the tasks of one chain after one another. A result never depends on which
worker computed it, nor on how many there are. Where tasks are computed is an Executor: ``Local`` here, or
``lottery.cluster.Ray``; ``LOTTERY_EXECUTOR`` chooses.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from tqdm import tqdm

from lottery.errors import LotteryError

ATTEMPTS = 3  # a task whose worker died is taken up again at most twice, unless it had got further than before


class Task(Protocol):
    """Something to compute in a worker; picklable. Calling it gives the result."""

    @property
    def name(self) -> str: ...

    @property
    def iterations(self) -> int: ...

    def __call__(self, report: Callable[[int], None]) -> Any: ...

    def describe(self, result: Any) -> str:
        """How the result came about, in a few words; asked of tasks with iterations."""
        ...


Chain = Generator[Task, Any, None]


def given_workers() -> int | None:
    """``LOTTERY_WORKERS``; None where it is not set."""
    given = os.environ.get("LOTTERY_WORKERS", "")
    if not given:
        return None
    if not given.isdecimal() or len(given) > 4 or int(given) < 1:
        raise LotteryError(
            f"LOTTERY_WORKERS: got {given!r}; accepted: a whole number from 1 to 9999"
        )
    return int(given)


def worker_count(threads: int) -> int:
    """``LOTTERY_WORKERS``, by default one process of ``threads`` threads for each that the cores can take."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return given_workers() or max(1, cores // threads)


@dataclass(eq=False)
class Job:
    """A chain and where it stands: the result to send it, or the task that it has yielded."""

    chain: Chain
    result: Any = None
    task: Task | None = None
    done: int = 0  # iterations of the task
    furthest: int = 0  # that any attempt got to
    deaths: int = 0  # of workers since


Event = tuple[Job, str, Any]
"""A job, and ``progress`` with its iterations done, ``done`` with its result, ``failed`` with the reason, or
``died`` with how its worker ended."""


class Executor(Protocol):
    """Where tasks are computed."""

    def open(self, chains: int) -> str:
        """Makes ready for so many chains; gives what to say of it."""
        ...

    def has_room(self) -> bool:
        """Whether it takes another task now."""
        ...

    def start(self, job: Job) -> None:
        """Begins the job's task."""
        ...

    def events(self) -> Iterator[Event]:
        """Waits until something happens, a short while at most where the executor has to ask."""
        ...

    def close(self) -> None:
        """Ends whatever still runs; nothing of it is left."""
        ...


def chosen(prepare: Callable[[int], None], threads: int) -> Executor:
    """The executor that ``LOTTERY_EXECUTOR`` names: local, the default, or ray.

    Args:
        prepare: called in each worker, with its index, before its first task; picklable.
        threads: that one run computes with.

    Raises LotteryError where a variable of the environment has an impossible value.
    """
    name = os.environ.get("LOTTERY_EXECUTOR") or "local"
    if name == "local":
        return Local(prepare, worker_count(threads))
    if name == "ray":
        from lottery.running.cluster import Ray

        return Ray(prepare, threads)
    raise LotteryError(f"LOTTERY_EXECUTOR: got {name!r}; accepted: local or ray")


@dataclass
class Progress:
    """A bar on a terminal; otherwise one plain line a finished run. Counts tasks that train."""

    title: str
    runs: int
    iterations: int
    finished: int = 0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.bar = tqdm(
            total=self.iterations,
            desc=self.title,
            unit="it",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
            bar_format="{desc}: {percentage:3.0f}% |{bar}|{postfix} [{elapsed}, {remaining} left, {rate_fmt}]",
            dynamic_ncols=True,
        )

    def advance(self, iterations: int, running: int) -> None:
        self.bar.set_postfix_str(
            f"{self.finished}/{self.runs} runs done, {running} running", refresh=False
        )
        self.bar.update(iterations)

    def finish(self, name: str, how: str) -> None:
        self.finished += 1
        if self.bar.disable:
            took = time.monotonic() - self.started
            left = took / self.finished * (self.runs - self.finished)
            print(
                f"{self.title}: {self.finished:>{len(str(self.runs))}}/{self.runs} {name}: {how} "
                f"({_clock(took)}, {_clock(left)} left)",
                flush=True,
            )

    def close(self) -> None:
        self.bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def execute(
    chains: Sequence[Chain], executor: Executor, *, title: str, runs: int, iterations: int
) -> None:
    """Drives all chains to their end.

    A task that fails ends its chain; the others go on. One whose worker dies is taken up again: twice at most, unless it had got
    further than before.

    Args:
        title: what the progress is of.
        runs, iterations: tasks that train in all chains together, and their iterations, for the progress.

    Raises:
        LotteryError: tasks failed; one line each.
        KeyboardInterrupt: Ctrl-C; all workers are ended.
    """
    waiting = deque(Job(chain) for chain in chains)
    running: set[Job] = set()
    failures: list[str] = []
    with contextlib.closing(executor):
        where = executor.open(len(waiting))
        if runs:
            print(
                f"{title}: {runs:,} runs of {iterations // runs:,} iterations, {where}", flush=True
            )
        with contextlib.closing(Progress(title, runs, iterations)) as progress:

            def advance(job: Job, done: int) -> None:
                progress.advance(
                    done - job.done, sum(bool(j.task and j.task.iterations) for j in running)
                )
                job.done = done

            while True:
                while waiting and executor.has_room():
                    job = _next_with_task(waiting, failures)
                    if job is not None:
                        running.add(job)
                        executor.start(job)
                if not running:
                    break
                for job, kind, value in executor.events():
                    assert job.task is not None
                    if kind == "progress":
                        advance(job, value)
                        continue
                    running.remove(job)
                    if kind == "done":
                        if job.task.iterations:
                            progress.finish(job.task.name, job.task.describe(value))
                            advance(job, job.task.iterations)
                        waiting.append(Job(job.chain, value))
                        continue
                    further = job.done > job.furthest
                    job.deaths, job.furthest = (
                        (1 if further else job.deaths + 1),
                        max(job.done, job.furthest),
                    )
                    advance(job, 0)
                    if kind == "died" and job.deaths < ATTEMPTS:
                        tqdm.write(
                            f"{title}: {job.task.name}: its worker died ({value}); taken up again"
                        )
                        waiting.appendleft(job)
                        continue
                    if kind == "died":
                        hint = (
                            "; this is often a lack of memory: set LOTTERY_WORKERS lower"
                            if value.endswith(" -9")
                            else ""
                        )
                        value = f"its worker died {ATTEMPTS} times ({value}){hint}"
                    failures.append(f"{job.task.name}: {value}")
                    job.chain.close()
    if failures:
        raise LotteryError(
            "\n".join(failures) + f"\n{progress.finished} of {runs} runs finished and are kept: "
            "`dvc repro` goes on with the others"
        )


def _next_with_task(waiting: deque[Job], failures: list[str]) -> Job | None:
    """The next job that has something to compute."""
    while waiting:
        job = waiting.popleft()
        if job.task is not None:
            return job
        try:
            job.task = job.chain.send(job.result)
        except StopIteration:
            continue
        except LotteryError as error:  # the chain's own, such as a damaged mask: the others go on
            failures.append(str(error))
            continue
        job.result = None
        return job
    return None


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job | None = None


class Local:
    """Worker processes of this machine, as many as ``workers``; one that dies is replaced.

    Args:
        prepare: called in each worker, with its index, before its first task; picklable.
    """

    def __init__(self, prepare: Callable[[int], None], workers: int) -> None:
        self._prepare, self._workers = prepare, workers
        self._pool: list[_Worker] = []

    def open(self, chains: int) -> str:
        number = min(self._workers, chains)
        self._pool = [_start_worker(self._prepare, index) for index in range(number)]
        return f"{number} at a time"

    def has_room(self) -> bool:
        return any(worker.job is None for worker in self._pool)

    def start(self, job: Job) -> None:
        worker = next(worker for worker in self._pool if worker.job is None)
        worker.job = job
        with contextlib.suppress(OSError):  # it has died: its closed connection says so next
            worker.connection.send(job.task)

    def events(self) -> Iterator[Event]:
        ready = wait([worker.connection for worker in self._pool])
        for index, worker in enumerate(self._pool):
            if worker.connection not in ready:
                continue
            try:
                kind, value = worker.connection.recv()
            except (EOFError, OSError):
                worker.process.join()
                kind, value = "died", f"exit status {worker.process.exitcode}"
                self._pool[index] = _start_worker(self._prepare, index)
            job = worker.job
            if kind != "progress":
                worker.job = None
            if job is not None:
                yield job, kind, value

    def close(self) -> None:
        for worker in self._pool:
            worker.process.kill()
            worker.process.join()


def _start_worker(prepare: Callable[[int], None], index: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, prepare, index), daemon=True)
    # Ctrl-C is for the stage, which then ends its workers: they inherit that it is blocked, from their first moment.
    resource_tracker.ensure_running()  # it unblocks SIGINT when it starts, so it has to run before
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    there.close()
    return _Worker(process, here)


def _work(connection: Connection, prepare: Callable[[int], None], index: int) -> None:
    """The life of a worker: tasks in, results out, until the stage ends, however it ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    unfit = None  # why it cannot compute anything: the answer to every task
    try:
        prepare(index)
    except Exception as error:
        unfit = f"its worker could not start: {explain(error)}"
    while True:
        task: Task = connection.recv()
        if unfit:
            connection.send(("failed", unfit))
            continue
        try:
            connection.send(
                ("done", task(lambda iterations: connection.send(("progress", iterations))))
            )
        except Exception as error:
            connection.send(("failed", explain(error)))


def explain(error: Exception) -> str:
    """A failed task's error: a user's mistake in plain words, a defect with its traceback."""
    if isinstance(error, LotteryError):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
