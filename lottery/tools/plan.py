"""What an experiment will cost, before it is started: runs, core-hours, wall time by workers, disk.

Seconds an iteration are those of finished runs of the same network and training in the run store;
where it has none, of a short training on this machine, of two at once where it runs so many.
Downloads are not counted, nor what the run store spares.
"""

import argparse
import heapq
import math
import multiprocessing
import statistics
import timeit
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lottery.artifacts import files
from lottery.datasets.dataset import Dataset, open_dataset
from lottery.datasets.pinning import check_seen
from lottery.errors import LotteryError
from lottery.params import PARAMS_FILE, Network, Params, load
from lottery.params.catalogue import DATASETS, Known
from lottery.report.verdict import claim_of, fewest_to_lose
from lottery.running import machine, store
from lottery.running.workers import worker_count
from lottery.tickets import given, own
from lottery.tickets.search import rounds_to_train
from lottery.tickets.stability import POINTS
from lottery.tickets.ticket import last_iteration

START = 12.0  # seconds that a stage that trains takes besides: imports, tracing, DVC
SETS_THE_PACE = {
    *("optimizer", "batch_size", "augmentation", "precision", "jit_compile"),
    *("evaluate_every", "threads"),
}
TIMED = 8.0  # seconds that a training is timed for


class Work(NamedTuple):
    """What one worker computes whole."""

    runs: int  # one after another
    iterations: int  # of all of them, at most


def tasks_of(
    params: Params, iterations: int, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, list[Work]]:
    """What is trained, by stage; ``iterations`` is the length of a run, ``shapes`` are those of the
    prunable weights, which masks that are taken over must have.
    """
    seeds, rounds, prune = len(params.seeds), params.retrain_rounds(), params.prune
    taken = [given.read(params, seed, shapes or {}).masks for seed in params.seeds]
    searched = [len(rounds_to_train(prune, masks)) for masks in taken]
    retrained = [
        Work(1, last_iteration(variant, prune, number, iterations))
        for variant in params.retrain.variants
        for number in rounds
    ]
    if params.retrain.analysis == "linear_mode_connectivity":
        retrained += [Work(2, 2 * iterations)] * (1 + len(rounds))
    return {
        "train_dense": [Work(1, iterations)] * seeds,
        "prune": [Work(n, n * (iterations - prune.rewind_iteration)) for n in searched],
        "retrain": retrained * seeds,
    }


def wall_seconds(stages: Iterable[Sequence[Work]], workers: int, pace: float) -> float:
    """Time to the end of the last stage, each worker taking the next task when it has ended one."""
    total = 0.0
    for tasks in stages:
        busy = [0] * workers
        for task in tasks:
            heapq.heapreplace(busy, busy[0] + task.iterations)
        total += START + pace * max(busy)
    return total


def pace_of(params: Params, network: Network) -> tuple[float, str]:
    """Seconds an iteration, evaluations included: from the run store, or else timed; and which."""
    model = params.model.model_dump(mode="json")
    run: dict[str, Any] = {"model": model, "cpu": machine.cpu_model(), "masks": "fixed"}
    if params.data.name not in DATASETS:  # others of that name may be larger
        run["dataset"] = files.read_json(files.DATASET / "dataset.json")["files"]
    train = params.train.model_dump(include=SETS_THE_PACE)
    paces = []
    for path in store.folder().glob(f"*{store.FINISHED}"):
        facts = store.read_facts(path) or {}
        by = facts.get("determined by", {})
        alike = facts.get("dataset") == params.data.name and run.items() <= by.items()
        if alike and train.items() <= by["train"].items() and facts.get("trained"):
            paces.append(facts["seconds"] / facts["trained"])
    if paces:
        return statistics.median(paces), f"{len(paces)} finished runs in the run store"
    if worker_count(params.train.threads) == 1:
        return timed(params, network), "a short training on this machine"
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        both = pool.map(timed, [params] * 2, [network] * 2)
        return max(both), "two short trainings at once on this machine"


def timed(params: Params, network: Network) -> float:
    """Seconds an iteration of the dense network, with its share of an evaluation: timed."""
    from lottery.datasets.split import Split
    from lottery.training import device, models, trainer
    from lottery.training.schedule import Order

    device.configure(params.train.threads)
    known, count = DATASETS.get(params.data.name), max(10 * params.train.batch_size, 1000)
    held_out = (known.test if known else 1000) + params.data.validation_size
    generator, rows = np.random.default_rng(0), np.arange(count, dtype=np.int32)
    images = generator.integers(0, 256, (count, *network.image_shape), np.uint8)
    labels = generator.integers(0, network.classes, count, np.int32)
    facts = {"image_shape": network.image_shape, "classes": network.classes, "test": 1}
    engine = trainer.Trainer(params.model, params.train, Dataset(images, labels, facts))
    split, order, some = Split(rows, rows, rows), Order("timing", 0), rows[:1000]

    def train(iterations: int) -> None:
        """So many iterations, waited for."""
        float(engine.train_interval(order, split, 0, 0, iterations)[0])

    engine.evaluate(some, models.initialise(network, "timing", 0)[0])  # compiles it
    train(1)
    seconds = partial(timeit.timeit, number=1)
    iterations = math.ceil(min(TIMED / seconds(partial(train, 1)), 10_000))
    iteration = seconds(partial(train, iterations)) / iterations
    evaluation = seconds(partial(engine.evaluate, some)) * held_out / len(some)
    return iteration + evaluation / params.train.evaluate_every


