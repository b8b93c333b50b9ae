"""What a run is, its fingerprint, and how it is computed or taken from the run store."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lottery import parts
from lottery.datasets.dataset import open_dataset
from lottery.datasets.split import Split
from lottery.masks import Mask
from lottery.params import Model, Train
from lottery.running import store

LIBRARIES = ("tensorflow", "tf-keras", "tensorflow-model-optimization", "numpy")
SOURCES = (
    "training/models.py",
    "training/trainer.py",
    "streams.py",
    "masks.py",
    "running/run.py",
    "running/store.py",
    "parts.py",
)  # what computes a run


@dataclass(frozen=True)
class Result:
    """What comes of a run: its history, the weights asked for, and what it was computed on."""

    history: dict[str, list[float]]
    weights: dict[str, np.ndarray] | None
    kept: dict[int, dict[str, np.ndarray]]
    environment: dict[str, Any]
    fingerprint: str
    begun: int | None  # the iteration that this process began at; None: it came from the store


@dataclass(frozen=True)
class Run:
    """One training from given weights under a given mask.

    ``seed``, ``variant`` and ``round`` name it; the other fields determine its result.
    """

    seed: int
    variant: str
    round: int
    model: Model
    train: Train
    dataset: str  # folder
    split: Split = field(repr=False)
    weights: dict[str, np.ndarray] = field(repr=False)
    mask: Mask = field(repr=False)
    order: tuple[str, int]  # purpose and seed of the data order
    iterations: int
    start: int = 0
    keep: tuple[int, ...] = ()
    keep_trained: bool = True

    @property
    def name(self) -> str:
        return f"seed {self.seed}, {self.variant}" + (f", round {self.round}" if self.round else "")

    def __call__(self, report: Callable[[int], None]) -> Result:
        """Computes the run in this process, or takes it from the store. Reports the iteration it is at."""
        from lottery.training import schedule
        from lottery.training import trainer as training

        dataset, trainer = trainer_of(self.model, self.train, self.dataset)
        environment = describe_environment(training.device_name(), self.train.threads)
        fingerprint = self.fingerprint(dataset.facts["files"], environment)
        finished = store.load_finished(fingerprint)
        if finished is not None:
            groups, facts = finished
            return _result(groups, facts["environment"], fingerprint, None)

        seconds, last = store.checkpoint_seconds(), time.monotonic()

        def on_evaluation(iteration: int, snapshot: Callable[[], training.State]) -> None:
            nonlocal last
            report(iteration)
            if iteration < self.iterations and time.monotonic() - last >= seconds:
                facts = {"name": self.name, "iteration": iteration, "iterations": self.iterations}
                store.save_checkpoint(fingerprint, _groups_of(snapshot()), facts)
                last = time.monotonic()

        resume = self._checkpoint(fingerprint)
        began = time.perf_counter()
        state = trainer.run(
            self.weights,
            self.mask,
            schedule.Order(*self.order),
            self.split,
            start=self.start,
            iterations=self.iterations,
            keep=self.keep,
            resume=resume,
            on_evaluation=on_evaluation,
        )
        groups = _groups_of(state)
        wanted = {
            n: g
            for n, g in groups.items()
            if n != "slots" and (n != "weights" or self.keep_trained)
        }
        facts = {
            "name": self.name,
            "environment": environment,
            "seconds": time.perf_counter() - began,
        }
        store.save_finished(fingerprint, wanted, facts)
        return _result(
            wanted, environment, fingerprint, self.start if resume is None else resume.iteration
        )

    def describe(self, result: Result) -> str:
        """How the result came about, for the log."""
        if result.begun is None:
            return "from the run store"
        trained = int(result.history["iteration"][-1]) - result.begun
        if result.begun > self.start:
            return f"resumed at iteration {result.begun}, {trained} iterations"
        return f"{trained} iterations"

    def _checkpoint(self, fingerprint: str) -> Any:
        """The state to resume from; None: from the start."""
        from lottery.training import trainer

        found = store.load_checkpoint(fingerprint)
        if found is None:
            return None
        groups, facts = found
        return trainer.State(
            facts["iteration"],
            groups["weights"],
            groups["slots"],
            {name: values.tolist() for name, values in groups["history"].items()},
            _kept(groups),
        )

    def fingerprint(self, dataset_files: dict[str, str], environment: dict[str, Any]) -> str:
        """A hash of all that determines the result; of the dataset, the sha256 of each file."""
        digest = hashlib.sha256(
            json.dumps(
                {
                    "dataset": dataset_files,
                    "model": self.model.model_dump(),
                    "own": parts.source_sha256(self.model.name),
                    "train": self.train.model_dump(),
                    "order": self.order,
                    "start": self.start,
                    "iterations": self.iterations,
                    "keep": self.keep,
                    "keep_trained": self.keep_trained,
                    "environment": environment,
                    "sources": sources_sha256(),
                },
                sort_keys=True,
            ).encode()
        )
        for arrays in (self.weights, self.mask.pack(), self.split._asdict()):
            for name, value in sorted(arrays.items()):
                digest.update(f"{name} {value.dtype} {value.shape}".encode())
                digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()


@functools.cache
def sources_sha256() -> str:
    """sha256 of the modules that compute a run."""
    folder = Path(__file__).parent.parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in SOURCES)).hexdigest()


def describe_environment(device: str, threads: int) -> dict[str, Any]:
    """What a result depends on besides its parameters: no host name, no date."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"device": device, "cpu": cpu_model(), "threads": threads, "versions": versions}


INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")


@functools.cache
def cpu_model() -> str:
    """The CPU's name, family and model, and the instructions by which TensorFlow chooses its kernels.

    The name alone is not enough: virtual machines call several generations the same.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    has = " ".join(name for name in INSTRUCTIONS if name in facts.get("flags", "").split())
    return f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')}; {has or 'no AVX2'})"


def prepare(threads: int, worker: int) -> None:
    """Makes a worker process ready for runs: imports TensorFlow, once, and fixes its threads."""
    with _without_startup_noise():
        from lottery.training import trainer

        trainer.configure(threads, worker)
        trainer.device_name()


@contextlib.contextmanager
def _without_startup_noise() -> Iterator[None]:
    """Drops what TensorFlow's C++ prints as it looks for GPUs, and lets everything else through."""
    noise = (
        "absl::InitializeLog",
        "cudart_stub.cc",
        "failed call to cuInit",
        "cpu_feature_guard.cc",
        "To enable the following",
        "oneDNN custom operations are on",
    )
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                if not any(words in line for words in noise):
                    print(line, file=sys.stderr)


@functools.lru_cache(maxsize=1)
def trainer_of(model: Model, train: Train, dataset_folder: str) -> Any:
    """The dataset and the Trainer of this process: opened and traced once, used by every run."""
    from lottery.training import trainer

    dataset = open_dataset(Path(dataset_folder))
    made = trainer.Trainer(model, train, dataset)
    return dataset, made


@dataclass(frozen=True)
class Initialise:
    """Fresh weights of a network, and the kinds of its prunable ones: a task for a worker."""

    name: str
    model: Model
    image_shape: tuple[int, int, int]
    classes: int
    purpose: str
    key: tuple[int, ...]
    iterations: int = 0

    def __call__(
        self, report: Callable[[int], None]
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        from lottery.training import models

        network = models.build(
            self.model.name, self.image_shape, self.classes, width=self.model.width
        )
        weights = models.initialise(
            network,
            self.model.initializer,
            self.purpose,
            *self.key,
            batch_norm_scale=self.model.batch_norm_scale,
        )
        return weights, models.kinds(network)

    def describe(self, result: tuple[dict[str, np.ndarray], dict[str, str]]) -> str:
        return f"{self.model.initializer} weights"


@dataclass(frozen=True)
class InitialiseNarrowed:
    """Fresh weights of a network narrowed to at most so many prunable weights: a task for a worker."""

    name: str
    model: Model
    image_shape: tuple[int, int, int]
    classes: int
    weights: int
    key: tuple[int, ...]
    iterations: int = 0

    def __call__(
        self, report: Callable[[int], None]
    ) -> tuple[Model, dict[str, np.ndarray], dict[str, str]]:
        from lottery.training import models

        width = models.narrowed(
            self.model.name, self.image_shape, self.classes, self.weights, self.model.width
        )
        model = self.model.model_copy(update={"width": width})
        purpose = "initialisation of the narrow network"
        of_width = Initialise(self.name, model, self.image_shape, self.classes, purpose, self.key)
        return model, *of_width(report)

    def describe(self, result: tuple[Model, dict[str, np.ndarray], dict[str, str]]) -> str:
        return f"width {result[0].width:.3g}"


def _groups_of(state: Any) -> store.Nested:
    """A State as the store keeps it."""
    return {
        "weights": state.weights,
        "slots": state.slots,
        "history": {name: np.asarray(values, np.float64) for name, values in state.history.items()},
        **{f"kept-{iteration}": weights for iteration, weights in state.kept.items()},
    }


def _kept(groups: store.Nested) -> dict[int, dict[str, np.ndarray]]:
    return {
        int(name.removeprefix("kept-")): g for name, g in groups.items() if name.startswith("kept-")
    }


def _result(
    groups: store.Nested, environment: dict[str, Any], fingerprint: str, begun: int | None
) -> Result:
    history = {name: values.tolist() for name, values in groups["history"].items()}
    return Result(history, groups.get("weights"), _kept(groups), environment, fingerprint, begun)
