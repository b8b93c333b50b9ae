"""Many runs at once, on this machine: worker processes that stay alive through a stage.

Work comes as chains: generators that yield a task, get its result back, and may yield the next.
Chains run side by side, the tasks of one chain after one another. A result never depends on which
worker computed it, nor on how many there are.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from tqdm import tqdm

from lottery.errors import LotteryError

ATTEMPTS = 3  # a task whose worker died is taken up again at most twice


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


def worker_count(threads: int) -> int:
    """``LOTTERY_WORKERS``, by default one process of ``threads`` threads for each that the cores can take."""
    given = os.environ.get("LOTTERY_WORKERS", "")
    if not given:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // threads)
    if not given.isdecimal() or len(given) > 4 or int(given) < 1:
        raise LotteryError(f"LOTTERY_WORKERS: got {given!r}; accepted: a whole number from 1 to 9999")
    return int(given)


@dataclass
class _Job:
    """A chain and where it stands: the result to send it, or the task that it has yielded."""

    chain: Chain
    result: Any = None
    task: Task | None = None
    attempt: int = 1


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: _Job | None = None
    done: int = 0  # iterations of the present job


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
        self.bar.set_postfix_str(f"{self.finished}/{self.runs} runs done, {running} running", refresh=False)
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
    chains: Sequence[Chain], *, prepare: Callable[[int], None], title: str, workers: int, runs: int, iterations: int
) -> None:
    """Drives all chains to their end.

    A task that fails ends its chain; the others go on. A worker that dies is replaced and its task taken
    up again, twice at most.

    Args:
        prepare: called in each worker, with its index, before its first task; picklable.
        title: what the progress is of.
        runs, iterations: tasks that train in all chains together, and their iterations, for the progress.

    Raises:
        LotteryError: tasks failed; one line each.
        KeyboardInterrupt: Ctrl-C; all workers are ended.
    """
    waiting = deque(_Job(chain) for chain in chains)
    failures: list[str] = []
    if runs:
        print(
            f"{title}: {runs:,} runs of {iterations // runs:,} iterations, {min(workers, runs)} at a time", flush=True
        )
    progress = Progress(title, runs, iterations)
    pool = [_start_worker(prepare, index) for index in range(min(workers, len(waiting)))]
    try:
        while True:
            for worker in pool:
                if worker.job is None:
                    _hand_over(worker, waiting, failures)
            if not any(worker.job for worker in pool):
                break
            for worker in _that_say_something(pool):
                job = worker.job
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    kind, value = "died", worker.process.exitcode
                    index = pool.index(worker)
                    pool[index] = _start_worker(prepare, index)
                if job is None or job.task is None:
                    continue
                if kind == "progress":
                    progress.advance(value - worker.done, _running(pool))
                    worker.done = value
                    continue
                worker.job = None
                if kind == "done":
                    if job.task.iterations:
                        progress.finish(job.task.name, job.task.describe(value))
                        progress.advance(job.task.iterations - worker.done, _running(pool))
                    waiting.append(_Job(job.chain, value))
                    continue
                progress.advance(-worker.done, _running(pool))
                if kind == "died" and job.attempt < ATTEMPTS:
                    tqdm.write(f"{title}: {job.task.name}: its worker died (exit status {value}); taken up again")
                    waiting.appendleft(_Job(job.chain, task=job.task, attempt=job.attempt + 1))
                    continue
                if kind == "died":
                    hint = "; this is often a lack of memory: set LOTTERY_WORKERS lower" if value == -9 else ""
                    value = f"its worker died {ATTEMPTS} times (exit status {value}){hint}"
                failures.append(f"{job.task.name}: {value}")
                job.chain.close()
    finally:
        progress.close()
        for worker in pool:
            worker.process.kill()
            worker.process.join()
    if failures:
        raise LotteryError(
            "\n".join(failures) + f"\n{progress.finished} of {runs} runs finished and are kept: "
            "`dvc repro` goes on with the others"
        )


def _running(pool: list[_Worker]) -> int:
    return sum(w.job is not None and w.job.task is not None and w.job.task.iterations > 0 for w in pool)


def _that_say_something(pool: list[_Worker]) -> list[_Worker]:
    ready = wait([w.connection for w in pool])
    return [w for w in pool if w.connection in ready]


def _hand_over(worker: _Worker, waiting: deque[_Job], failures: list[str]) -> None:
    """Gives an idle worker the next task there is."""
    while waiting:
        job = waiting.popleft()
        if job.task is None:
            try:
                job.task = job.chain.send(job.result)
            except StopIteration:
                continue
            except LotteryError as error:  # the chain's own, such as a damaged mask: the others go on
                failures.append(str(error))
                continue
            job.result = None
        worker.job, worker.done = job, 0
        try:
            worker.connection.send(job.task)
        except OSError:
            pass  # it has died: its closed connection says so next
        return


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
        unfit = f"its worker could not start: {_explain(error)}"
    while True:
        task: Task = connection.recv()
        if unfit:
            connection.send(("failed", unfit))
            continue
        try:
            connection.send(("done", task(lambda iterations: connection.send(("progress", iterations)))))
        except Exception as error:
            connection.send(("failed", _explain(error)))


def _explain(error: Exception) -> str:
    if type(error).__name__ == "Diverged":
        return f"the loss became NaN or infinite by iteration {error.args[0]}; try a lower train.learning_rate"
    if isinstance(error, LotteryError):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
