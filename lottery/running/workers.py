"""Worker processes of this machine, or this process itself, as ``concurrent.futures`` executors."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from lottery.errors import LotteryError, plain
from lottery.running.progress import Report

P = ParamSpec("P")
T = TypeVar("T")

Prepare = Callable[[int], None]
"""Called in a worker, with its number, before each of its tasks; does its work the first time."""
Tell = Callable[[int, str, int, int, str | None], None]
"""A Report with the number of the task before it."""


class Workers(Executor):
    """An executor of this project: ``description`` says where it computes.

    A future whose worker died raises BrokenExecutor; the executor goes on.
    """

    description: str
    room: int  # how many tasks it takes at a time, at present


def given_workers() -> int | None:
    """``LOTTERY_WORKERS``; None where it is not set."""
    given = os.environ.get("LOTTERY_WORKERS", "")
    if not given:
        return None
    if not given.isdecimal() or len(given) > 4 or int(given) < 1:
        accepted = "a whole number from 1 to 9999"
        raise LotteryError(f"LOTTERY_WORKERS: got {given!r}; accepted: {accepted}")
    return int(given)


def worker_count(threads: int) -> int:
    """``LOTTERY_WORKERS``, by default as many of ``threads`` threads as the cores can take."""
    allowed = hasattr(os, "sched_getaffinity")  # on Linux
    cores = len(os.sched_getaffinity(0)) if allowed else os.cpu_count() or 1
    return given_workers() or max(1, cores // threads)


_here: Callable[[Callable[[Report], Any], int], Any]
"""What this process does with a task; set once it is a worker."""


def become_worker(prepare: Prepare, worker: int, tell: Tell) -> None:
    """Makes this process a worker of that number, which computes tasks and tells how far it is."""
    global _here

    def compute(call: Callable[[Report], Any], task: int) -> Any:
        """One task, or why this process cannot compute any."""
        try:
            prepare(worker)
        except (Exception, SystemExit) as error:
            raise LotteryError(f"its worker could not start: {plain(error)}") from None
        try:
            return call(partial(tell, task))
        except SystemExit as end:  # else it would end the stage, as if all were well
            raise LotteryError(f"sys.exit({end.code!r}) was called") from None

    _here = compute


def compute_task(call: Callable[[Report], Any], task: int) -> Any:
    """In a worker: the result of the task of that number."""
    return _here(call, task)


class InProcess(Workers):
    """Computes each task in this process, while it is submitted."""

    description, room = "in this process", 1

    def __init__(self, prepare: Prepare, tell: Tell) -> None:
        become_worker(prepare, 0, tell)

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The result, or the error, at once."""
        future = Future[T]()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Workers):
    """As many processes of this machine as LOTTERY_WORKERS says and tasks need.

    Each is a pool of its own: a death is its own task's. They end with this process, however it
    ends: each waits for the far end of a pipe to close.
    """

    def __init__(self, prepare: Prepare, tell: Tell, threads: int, tasks: int) -> None:
        number = min(worker_count(threads), tasks)
        self.description, self.room = f"{number} at a time", number
        self._prepare, self._tell = prepare, tell
        self._context = multiprocessing.get_context("spawn")
        self._life, self._alive = self._context.Pipe(duplex=False)
        self._ear, self._mouth = self._context.Pipe(duplex=False)
        self._pools = [self._pool(index) for index in range(number)]
        self._last: list[Future[Any] | None] = [None] * number
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begins in a process that has nothing to do, a new one where the last has died."""
        index = next(i for i, last in enumerate(self._last) if last is None or last.done())
        with _without_ctrl_c():
            try:
                future = self._pools[index].submit(function, *args, **kwargs)
            except BrokenExecutor:
                self._pools[index] = self._pool(index)
                future = self._pools[index].submit(function, *args, **kwargs)
        self._last[index] = future
        return future

    def _pool(self, index: int) -> ProcessPoolExecutor:
        """Of one process, which starts with its first task."""
        begin = (self._prepare, index, self._life, self._mouth)
        return ProcessPoolExecutor(1, self._context, _begin, begin)

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):  # once all ends of the pipe are closed
            while True:
                message = self._ear.recv()
                with contextlib.suppress(OSError):  # of the standard output
                    self._tell(*message)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends all processes, whatever they do."""
        self._alive.close()
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)
        self._mouth.close()  # the last one open: the listener comes to the end of what was said
        self._listener.join()
        self._life.close()
        self._ear.close()


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Ctrl-C is for the stage, which then ends its workers.

    Those begun here inherit that it is blocked.
    """
    resource_tracker.ensure_running()  # it unblocks SIGINT when it starts, so it has to run before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(prepare: Prepare, worker: int, life: Connection, mouth: Connection) -> None:
    """In a worker process, once."""
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    # a message stays below the 4096 bytes that a pipe takes whole from several writers
    become_worker(prepare, worker, lambda *message: mouth.send(message))


def _end_with(life: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        life.recv_bytes()
    sys.stdout.flush()
    os._exit(1)
