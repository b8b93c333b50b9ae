"""How far the runs of a stage are: a bar on a terminal, else one plain line a finished run.

``LOTTERY_LIVE``, a folder, has TensorBoard files besides: the curves of running trainings.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from lottery.errors import say

Report = Callable[[str, int, int, str | None], None]
"""Called by a task as it computes, with a run's name, its iterations done, how many it has and,
once it has ended, how it came about."""

MEASURED_SECONDS = 10.0  # before the pace of the iterations tells how long the others take


class Progress:
    """Counts the runs and iterations of all tasks; ``hear`` may be called in any thread."""

    def __init__(self, title: str, runs: int, iterations: int) -> None:
        self._title, self._runs, self._iterations = title, runs, iterations
        self._done: dict[tuple[int, str], int] = {}  # iterations of each task's runs
        self._ended: set[tuple[int, str]] = set()
        self._opened = time.monotonic()
        self._trained, self._since = 0, 0.0  # iterations computed here since a first evaluation
        self._end = 0.0  # when all will be done, as far as is known
        self._lock = threading.Lock()
        self._bar = tqdm(
            total=iterations,
            desc=title,
            disable=not runs or not sys.stderr.isatty(),
            bar_format="{desc}: |{bar}| {percentage:3.0f} %{postfix}",
            dynamic_ncols=True,
            miniters=0,
            delay=1e-3,  # shown with the first look at it, not now
        )

    def begin(self, description: str) -> None:
        """Says what will be computed."""
        if self._runs:
            each = f"{self._iterations // self._runs:,} iterations"
            self.note(f"{self._runs:,} run{'s' * (self._runs != 1)} of {each}, {description}")

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
            self._measure(max(0, done - self._done.get(key, done)))
            self._done[key] = length if how else done
            if how and key not in self._ended:
                self._ended.add(key)
                if self._bar.disable:
                    print(f"{self._title}: {self._counted(f' {run}: {how}')}", flush=True)
            self._draw()

    def _measure(self, trained: int) -> None:
        """Looks at the pace anew; the first iterations, with TensorFlow's start, do not count."""
        now = time.monotonic()
        if trained and not self._since:
            self._since = now
        elif trained:
            self._trained += trained
            if now - self._since >= MEASURED_SECONDS:
                left = self._iterations - sum(self._done.values()) - trained
                self._end = now + left * (now - self._since) / self._trained

    def note(self, line: str) -> None:
        """Says something, above the bar."""
        with self._lock:
            self._bar.clear()
            say(f"{self._title}: {line}")

    def tick(self) -> None:
        """Draws the bar with the time as it is now."""
        with self._lock:
            self._draw()

    def _draw(self) -> None:
        self._bar.set_postfix_str(self._counted(" runs"), refresh=False)
        self._bar.n = sum(self._done.values())
        self._bar.update(0)

    def _counted(self, what: str) -> str:
        """Runs that have ended, the time they took and, once it is known, the time left."""
        now = time.monotonic()
        left = f", {_clock(self._end - now)} left" if self._end > now else ""
        count = f"{self.ended:>{len(str(self._runs))}}/{self._runs}"
        return f"{count}{what}, {_clock(now - self._opened)}{left}"

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def live(run: str) -> Callable[[dict[str, list[float]]], None] | None:
    """A function that adds the last row of a run's history to its TensorBoard files in
    ``LOTTERY_LIVE``; None where that is not set. Nothing reads them again.
    """
    folder = os.environ.get("LOTTERY_LIVE")
    if not folder:
        return None
    import tensorflow as tf

    scalar = tf.compat.v1.SummaryMetadata(data_class="DATA_CLASS_SCALAR")
    scalar.plugin_data.plugin_name = "scalars"
    writer = tf.summary.create_file_writer(str(Path(folder).expanduser() / run))

    def add(history: dict[str, list[float]]) -> None:
        """Writes the last evaluation."""
        with writer.as_default(step=int(history["iteration"][-1])):
            for name, values in history.items():
                if name != "iteration" and math.isfinite(values[-1]):
                    tf.summary.write(name, tf.constant(values[-1], tf.float32), metadata=scalar)
        writer.flush()

    return add
