"""What a run is, its fingerprint, and how it is computed or taken from the run store."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lottery.artifacts import files
from lottery.artifacts.tables import Record, name_of_run
from lottery.datasets.dataset import Dataset, open_dataset
from lottery.datasets.split import Split
from lottery.masks import Mask, Weights
from lottery.params import Model, Network, Params, Train
from lottery.running import machine, store
from lottery.running.progress import Report, live


@dataclass(frozen=True)
class Run:
    """One training from given weights under a given mask.

    ``seed``, ``variant`` and ``round`` name it; with the seed's split, the other fields determine
    its result.
    """

    seed: int
    variant: str
    round: int
    model: Model
    train: Train
    weights: Weights = field(repr=False)
    mask: Mask = field(repr=False)
    order: str  # purpose of the data order
    iterations: int
    start: int = 0
    keep: tuple[int, ...] = ()  # iterations whose weights the result has
    masks: str = "fixed"  # how the mask changes: TRAINERS of lottery.training.learned_masks
    keep_trained: bool = True

    @property
    def name(self) -> str:
        """For people."""
        return name_of_run(self.seed, self.variant, self.round)


class Result(NamedTuple):
    """What comes of a run: what tables say of it, its trained weights and those kept on the way."""

    record: Record
    weights: Weights
    kept: dict[int, Weights]


@dataclass(frozen=True)
class Experiment:
    """What all runs of a stage have in common: its parameters and its code, as when it began.

    ``code``: the sha256 of what determines a run's result.
    """

    params: Params
    code: str

    @property
    def dataset(self) -> Dataset:
        """The one in the present folder; opened, and compared with its sha256, once a process."""
        return _dataset(files.DATASET.resolve(), files.read(files.DATASET / "dataset.json"))

    @property
    def network(self) -> Network:
        """The one that is pruned."""
        return Network(self.params.model, self.dataset.image_shape, self.dataset.classes)

    @property
    def iterations(self) -> int:
        """At which a run ends, unless it is stopped early."""
        return self.params.train.length(self.dataset.training - self.params.data.validation_size)

    def trainer(self, model: Model, train: Train, masks: str = "fixed") -> Any:
        """The Trainer of this process, traced once and used by every run of that model."""
        facts = files.read(files.DATASET / "dataset.json")
        return _trainer(model, train, masks, files.DATASET.resolve(), facts)

    def split(self, seed: int) -> Split:
        """The rows that a seed trains and is evaluated on."""
        return self.dataset.split(self.params.data, seed)

    def train(self, run: Run, report: Report) -> Result:
        """Computes the run in this process, or takes it from the store."""
        split, determined_by = self.split(run.seed), self._determined_by(run)
        fingerprint = _fingerprint(determined_by, run, split)
        stored = store.load_finished(fingerprint)
        how = "from the run store"
        if stored is None:
            trainer = self.trainer(run.model, run.train, run.masks)
            of = {"dataset": self.dataset.facts["name"], "model": run.model.name, "name": run.name}
            stored = groups, facts = _compute(trainer, run, split, fingerprint, of, report)
            facts["determined by"] = determined_by
            store.save_finished(fingerprint, groups, facts)
            begun = facts["begun"]
            resumed = f"resumed at iteration {begun}, " if begun > run.start else ""
            how = f"{resumed}{facts['trained']} iterations"
        groups, facts = stored
        by = facts["determined by"]
        record = Record(
            seed=run.seed,
            variant=run.variant,
            round=run.round,
            weights_remaining=run.mask.weights_remaining,
            history=facts["history"],
            environment=by["environment"],
            cpu=by["cpu"],
            fingerprint=fingerprint,
        )
        last = record.history["iteration"][-1]
        _report(report, run, last, how + ", diverged" * record.diverged)
        return Result(record, groups.get("weights", {}), _kept(groups))

    def _determined_by(self, run: Run) -> dict[str, Any]:
        """All that determines the result of a run, but its arrays."""
        from lottery.training import device

        return {
            "dataset": self.dataset.facts["files"],
            "model": run.model.model_dump(mode="json"),
            "train": run.train.model_dump(mode="json"),
            "order": [run.order, run.seed],
            "start": run.start,
            "iterations": run.iterations,
            "keep": list(run.keep),
            "keep trained": run.keep_trained,
            "masks": run.masks,
            "environment": machine.environment(device.device_name(), run.train.threads),
            "cpu": machine.cpu_model(),
            "variables": machine.variables(),
            "code": self.code,
        }


@lru_cache(maxsize=1)
def _dataset(folder: Path, facts: bytes) -> Dataset:
    """The dataset of a folder with that ``dataset.json``."""
    return open_dataset(folder)


@lru_cache(maxsize=1)
def _trainer(model: Model, train: Train, masks: str, folder: Path, facts: bytes) -> Any:
    from lottery.training.learned_masks import TRAINERS

    return TRAINERS[masks](model, train, _dataset(folder, facts))


def _fingerprint(determined_by: dict[str, Any], run: Run, split: Split) -> str:
    digest = hashlib.sha256(json.dumps(determined_by, sort_keys=True).encode())
    for arrays in (run.weights, run.mask.pack(), split._asdict()):
        for name, value in sorted(arrays.items()):
            digest.update(f"{name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _report(report: Report, run: Run, iteration: float, how: str | None = None) -> None:
    report(run.name, int(iteration), run.iterations, how)


def _compute(
    trainer: Any, run: Run, split: Split, fingerprint: str, of: dict[str, str], report: Report
) -> tuple[store.Nested, dict[str, Any]]:
    """Trains, from the last checkpoint if there is one: what the store keeps of the result.

    ``of`` names the run for people who look into the store.
    """
    from lottery.training.schedule import Order

    seconds, last = store.checkpoint_seconds(), time.monotonic()
    show = live(f"{run.name} {fingerprint[:8]}")

    def on_evaluation(iteration: int, snapshot: Callable[[], Any]) -> None:
        """Tells how far the run is, and keeps a checkpoint where it is time for one."""
        nonlocal last
        _report(report, run, iteration)
        if show:
            show(snapshot().history)
        if iteration < run.iterations and time.monotonic() - last >= seconds:
            groups, facts = _stored(snapshot())
            facts |= of | {"iterations": run.iterations}
            store.save_checkpoint(fingerprint, groups, facts)
            last = time.monotonic()

    resume = _checkpoint(fingerprint)
    began = time.perf_counter()
    state = trainer.run(
        run.weights,
        run.mask,
        Order(run.order, run.seed),
        split,
        start=run.start,
        iterations=run.iterations,
        keep=run.keep,
        resume=resume,
        on_evaluation=on_evaluation,
    )
    took = time.perf_counter() - began
    groups, facts = _stored(state)
    for name in ("slots",) if run.keep_trained else ("slots", "weights"):
        del groups[name]
    begun = run.start if resume is None else resume.iteration
    trained = state.iteration - begun
    return groups, {**facts, **of, "begun": begun, "trained": trained, "seconds": took}


def _checkpoint(fingerprint: str) -> Any:
    """The State to go on from; None: from the start."""
    from lottery.training.trainer import State

    if (found := store.load_checkpoint(fingerprint)) is None:
        return None
    groups, facts = found
    arrays = groups["weights"], groups["slots"]
    return State(facts["iteration"], *arrays, facts["history"], _kept(groups))


def _stored(state: Any) -> tuple[store.Nested, dict[str, Any]]:
    """A State as the store keeps it."""
    kept = {f"kept-{iteration}": weights for iteration, weights in state.kept.items()}
    groups = {"weights": state.weights, "slots": state.slots, **kept}
    return groups, {"iteration": state.iteration, "history": state.history}


def _kept(groups: store.Nested) -> dict[int, Weights]:
    parted = {name.partition("kept-")[2]: weights for name, weights in groups.items()}
    return {int(iteration): weights for iteration, weights in parted.items() if iteration}