def disk(params: Params, weights: int) -> float:
    """Bytes in ``data/`` and run store, at most: float32, pruned ones as survivors and mask."""
    prune, seeds = params.prune, len(params.seeds)
    rate = min(prune.rates.model_dump().values())
    surviving = sum((1 - rate) ** number + 1 / 32 for number in range(1, prune.rounds + 1))
    kept = 3 + 2 + surviving + prune.rounds * (prune.trains + 1 / 32)
    if params.retrain.analysis == "linear_mode_connectivity":
        kept += 2 * (1 + len(params.retrain_rounds()))
    return 4.0 * weights * seeds * kept


def network_of(params: Params) -> tuple[Network, int]:
    """The network, and how many images train it; LotteryError where they are not known yet."""
    name = params.data.name
    dataset: Known | Dataset | None = DATASETS.get(name)
    if dataset is None and (files.DATASET / "dataset.json").exists():
        fetched = open_dataset()
        dataset = fetched if fetched.facts["name"] == name else None
    if dataset is None:
        why = "its images are not known before they are read: run `dvc repro fetch` first"
        raise LotteryError(f"data.name: {name}: {why}")
    network = Network(params.model, dataset.image_shape, dataset.classes)
    return network, dataset.training - params.data.validation_size


def describe(params: Params, workers: Sequence[int]) -> str:
    """The plan, as text."""
    from lottery.training import models

    network, training = network_of(params)
    length, threads = params.train.length(training), params.train.threads
    pace, known_from = pace_of(params, network)  # first: it may set TensorFlow up
    model = models.build(network)
    shapes = {n: tuple(models.variables(model)[n].shape) for n in models.kinds(model)}
    stages = tasks_of(params, length, shapes)
    runs, iterations = np.sum([task for tasks in stages.values() for task in tasks], axis=0)
    lines = [
        f"{runs:,} runs of at most {length:,} iterations; "
        f"{1000 * pace:,.3g} ms an iteration, evaluations included ({known_from})"
    ]
    for name, tasks in stages.items():
        of_stage, work = np.sum(tasks, axis=0)
        lines.append(f"  {name:<12}{of_stage:>8,} runs  {duration(pace * work):>18} of work")
    hours = pace * iterations * threads / 3600
    size = disk(params, model.count_params()) / 1e9
    lines.append(f"{hours:,.1f} core-hours; {size:.2g} GB of disk")
    for number in workers:
        wall = duration(wall_seconds(stages.values(), number, pace))
        lines.append(f"  {number:>4} workers of {threads} thread(s): {wall}")
    if params.retrain.analysis != "none":
        lines.append(
            f"not counted: retrain.analysis evaluates {POINTS} networks on each of its lines, on "
            "training and test images"
        )
    if params.train.early_stopping:
        lines.append("train.early_stopping ends runs earlier: these are upper bounds")
    if params.train.precision == "bfloat16" and "avx512_bf16" not in machine.cpu_model():
        lines.append("this CPU has no bfloat16 of its own: train.precision float32 is faster here")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Such as ``1:20:00``, or ``1 day, 1:00:00``."""
    return str(timedelta(seconds=round(seconds)))


def main(arguments: list[str]) -> None:
    """``python -m lottery plan``. Raises LotteryError."""
    parser = argparse.ArgumentParser(prog="python -m lottery plan", description=__doc__)
    add, file = parser.add_argument, "an experiment's file, by default params.yaml"
    add("params", type=Path, nargs="?", default=PARAMS_FILE, metavar="PARAMS", help=file)
    workers = "by default 1 and those of this machine"
    add("--workers", type=int, nargs="+", metavar="N", help=workers)
    options = parser.parse_args(arguments)
    params = load(options.params)
    check_seen(params.data)
    own.check(params)
    numbers = options.workers or sorted({1, worker_count(params.train.threads)})
    if min(numbers) < 1:
        raise LotteryError(f"--workers: got {min(numbers)}; accepted: 1 or more")
    with machine.quick_and_quiet_start():
        text = describe(params, numbers)
    print(text)
    if missing := params.missing():
        print(f"This experiment cannot end in a win: {missing}")
    if len(params.seeds) < (fewest := fewest_to_lose(params)):
        lost = claim_of(params.prune).lost
        print(f'This experiment cannot end in "{lost}": {fewest} seeds are the fewest that can')
