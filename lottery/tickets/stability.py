"""Linear mode connectivity: whether two trainings from one start end in one valley of the loss.

Two copies of a network are trained from the same weights under the same mask in different data
orders, to the same iteration, and evaluated on the line between them. The *instability* is the
highest error on that line minus the mean error of its ends; below 2 points of test error a network
counts as stable (Frankle et al. 2020, section 2).
"""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lottery.artifacts import files
from lottery.datasets.split import Split
from lottery.params import Model, Train
from lottery.running.run import trainer_of

POINTS = 30  # on the line, its ends included (Frankle et al. 2020, section 3)
COLUMNS = (
    "seed",
    "round",
    "weights_remaining",
    "position",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
)


@dataclass(frozen=True)
class Interpolate:
    """The evaluation of a line between two networks: a task for a worker."""

    name: str
    model: Model
    train: Train
    dataset: str  # folder
    one: dict[str, np.ndarray] = field(repr=False)
    other: dict[str, np.ndarray] = field(repr=False)
    split: Split = field(repr=False)
    iterations: int = 0

    def __call__(self, report: Callable[[int], None]) -> list[dict[str, float]]:
        """Of each point its position in [0, 1], loss and accuracy on training and test images.

        All variables are interpolated in float32, but for the statistics of batch normalisation,
        which are estimated anew: those of two networks say nothing of a third.
        """
        _, trainer = trainer_of(self.model, self.train, self.dataset)
        found = []
        for position in np.linspace(0, 1, POINTS):
            between = {
                n: ((1 - position) * v + position * self.other[n]).astype(np.float32)
                for n, v in self.one.items()
            }
            between = trainer.with_statistics_of(self.split.train, between)
            point = {"position": float(position)}
            for part, rows in (("train", self.split.train), ("test", self.split.test)):
                loss, accuracy = trainer.evaluate(rows, between)
                point |= {f"{part}_loss": loss, f"{part}_accuracy": accuracy}
            found.append(point)
        return found

    def describe(self, result: list[dict[str, float]]) -> str:
        """How many points there are, for the log."""
        return f"{len(result)} points evaluated"


class Line(NamedTuple):
    """What is known of one network's two copies."""

    seed: int
    round: int  # 0: the dense network
    weights_remaining: float
    points: list[dict[str, float]]


def write(path: Path, lines: Iterable[Line]) -> None:
    """``stability.csv``: a row a point, sorted by seed and round; empty where not asked for."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in sorted(lines, key=lambda line: (line.seed, line.round)):
        for point in line.points:
            row: list[Any] = [line.seed, line.round, f"{line.weights_remaining:.7g}"]
            writer.writerow([*row, *(f"{point[name]:.7g}" for name in COLUMNS[3:])])
    files.write(path, text.getvalue().encode())
