"""How far the runs of a stage are: a bar on a terminal, else one plain line a finished run."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

Report = Callable[[str, int, int, str | None], None]
"""Called by a task as it computes, with a run's name, its iterations done, how many it has and,
once it has ended, how it came about."""


class Progress:
    """Counts runs and their iterations; ``hear`` may be called in any thread.

    Args:
        title: what the progress is of.
        runs, iterations: of all tasks together.
    """

    def __init__(self, title: str, runs: int, iterations: int) -> None:
        self._title, self._runs, self._iterations = title, runs, iterations
        self._done: dict[tuple[int, str], int] = {}  # iterations of each task's runs
        self._ended: set[tuple[int, str]] = set()
        self._trained = 0  # iterations since _began: neither from the store nor from checkpoints
        self._opened, self._began = time.monotonic(), 0.0
        self._lock = threading.Lock()
        self._bar: Any = tqdm(
            total=iterations,
            desc=title,
            disable=not runs or not sys.stderr.isatty(),
            bar_format="{desc}: {percentage:3.0f}% |{bar}|{postfix}",
            dynamic_ncols=True,
        )

    @property
    def ended(self) -> int:
        """Runs that have come to their end."""
        return len(self._ended)

    def of_task(self, task: int) -> int:
        """The iterations done of a task's runs."""
        with self._lock:
            return sum(done for (number, _), done in self._done.items() if number == task)

    def hear(self, task: int, run: str, done: int, length: int, how: str | None) -> None:
        """Takes in what a task reports."""
        with self._lock:
            key = (task, run)
            self._began = self._began or time.monotonic()
            self._trained += max(0, done - self._done.get(key, done))
            self._done[key] = length if how else done
            if how and key not in self._ended:
                self._ended.add(key)
                self._say_that_it_ended(run, how)
            self._bar.set_postfix_str(self._summary(), refresh=False)
            self._bar.n = sum(self._done.values())
            self._bar.update(0)

    def _say_that_it_ended(self, run: str, how: str) -> None:
        if self._bar.disable:
            width = len(str(self._runs))
            took = _clock(time.monotonic() - self._opened)
            line = f"{self._title}: {self.ended:>{width}}/{self._runs} {run}: {how}"
            print(f"{line} ({took}{self._left()})", flush=True)

    def _summary(self) -> str:
        running = len(self._done) - self.ended
        took = _clock(time.monotonic() - self._opened)
        return f"{self.ended}/{self._runs} runs done, {running} running, {took}{self._left()}"

    def _left(self) -> str:
        """The time that the iterations still to be done take at the pace of those trained here.

        Nothing where none were.
        """
        left = max(0, self._iterations - sum(self._done.values()))
        if not self._trained and left:
            return ""
        pace = (time.monotonic() - self._began) / max(1, self._trained)
        return f", {_clock(left * pace)} left"

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
