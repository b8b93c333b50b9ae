"""What single steps cost on this machine: measured once by real workers on random images, kept in the run store.

Two workers side by side are slower each than one alone, so everything is measured with one worker and
with as many as a stage would have here.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lottery import parts
from lottery.artifacts import files
from lottery.datasets.split import Part
from lottery.errors import LotteryError
from lottery.masks import Mask, overlap
from lottery.params import Model, Params, Train
from lottery.running import executors, run, store
from lottery.tickets import criteria
from lottery.tickets.pruning import Prune

SECONDS = 3.0  # each of the two long timings takes at least this
TRAINING_BYTES = 2**28  # of random training images, at most
HELD_OUT = 1000  # random images to evaluate, at most; the time grows with their number
DVC_SECONDS = 0.45  # DVC's own work a stage (docs/performance.md)
ONCE = (
    "dvc.repo.reproduce",
    "sklearn.model_selection",
    "lottery.report.verdict, lottery.report.charts, matplotlib.pyplot",
)
ROOT = Path(__file__).parent.parent.parent
SOURCES = (
    "tools/costs.py",
    "tickets/criteria.py",
    "tickets/pruning.py",
)  # what is timed here, besides what computes a run


@dataclass(frozen=True)
class Images:
    """What the costs depend on of a dataset: shape, classes, and the numbers of images."""

    shape: tuple[int, int, int]
    classes: int
    training: int
    validation: int
    test: int

    @property
    def held_out(self) -> int:
        """Images of an evaluation."""
        return self.validation + self.test


@dataclass(frozen=True)
class Costs:
    """Seconds that each step takes a worker, with so many workers side by side on one machine."""

    workers: int
    start: float  # of a stage's workers: until the first run begins, TensorFlow imported and the loop traced
    run: float  # around a run: passed to the worker, hashed, stored
    iteration: float
    evaluated_image: float
    mask: float
    first_mask: float  # what the first mask of a process takes longer
    initialisation: float


@dataclass(frozen=True)
class Machine:
    """Costs on one machine with few and with many workers, and what they were measured on."""

    costs: tuple[Costs, ...]  # by rising number of workers; the last: as many as a stage has here
    stage: float  # seconds of a stage besides its workers: a process, DVC's work
    once: float  # seconds of what the whole pipeline imports once: DVC, what fetch needs, what report needs
    extracted_mask: float  # seconds to read, check and write a mask
    compared_masks: float  # seconds for the overlap of two masks
    sizes: dict[str, int]  # values of each variable of the network, by name
    kinds: dict[str, str]  # of the prunable ones
    device: str
    gpus: int
    memory: int  # bytes of a worker, at its peak

    @property
    def workers(self) -> int:
        """As many as a stage has here."""
        return self.costs[-1].workers

    def at(self, workers: int) -> Costs:
        """Costs with so many workers: measured, or in between; with more than fit here they are on machines like this."""
        few, many = self.costs[0], self.costs[-1]
        if workers >= many.workers:
            return many
        share = (workers - few.workers) / (many.workers - few.workers)
        pairs = {
            f.name: (getattr(few, f.name), getattr(many, f.name)) for f in dataclasses.fields(Costs)
        }
        return Costs(
            **{name: a + share * (b - a) for name, (a, b) in pairs.items()} | {"workers": workers}
        )


def costs_here(params: Params, images: Images, *, again: bool = False) -> Machine:
    """The costs on this machine: those kept in the run store, or else (or ``again``) measured now, in about a minute.

    Raises LotteryError where the network cannot be trained.
    """
    workers = executors.worker_count(params.train.threads)
    path = store.FOLDER / f"plan-{key(params, images, workers)}.json"
    with contextlib.suppress(LotteryError, TypeError, KeyError):  # not there, or damaged
        if not again:
            return read(path)
    counts = sorted({1, workers})
    print(
        f"plan: measuring, once: {params.model.name}, {params.train.precision}, batches of {params.train.batch_size}, "
        f"with {' and with '.join(map(str, counts))} worker{'s' * (workers > 1)} on this machine; about a minute …",
        file=sys.stderr,
        flush=True,
    )
    machine = _measure(params, images, counts)
    files.write_json(path, dataclasses.asdict(machine))
    return machine


def read(path: Path) -> Machine:
    """Costs as they are kept; LotteryError, KeyError or TypeError where the file holds something else."""
    kept = files.read_json(path)
    return Machine(**{**kept, "costs": tuple(Costs(**one) for one in kept["costs"])})


def key(params: Params, images: Images, workers: int) -> str:
    """A hash of all that the costs depend on: not of the length of a run, nor of the learning rate."""
    beside = {
        "iterations",
        "epochs",
        "early_stopping",
        "learning_rate",
        "learning_rate_steps",
        "warmup_iterations",
    }
    content = {
        "model": [params.model.name, params.model.width, params.model.dropout],
        "own": parts.source_sha256(params.model.name),
        "train": params.train.model_dump(exclude=beside),
        "criterion": [
            params.prune.criterion,
            params.prune.scope,
            parts.source_sha256(params.prune.criterion),
        ],
        "images": [images.shape, images.classes, images.training, min(images.held_out, HELD_OUT)],
        "workers": workers,
        "environment": run.describe_environment(
            os.environ.get("CUDA_VISIBLE_DEVICES", ""), params.train.threads
        ),
        "sources": [
            run.sources_sha256(),
            *(hashlib.sha256((ROOT / "lottery" / n).read_bytes()).hexdigest() for n in SOURCES),
        ],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def evaluations(start: int, stop: int, every: int) -> int:
    """Evaluations of a run from iteration ``start`` to ``stop``: the first, each multiple of ``every``, the last."""
    return 2 + (stop - 1) // every - start // every


def _measure(params: Params, images: Images, counts: list[int]) -> Machine:
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):  # whose run store is another
        _write_random_images(Path("images"), images, params.train.batch_size)
        costs = []
        for count in counts:
            found: list[dict[str, Any]] = []
            chains = [_timings(params, images, index, found) for index in range(count)]
            prepare = partial(run.prepare, params.train.threads)
            with contextlib.redirect_stderr(
                io.StringIO()
            ):  # the bar of no runs; workers have a standard error of their own
                try:
                    executors.execute(
                        chains, executors.Local(prepare, count), title="plan", runs=0, iterations=0
                    )
                except LotteryError as error:
                    raise LotteryError(
                        str(error).rpartition("\n")[0]
                    ) from None  # without what `dvc repro` would do
            means = {
                name: float(np.mean([one["costs"][name] for one in found]))
                for name in found[0]["costs"]
            }
            costs.append(Costs(workers=count, **means))
            shutil.rmtree(store.FOLDER)
    return Machine(
        tuple(costs),
        stage=DVC_SECONDS + _time_import("stages.retrain"),
        once=sum(map(_time_import, ONCE)),
        **found[0]["network"],
        **found[0]["device"],
    )


def _time_import(modules: str) -> float:
    """Seconds that a process takes which only imports these."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}"], cwd=ROOT, check=True)
    return time.perf_counter() - began


