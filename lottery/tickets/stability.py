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


def interpolate(trainer: Any, split: Split, one: Weights, other: Weights) -> list[dict[str, float]]:
    """POINTS between two networks: position in [0, 1], training and test loss and accuracy.

    All variables are interpolated in float32, but for the statistics of batch normalisation, which
    are estimated anew: those of two networks say nothing of a third.
    """
    lines = []
    for position in np.linspace(0, 1, POINTS):
        mixed = {n: (1 - position) * value + position * other[n] for n, value in one.items()}
        between = {name: value.astype(np.float32) for name, value in mixed.items()}
        between = trainer.with_statistics_of(split.train, between)
        measured = [trainer.evaluate(rows, between) for rows in (split.train, split.test)]
        metrics = zip(METRICS, [*measured[0], *measured[1]], strict=True)
        lines.append({"position": float(position), **dict(metrics)})
    return lines


class Line(NamedTuple):
    """What is known of the line that ends in a network of a round."""

    seed: int
    round: int  # 0: the dense network
    between: str  # "copies"; or it begins at the solution of the round before, or of "dense"
    weights_remaining: float
    points: list[dict[str, float]]


METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
COLUMNS = (*Line._fields[:4], "position", *METRICS)


def connect(
    experiment: Experiment, seed: int, round_: int, report: Report
) -> tuple[list[Line], list[Record]]:
    """Trains two copies of a round's ticket (0: the dense network) and evaluates their line."""
    start = ticket(ticket_of(experiment, seed, round_))
    start = replace(start, train=start.train.stretched(1))  # so that both end at one iteration
    copies = []
    for name in ("one copy", "other copy"):
        run = start.run(experiment, seed, name, round_, f"data order of the {name}")
        copies.append(experiment.train(run, report))
    trainer = experiment.trainer(experiment.params.model, start.train)
    points = interpolate(trainer, experiment.split(seed), *(copy.weights for copy in copies))
    line = Line(seed, round_, "copies", start.mask.weights_remaining, points)
    return [line], [copy.record for copy in copies]


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
    ordered = sorted(lines, key=lambda line: line[:3])
    rows = [[*line[:4], *point.values()] for line in ordered for point in line.points]
    tables.write_rows(path, COLUMNS, rows)
