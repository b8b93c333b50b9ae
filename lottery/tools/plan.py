"""What an experiment will cost, before it is started: runs, core-hours, wall time by workers, disk.

Seconds an iteration are those of finished runs of the same network and training in the run store;
where it has none, of a short training on this machine. Downloads are not counted, nor what the run
store spares.
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lottery.artifacts import files
from lottery.datasets.catalogue import DATASETS, read_params
from lottery.datasets.dataset import Dataset, open_dataset
from lottery.datasets.pinning import check_seen
from lottery.errors import LotteryError
from lottery.params import PARAMS_FILE, Model, Params, Train
from lottery.running import machine, store
from lottery.running.workers import worker_count
from lottery.tickets.variants import last_iteration

START = 12.0  # seconds that a stage that trains takes besides: imports, tracing, DVC
TIMED = 8.0  # seconds that a training is timed for


class Stage(NamedTuple):
    """A stage's tasks, each of which a worker computes whole."""

    name: str
    tasks: int
    runs: int  # of a task, one after another
    iterations: int  # of a task, at most


def stages_of(params: Params, iterations: int) -> list[Stage]:
    """What is trained, by stage; ``iterations`` is the length of a run."""
    seeds, rounds, prune = len(params.seeds), params.retrain_rounds(), params.prune
    left = iterations - prune.rewind_iteration
    searched = prune.rounds if prune.trains else 0
    found = [
        Stage("train_dense", seeds, 1, iterations),
        Stage("prune", seeds, searched, searched * left),
    ]
    for variant in params.retrain.variants:
        for number in rounds:
            last = last_iteration(str(variant), prune, number, iterations)
            found.append(Stage("retrain", seeds, 1, last))
    if params.retrain.analysis == "linear_mode_connectivity":
        found.append(Stage("retrain", seeds * (1 + len(rounds)), 2, 2 * iterations))
    return found


def wall_seconds(stages: Sequence[Stage], workers: int, pace: float) -> float:
    """Time to the end of the last stage, each worker taking the next task when it has ended one."""
    by_name: dict[str, list[Stage]] = {}
    for stage in stages:
        by_name.setdefault(stage.name, []).append(stage)
    total = 0.0
    for some in by_name.values():
        work = sum(s.tasks * s.iterations for s in some)
        longest = max(s.iterations for s in some)
        turns = max(work / workers, longest * math.ceil(some[0].tasks / workers), longest)
        total += START + pace * turns
    return total


def pace_of(params: Params, shape: tuple[int, int, int], classes: int) -> tuple[float, str]:
    """Seconds an iteration, evaluations included, and where they are known from."""
    wanted = (params.model.model_dump(mode="json"), _computing(params.train))
    here = {"cpu": machine.cpu_model(), "threads": params.train.threads}
    found = []
    for path in store.folder().glob(f"*{store.FINISHED}"):
        facts = store.read_facts(path) or {}
        by = facts.get("determined by", {})
        if not by or facts.get("trained", 0) < 1:
            continue
        computed = {"cpu": by["cpu"], "threads": by["environment"]["threads"]}
        if (by["model"], _computing(Train(**by["train"]))) == wanted and computed == here:
            found.append(facts["seconds"] / facts["trained"])
    if found:
        return statistics.median(found), f"{len(found)} finished runs in the run store"
    return timed(params, shape, classes), "a short training on this machine, alone"


def _computing(train: Train) -> dict[str, object]:
    """The part of the section that an iteration's time depends on."""
    names = {"optimizer", "batch_size", "precision", "jit_compile", "evaluate_every"}
    return train.model_dump(include=names)


def timed(params: Params, shape: tuple[int, int, int], classes: int) -> float:
    """Seconds an iteration of the dense network, timed for TIMED seconds; evaluations by their
    share."""
    from lottery.datasets.split import Split
    from lottery.training import device, models, trainer
    from lottery.training.schedule import Order

    device.configure(params.train.threads)
    known = DATASETS.get(params.data.name)
    test, validation = known.test if known else 1000, params.data.validation_size
    generator, held_out = np.random.default_rng(0), min(1000, test + validation)
    count = max(10 * params.train.batch_size, held_out)
    images = generator.integers(0, 256, (count, *shape), np.uint8)
    labels = generator.integers(0, classes, count, np.int32)
    dataset = Dataset(images, labels, {"image_shape": shape, "classes": classes, "test": 1})
    engine = trainer.Trainer(params.model, params.train, dataset)
    network = models.build(params.model.name, shape, classes, width=params.model.width)
    weights = models.initialise(network, params.model.initializer, "timing", 0)
    rows = np.arange(count, dtype=np.int32)
    split, order = Split(rows, rows, rows), Order("timing", 0)
    engine.evaluate(rows[:held_out], weights)

    def seconds_of(steps: int) -> float:
        began = time.perf_counter()
        float(engine.train_interval(order, split, 0, 0, steps)[0])
        return time.perf_counter() - began

    steps = 1
    seconds_of(steps)
    while (seconds := seconds_of(steps)) < TIMED / 2 and steps < 10_000:
        steps = math.ceil(steps * min(10.0, max(1.5, TIMED / max(seconds, 1e-3))))
    began = time.perf_counter()
    engine.evaluate(rows[:held_out])
    evaluation = (time.perf_counter() - began) * (test + validation) / held_out
    return seconds / steps + evaluation / params.train.evaluate_every