def _write_random_images(folder: Path, images: Images, batch_size: int) -> None:
    generator = np.random.default_rng(0)

    def part(number: int) -> Part:
        pixels = generator.integers(0, 256, (number, *images.shape), np.uint8)
        return Part(pixels, np.arange(number, dtype=np.int32) % images.classes)

    fit = max(TRAINING_BYTES // math.prod(images.shape), batch_size)
    held_out = min(images.held_out, HELD_OUT)
    parts = {
        "train": min(images.training, fit),
        "validation": held_out // 2,
        "test": held_out - held_out // 2,
    }
    facts = {"image_shape": images.shape, "classes": images.classes, "counts": parts}
    files.write_dataset(folder, {name: part(number) for name, number in parts.items()}, facts)


@dataclass(frozen=True)
class _Unreported:
    """A task, or a function of nothing, that is no run to the progress."""

    task: Any
    name: str = "plan"
    iterations: int = 0

    def __call__(self, report: Callable[[int], None]) -> Any:
        return self.task(report)

    def describe(self, result: Any) -> str:
        return ""


@dataclass(frozen=True)
class _Evaluate:
    """Seconds of an evaluation of the held-out images, by its worker's trainer."""

    model: Model
    train: Train

    def __call__(self, report: Callable[[int], None]) -> float:
        _, trainer = run.trainer_of(self.model, self.train, "images")
        times, began = 0, time.perf_counter()
        while not times or time.perf_counter() - began < SECONDS:
            trainer.evaluate()
            times += 1
        return (time.perf_counter() - began) / times


def _device(report: Callable[[int], None]) -> dict[str, Any]:
    """What a worker computes on, and its memory."""
    import tensorflow as tf

    from lottery.training import trainer

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    return {
        "device": trainer.device_name(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "memory": peak,
    }


def _timings(
    params: Params, images: Images, index: int, found: list[dict[str, Any]]
) -> executors.Chain:
    """Times real tasks as a stage computes them; what its worker took is added to ``found``."""
    # A learning rate with which random images cannot make it diverge; one object, so one tracing.
    harmless = {"learning_rate": 1e-6, "learning_rate_steps": None, "early_stopping": None}
    train = params.train.model_copy(update={**harmless, "iterations": 10**6, "epochs": None})
    number, trained, file = 0, {}, Path(f"weights-{index}.safetensors")

    def timed(task: Any) -> Generator[Any, Any, tuple[Any, float]]:
        before = time.perf_counter()
        result = yield _Unreported(task)
        return result, time.perf_counter() - before

    def run(iterations: int) -> Generator[Any, Any, float]:
        nonlocal number, trained
        number += 1
        before = time.perf_counter()
        weights, _ = files.read_tensors(file)
        result = yield _Unreported(
            run.Run(
                seed=index,
                variant="plan",
                round=0,
                model=params.model,
                train=train,
                dataset="images",
                weights=weights,
                mask=full,
                order=(
                    f"plan {index}",
                    number,
                ),  # each of its own, so that none comes from the store
                iterations=iterations,
            )
        )
        trained = result.weights
        return time.perf_counter() - before

    network = (params.model, images.shape, images.classes)
    fresh = run.Initialise("plan", *network, "plan", (index,))
    (weights, kinds), start = yield from timed(fresh)
    files.write_tensors(file, weights, {})
    full = Mask.full({name: weights[name].shape for name in kinds})
    start += yield from run(1)
    _, initialisation = yield from timed(fresh)
    evaluation, _ = yield from timed(_Evaluate(params.model, train))
    short, iterations = (yield from run(1)), 10
    while (seconds := (yield from run(iterations))) < SECONDS + short:
        iterations *= 3
    beyond = evaluations(0, iterations, train.evaluate_every) - 2
    iteration = max(1e-6, (seconds - short - beyond * evaluation) / (iterations - 1))

    batch = None
    if params.prune.criterion in ("snip", "grasp"):
        batch = criteria.batch(files.open_dataset(Path("images")).train, images.classes, index)
    keep = params.prune.surviving(full.sizes, kinds, 1)
    prune = Prune(
        "plan",
        params.model,
        *network[1:],
        params.prune.criterion,
        trained,
        weights,
        full,
        keep,
        index,
        batch,
    )
    masks = []
    for _ in range(2):
        mask, seconds = yield from timed(prune)
        before = time.perf_counter()
        files.write_masked_weights(file, mask.apply(trained), mask, {})
        writing = time.perf_counter() - before
        masks.append(seconds + writing)
    before = time.perf_counter()
    files.read_masked_weights(file)
    extracting = writing + time.perf_counter() - before
    before = time.perf_counter()
    for keep_of in mask.layers.values():
        overlap(keep_of, keep_of)
    comparing = time.perf_counter() - before
    device, _ = yield from timed(_device)
    found.append(
        {
            "costs": {
                "start": start,
                "run": max(0.0, short - iteration - 2 * evaluation),
                "iteration": iteration,
                "evaluated_image": evaluation / min(images.held_out, HELD_OUT),
                "mask": masks[1],
                "first_mask": max(0.0, masks[0] - masks[1]),
                "initialisation": initialisation,
            },
            "network": {
                "sizes": {name: value.size for name, value in weights.items()},
                "kinds": kinds,
                "extracted_mask": extracting,
                "compared_masks": comparing,
            },
            "device": device,
        }
    )
