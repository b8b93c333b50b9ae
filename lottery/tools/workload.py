"""What is to be done for an experiment, as counts, and what that costs by the seconds of single steps.

Closed forms of the parameters: 100,000 runs are counted as fast as one.
"""

import functools
import math
import operator
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import NamedTuple

from lottery.params import Params
from lottery.tickets.stability import POINTS
from lottery.tickets.variants import budget, trainings
from lottery.tools.costs import Costs, Images, Machine, evaluations

HISTORY_BYTES = (85, 56)  # an evaluation: a line of CSV, a row of the run store
FACTS_BYTES = 1200  # of a file of tensors, about
OVERLAP_BYTES = 45  # a line of overlap.csv
PAGE_BYTES = 1_300_000  # reports/report.html


@dataclass(frozen=True)
class Work:
    """What is to be done, as counts of what ``Costs`` has the seconds of."""

    runs: int = 0
    iterations: int = 0
    evaluations: int = 0
    masks: int = 0
    initialisations: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*map(operator.add, astuple(self), astuple(other)))

    def __mul__(self, times: int) -> "Work":
        return Work(*(times * count for count in astuple(self)))

    def seconds(self, costs: Costs, held_out: int) -> float:
        """Of one worker after another; ``held_out``: images of an evaluation."""
        return (
            self.runs * costs.run
            + self.iterations * costs.iteration
            + self.evaluations * held_out * costs.evaluated_image
            + self.masks * costs.mask
            + self.initialisations * costs.initialisation
        )


class Stage(NamedTuple):
    """A stage that trains: chains that run side by side, each of runs (or masks) that follow one another."""

    name: str
    chains: int
    depth: int  # runs of the longest chain, or masks where nothing is trained
    total: Work
    longest: Work  # chain

    def turns(self, workers: int) -> int:
        """Runs that follow one another until the stage ends, where all take the same time.

        Chains wait in a queue between their runs (execution.py), so no worker is idle while one waits.
        """
        steps = self.total.runs or self.total.masks
        return max(math.ceil(steps / workers), math.ceil(self.chains / workers) + self.depth - 1)

    def wall_seconds(self, machine: Machine, workers: int, held_out: int) -> float:
        costs = machine.at(min(workers, self.chains))
        total, longest = (work.seconds(costs, held_out) for work in (self.total, self.longest))
        training = max(longest, self.turns(workers) * total / (self.total.runs or self.total.masks))
        return costs.start + (costs.first_mask if self.total.masks else 0) + training


