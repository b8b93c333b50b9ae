"""Where tasks are computed: processes of this machine, this process, or a Ray cluster.

``LOTTERY_EXECUTOR`` says. Each is a ``concurrent.futures`` executor. A task is a function that runs
whole in one worker; a killed worker's task is begun again, and finds in the run store what it had
got to. A result never depends on which worker computed it, nor on how many there are.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from lottery.errors import LotteryError, plain
from lottery.running.cluster import Ray
from lottery.running.progress import Progress, Report
from lottery.running.workers import InProcess, Prepare, Processes, Tell, Workers, compute_task

ATTEMPTS = 3  # times that a task may lose its worker without getting further
LOOK_SECONDS = 1.0  # between two looks at the clock, and at how many tasks an executor takes


class Task(NamedTuple):
    """Something that a worker computes: ``call``, picklable, is given a Report."""

    name: str
    call: Callable[[Report], Any]
    runs: int = 0  # for the progress, as are the iterations of all of them together
    iterations: int = 0


def chosen(prepare: Prepare, tell: Tell, threads: int, tasks: int) -> Workers:
    """The executor that ``LOTTERY_EXECUTOR`` names, for so many tasks of so many threads.

    Raises LotteryError where a variable of the environment has an impossible value.
    """
    name = os.environ.get("LOTTERY_EXECUTOR") or "processes"
    if name == "processes":
        return Processes(prepare, tell, threads, tasks)
    if name == "in-process":
        return InProcess(prepare, tell)
    if name == "ray":
        return Ray(prepare, tell, threads)
    raise LotteryError(f"LOTTERY_EXECUTOR: got {name!r}; accepted: processes, in-process or ray")


def compute(tasks: Sequence[Task], prepare: Prepare, *, title: str, threads: int) -> list[Any]:
    """The results of all tasks, in their order; ``prepare``, picklable, runs in each worker.

    A task that fails leaves the others to go on; so does one whose worker dies ``ATTEMPTS`` times
    without getting further. Until then it is begun again.

    Raises:
        LotteryError: tasks failed; one line each.
        KeyboardInterrupt: Ctrl-C; all workers are ended.
    """
    runs, iterations = sum(t.runs for t in tasks), sum(t.iterations for t in tasks)
    with (
        contextlib.closing(Progress(title, runs, iterations)) as progress,
        chosen(prepare, progress.hear, threads, len(tasks)) as workers,
    ):
        progress.begin(workers.description)
        results, failures = _drive(tasks, workers, progress)
    if failures:
        kept = f"{progress.ended} of {runs} runs finished and are kept: `dvc repro` goes on with "
        raise LotteryError("\n".join([*failures, *[kept + "the others"] * bool(runs)]))
    return results


def _drive(
    tasks: Sequence[Task], workers: Workers, progress: Progress
) -> tuple[list[Any], list[str]]:
    """The results of tasks, in their order, and a line for each that failed."""
    waiting, running = deque(range(len(tasks))), dict[Future[Any], int]()
    deaths, furthest = [0] * len(tasks), [0] * len(tasks)
    results, failures = [None] * len(tasks), list[str]()
    while waiting or running:
        while waiting and len(running) < workers.room:
            number = waiting.popleft()
            running[workers.submit(compute_task, tasks[number].call, number)] = number
        ended, _ = wait(running, LOOK_SECONDS, FIRST_COMPLETED)
        progress.tick()
        for future in ended:
            number = running.pop(future)
            try:
                results[number] = future.result()
            except BrokenExecutor as death:
                time.sleep(LOOK_SECONDS)  # until what it had reported is heard
                further = progress.of_task(number) > furthest[number]
                furthest[number] = max(furthest[number], progress.of_task(number))
                deaths[number] = 1 if further else deaths[number] + 1
                how = f"{tasks[number].name}: its worker died"
                why = "" if isinstance(death, BrokenProcessPool) else f" ({death})"
                if deaths[number] < ATTEMPTS:
                    progress.note(f"{how}{why}; taken up again")
                    waiting.appendleft(number)
                else:
                    hint = "this is often a lack of memory: set LOTTERY_WORKERS lower"
                    failures.append(f"{how} {ATTEMPTS} times{why}; {hint}")
            except Exception as error:
                failures.append(f"{tasks[number].name}: {plain(error)}")
    return results, failures
