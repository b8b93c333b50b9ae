"""Lines between trained networks: whether they lie in one valley of the loss.

Of *linear mode connectivity* the ends are two trainings from one start.
Two copies of a network are trained from the same weights under the same mask in different data
orders, to the same iteration, and evaluated on the line between them. The *instability* is the
highest error on that line minus the mean error of its ends; below 2 points of test error a network
counts as stable (Frankle et al. 2020, section 2). Of the *connectivity of pruning* they are the
solutions of successive rounds (Paul et al. 2023), and the dense network's and a ticket's (Evci et
al. 2022).
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lottery.artifacts import files, tables
from lottery.artifacts.tables import Record
from lottery.datasets.split import Split
from lottery.masks import Weights
from lottery.running.progress import Report
from lottery.running.run import Experiment
from lottery.tickets.ticket import read_dense, ticket_of
from lottery.tickets.variants import ticket

POINTS = 30  # on the line, its ends included (Frankle et al. 2020, section 3)
COLUMNS = (
    "seed",
    "round",
    "between",
    "weights_remaining",
    "position",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
)


def interpolate(trainer: Any, split: Split, one: Weights, other: Weights) -> list[dict[str, float]]:
    """POINTS between two networks: position in [0, 1], training and test loss and accuracy.

    All variables are interpolated in float32, but for the statistics of batch normalisation, which
    are estimated anew: those of two networks say nothing of a third.
    """
    found = []
    for position in np.linspace(0, 1, POINTS):
        between = {
            n: ((1 - position) * v + position * other[n]).astype(np.float32) for n, v in one.items()
        }
        between = trainer.with_statistics_of(split.train, between)
        point = {"position": float(position)}
        for part, rows in (("train", split.train), ("test", split.test)):
            loss, accuracy = trainer.evaluate(rows, between)
            point |= {f"{part}_loss": loss, f"{part}_accuracy": accuracy}
        found.append(point)
    return found


class Line(NamedTuple):
    """What is known of the line that ends in a network of a round."""

    seed: int
    round: int  # 0: the dense network
    between: str  # "copies"; or it begins at the solution of the round before, or of "dense"
    weights_remaining: float
    points: list[dict[str, float]]


def connect(
    experiment: Experiment, seed: int, round_: int, report: Report
) -> tuple[list[Line], list[Record]]:
    """Trains two copies of the ticket of a round, of round 0 the dense network, and evaluates the
    line between them.
    """
    start = ticket(ticket_of(experiment, seed, round_))
    start = replace(start, train=start.train.stretched(1))  # so that both end at one iteration
    copies, records = [], []
    for copy in ("one", "other"):
        run = start.run(experiment, seed, f"{copy} copy", round_, f"data order of the {copy} copy")
        result = experiment.train(run, report)
        copies.append(result.weights)
        records.append(result.record)
    trainer = experiment.trainer(experiment.params.model, start.train)
    points = interpolate(trainer, experiment.split(seed), *copies)
    return [Line(seed, round_, "copies", start.mask.weights_remaining, points)], records


def along_pruning(
    experiment: Experiment, seed: int, report: Report
) -> tuple[list[Line], list[Record]]:
    """Evaluates the lines from each round's solution to the next, and from the dense network's to
    that of each round that is retrained. Trains nothing.
    """
    params, dense = experiment.params, read_dense(seed)
    solutions, remaining = [dense.trained], [1.0]
    for number in range(1, params.prune.rounds + 1):
        path = files.round_file(files.PRUNED, seed, number)
        weights, mask, _ = files.read_masked_weights(path)
        solutions.append(weights)
        remaining.append(mask.weights_remaining)
    trainer, split = experiment.trainer(params.model, params.train), experiment.split(seed)
    ends = [("round before", n - 1, n) for n in range(1, len(solutions))]
    ends += [("dense", 0, n) for n in params.retrain_rounds()]
    lines = []
    for place, (between, one, other) in enumerate(ends, start=1):
        points = interpolate(trainer, split, solutions[one], solutions[other])
        lines.append(Line(seed, other, between, remaining[other], points))
        report(f"seed {seed}, lines between rounds", place, len(ends), None)
    return lines, []


def write(path: Path, lines: Iterable[Line]) -> None:
    """``stability.csv``: one row a point of each line, sorted by seed, round and beginning.

    Empty where nothing was asked for.
    """
    rows = [
        [*line[:4], *point.values()]
        for line in sorted(lines, key=lambda line: line[:3])
        for point in line.points
    ]
    tables.write_rows(path, COLUMNS, rows)
