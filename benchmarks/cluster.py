"""What the executors cost: tasks dispatched a second, and bytes moved for a run.

    python -m benchmarks.cluster [--tasks 2000]

Tasks that compute nothing, through processes of this machine and through a Ray cluster of this machine alone, in one run; then the sizes of what a run
of each architecture moves to and from a shared file system: its weights and mask, a checkpoint, its result. Prints Markdown.
"""

import argparse
import pickle
import time

from lottery.artifacts import files
from lottery.masks import Mask
from lottery.params import Model, Network, Train
from lottery.running import executors
from lottery.running.cluster import Ray
from lottery.running.progress import Report
from lottery.running.run import Run
from lottery.training import models

SHAPES = {"lenet_300_100": (28, 28, 1), "conv4": (32, 32, 3), "resnet20": (32, 32, 3)}


def nothing(report: Report) -> float:
    """A task that computes nothing: when."""
    return time.time()


def prepare(worker: int) -> None:
    """Nothing to prepare."""


def dispatched(workers: executors.Workers, tasks: int) -> float:
    """Tasks a second; the start of the executor is not counted."""
    with workers:
        running = [workers.submit(executors.compute_task, nothing, n) for n in range(workers.room)]
        times = [future.result() for future in running]
        while len(times) < tasks:
            running = [
                workers.submit(executors.compute_task, nothing, n) for n in range(workers.room)
            ]
            times += [future.result() for future in running]
    return (len(times) - 1) / (max(times) - min(times))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=2000)
    tasks = parser.parse_args().tasks
    print("| executor | tasks dispatched a second |\n|---|--:|")
    processes = executors.Processes(prepare, print, 1, tasks)
    print(f"| processes, {processes.where} | {dispatched(processes, tasks):,.0f} |")
    print(f"| Ray, this machine | {dispatched(Ray(prepare, print, 1), tasks):,.0f} |\n")
    print("| MB | to the worker | a checkpoint | the result |\n|---|--:|--:|--:|")
    for name, shape in SHAPES.items():
        model = Model(name=name, initializer="glorot_normal")
        weights, kinds = models.initialise(Network(model, shape, 10), "benchmark", 0)
        mask = Mask.full({kernel: weights[kernel].shape for kernel in kinds})
        train = Train(
            optimizer="adam", learning_rate=1e-3, batch_size=60, iterations=100, evaluate_every=50
        )
        run = Run(0, "ticket", 1, model, train, weights, mask, "order", 100)
        slots = {f"{slot}/{n}": v for slot in ("m", "v") for n, v in weights.items()}
        sizes = [
            len(pickle.dumps(run)),
            *(len(files.tensors_to_bytes(t, {})) for t in ({**weights, **slots}, weights)),
        ]
        print(f"| {name} | " + " | ".join(f"{size / 1e6:.1f}" for size in sizes) + " |")


if __name__ == "__main__":
    main()