def disk(params: Params, weights: int) -> float:
    """Bytes in ``data/`` and in the run store, at most: weights as float32, pruned ones as
    survivors and mask."""
    prune, seeds = params.prune, len(params.seeds)
    rate = min(prune.rates.model_dump().values())
    surviving = sum((1 - rate) ** number + 1 / 32 for number in range(1, prune.rounds + 1))
    kept = 3 + 2 + surviving + prune.rounds * (prune.trains + 1 / 32)
    return 4.0 * weights * seeds * kept


def shape_of(params: Params) -> tuple[tuple[int, int, int], int, int]:
    """Image shape, classes, and training images: the catalogue's, or those of the dataset fetched
    here.

    Raises LotteryError where they are not known yet.
    """
    known = DATASETS.get(params.data.name)
    if known:
        return known.image_shape, known.classes, known.training - params.data.validation_size
    if (files.DATASET / "dataset.json").exists():
        dataset = open_dataset()
        if dataset.facts["name"] == params.data.name:
            training = dataset.training - params.data.validation_size
            return dataset.image_shape, dataset.classes, training
    raise LotteryError(
        f"data.name: {params.data.name}: its images are not known before they are read: "
        "run `dvc repro fetch` first"
    )


def weights_of(model: Model, shape: tuple[int, int, int], classes: int) -> int:
    """The number of weights of the network, biases included."""
    from lottery.training import models

    return int(models.build(model.name, shape, classes, width=model.width).count_params())


def describe(params: Params, workers: Sequence[int]) -> str:
    """The plan, as text."""
    shape, classes, training = shape_of(params)
    length = params.train.length(training)
    stages = stages_of(params, length)
    pace, known_from = pace_of(params, shape, classes)
    hours = sum(s.tasks * s.iterations for s in stages) * pace * params.train.threads / 3600
    lines = [
        f"{sum(s.tasks * s.runs for s in stages):,} runs of at most {length:,} iterations; "
        f"{1000 * pace:,.3g} ms an iteration, evaluations included ({known_from})"
    ]
    for name in ("train_dense", "prune", "retrain"):
        some = [s for s in stages if s.name == name]
        runs, work = sum(s.tasks * s.runs for s in some), sum(s.tasks * s.iterations for s in some)
        lines.append(f"  {name:<12}{runs:>8,} runs  {duration(work * pace):>14} of work")
    lines.append(
        f"{hours:,.1f} core-hours; "
        f"{disk(params, weights_of(params.model, shape, classes)) / 1e9:.2g} GB of disk"
    )
    for number in workers:
        wall = duration(wall_seconds(stages, number, pace))
        lines.append(f"  {number:>4} workers of {params.train.threads} thread(s): {wall}")
    if params.train.early_stopping:
        lines.append("train.early_stopping ends runs earlier: these are upper bounds")
    if params.train.precision == "bfloat16" and "avx512_bf16" not in machine.cpu_model():
        lines.append("this CPU has no bfloat16 of its own: train.precision float32 is faster here")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """In the two largest units: ``1 h 20 min``."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    large = next((i for i, (_, length) in enumerate(units[:3]) if seconds >= length), 2)
    (big, longer), (small, length) = units[large : large + 2]
    whole, rest = divmod(round(seconds / length), longer // length)
    return f"{whole} {big} {rest} {small}" if whole else f"{rest} {small}"


def main(arguments: list[str] | None = None) -> None:
    """``python -m lottery plan``: a user's mistake ends it with plain lines and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m lottery plan", description=__doc__)
    parser.add_argument("params", type=Path, nargs="?", default=PARAMS_FILE, metavar="PARAMS")
    parser.add_argument(
        "--workers", type=int, nargs="+", metavar="N", help="by default 1 and those of this machine"
    )
    options = parser.parse_args(arguments)
    try:
        params = read_params(options.params)
        check_seen(params.data)
        if options.workers and min(options.workers) < 1:
            raise LotteryError(f"--workers: got {min(options.workers)}; accepted: 1 or more")
        here = worker_count(params.train.threads)
        with machine.without_startup_noise():
            text = describe(params, options.workers or sorted({1, here}))
        print(text)
    except LotteryError as error:
        parser.exit(1, "".join(f"plan: {line}\n" for line in str(error).splitlines()))