@dataclass(frozen=True)
class Plan:
    """An experiment as work, and what it costs on a machine."""

    params: Params
    images: Images
    stages: list[Stage]

    @property
    def most_workers(self) -> int:
        """More do not help."""
        return max(stage.chains for stage in self.stages)

    @property
    def longest_run(self) -> int:
        """The iteration that the longest run ends at."""
        prune, length = self.params.prune, self.params.train.length(self.images.training)
        if "dense_longer" not in self.params.retrain.variants:
            return length
        return max(
            budget(trainings(prune, r), prune.rewind_iteration, length)
            for r in self.params.retrain_rounds()
        )

    @property
    def masks(self) -> int:
        return len(self.params.seeds) * self.params.prune.rounds

    @property
    def compared_masks(self) -> int:
        return math.comb(len(self.params.seeds), 2) * self.params.prune.rounds

    def wall_seconds(self, machine: Machine, workers: int) -> float:
        """Of the whole pipeline: one stage after another, each with its own workers."""
        extracting = (
            self.masks * machine.extracted_mask + self.compared_masks * machine.compared_masks
        )
        training = sum(
            stage.wall_seconds(machine, workers, self.images.held_out) for stage in self.stages
        )
        return machine.once + 6 * machine.stage + extracting + training

    def core_seconds(self, machine: Machine, stage: Stage) -> float:
        """Of a stage with as many workers as this machine has; where it has GPUs, seconds of one of them."""
        costs = machine.costs[-1]
        busy = stage.total.seconds(costs, self.images.held_out) + costs.start * min(
            machine.workers, stage.chains
        )
        return (
            busy / max(1, machine.workers / machine.gpus)
            if machine.gpus
            else busy * self.params.train.threads
        )

    def disk_bytes(self, machine: Machine, workers: int, *, linked: bool = False) -> dict[str, int]:
        """At the end, by folder; and what so many runs in flight may add to the run store.

        Args:
            linked: whether DVC's cache and data/ share their files.
        """
        params, seeds = self.params, len(self.params.seeds)
        weights = 4 * sum(machine.sizes.values()) + FACTS_BYTES
        prunable = {name: machine.sizes[name] for name in machine.kinds}
        bits = sum(prunable.values()) // 8
        pruned = 0
        for round_ in range(1, params.prune.rounds + 1):
            surviving = params.prune.surviving(prunable, machine.kinds, round_)
            count = surviving if isinstance(surviving, int) else sum(surviving.values())
            pruned += weights - 4 * (sum(prunable.values()) - count) + bits
        of = {stage.name: stage.total for stage in self.stages}
        images = self.images.training + self.images.held_out
        dataset = images * (math.prod(self.images.shape) + 4)
        history = HISTORY_BYTES[0] * sum(work.evaluations for work in of.values())
        tables = OVERLAP_BYTES * self.compared_masks * len(prunable)
        masks = self.masks * (bits + FACTS_BYTES)
        data = dataset + 3 * seeds * weights + seeds * pruned + masks + history + tables
        same = (
            seeds * weights if params.prune.rewind_iteration == 0 else 0
        )  # initial and rewound: one file in the cache
        kept = 2 * of["train_dense"].runs + of["prune"].runs
        if params.retrain.analysis != "none":
            kept += 2 * seeds * (1 + len(params.retrain_rounds()))
        finished = sum(
            FACTS_BYTES * work.runs + HISTORY_BYTES[1] * work.evaluations for work in of.values()
        )
        slots = 2 if params.train.optimizer == "adam" else 1
        return {
            "data/": data,
            ".dvc/cache": PAGE_BYTES + (0 if linked else data - same),
            ".runs/": kept * weights + finished,
            "checkpoints": 2
            * min(workers, self.most_workers)
            * (2 + slots)
            * weights,  # the one before is kept too
        }


def plan(params: Params, images: Images) -> Plan:
    """The work of an experiment. With early stopping runs may be shorter: it is then an upper bound.

    A variant that is not known here counts as the ticket, ``small_dense`` as the dense network.
    """
    prune, seeds = params.prune, len(params.seeds)
    length, every = params.train.length(images.training), params.train.evaluate_every

    def run(start: int, stop: int = length) -> Work:
        return Work(runs=1, iterations=stop - start, evaluations=evaluations(start, stop, every))

    def retraining(variant: str, round_: int) -> Work:
        if variant == "dense_longer":
            start = prune.rewind_iteration
            return run(start, budget(trainings(prune, round_), start, length))
        return dense if variant in ("random_reinit", "small_dense") else ticket

    fresh = Work(initialisations=1)
    dense, ticket = run(0) + fresh, run(prune.rewind_iteration)
    pruning = (Work(masks=1) + (ticket if prune.trains else Work())) * prune.rounds
    rounds = len(params.retrain_rounds())
    retrained = [
        retraining(name, round_)
        for name in params.retrain.variants
        for round_ in params.retrain_rounds()
    ]
    chains, total, longest = (
        seeds * len(retrained),
        total_of(retrained) * seeds,
        max(retrained, key=_length),
    )
    lines = seeds * (rounds + 1) if params.retrain.analysis == "linear_mode_connectivity" else 0
    if lines:
        point = (images.training + images.test) / images.held_out  # as parts of an evaluation
        line = ticket * 2 + Work(evaluations=math.ceil(POINTS * point))
        chains, total, longest = (
            chains + lines,
            total + line * lines,
            max(line, longest, key=_length),
        )
    stages = [
        Stage("train_dense", seeds, 1, dense * seeds, dense),
        Stage("prune", seeds, prune.rounds, pruning * seeds, pruning),
        Stage("retrain", chains, 2 if lines else 1, total, longest),
    ]
    return Plan(params, images, stages)


def total_of(works: Iterable[Work]) -> Work:
    return functools.reduce(operator.add, works)


def _length(work: Work) -> int:
    return work.iterations
