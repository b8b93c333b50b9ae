"""The same networks in float32 and in bfloat16: dense and one ticket, from the same weights in the same order.

    python -m benchmarks.precision --round 4 --out curves.csv [--seed 0] [--epochs 6]

To be run after `dvc repro`, in the same folder: it takes the initial weights and the mask from data/. Runs that
the pipeline or an earlier call has finished come from the run store; interrupted ones go on. Prints a table and
writes one row an evaluation.
"""

import argparse
from functools import partial
from pathlib import Path

import pandas as pd

from lottery import params
from lottery.artifacts import files
from lottery.artifacts.tables import Record
from lottery.code import of_stage
from lottery.masks import Mask
from lottery.running import machine
from lottery.running.executors import Task, compute
from lottery.running.progress import Report
from lottery.running.run import Experiment, Run


def train(experiment: Experiment, run: Run, report: Report) -> Record:
    """In a worker: one run."""
    return experiment.train(run, report).record


def main() -> None:
    """Trains, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--round", type=int, required=True, help="whose ticket is trained beside the dense network"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--epochs", type=int, help="at most so many, instead of train.epochs or train.iterations"
    )
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    loaded = params.load()
    code = of_stage("stages.retrain")
    experiment = Experiment(loaded, code.run)
    images = experiment.dataset.training - loaded.data.validation_size
    iterations = experiment.iterations
    if options.epochs:
        iterations = min(iterations, options.epochs * (images // loaded.train.batch_size))
    path = files.seed_folder(files.DENSE, options.seed) / "initial.safetensors"
    initial, facts = files.read_tensors(path)
    full = Mask.full({name: initial[name].shape for name in facts["kinds"]})
    ticket, _ = files.read_mask(files.round_file(files.MASKS, options.seed, options.round))
    runs = [
        Run(
            seed=options.seed,
            variant=f"{name} in {precision}",
            round=0,
            model=loaded.model,
            train=loaded.train.model_copy(update={"precision": precision}),
            weights=mask.apply(initial),
            mask=mask,
            order="data order of pruning",
            iterations=iterations,
        )
        for precision in options.precisions
        for name, mask in (("dense", full), ("ticket", ticket))
    ]
    tasks = [Task(run.name, partial(train, experiment, run), 1, iterations) for run in runs]
    threads = loaded.train.threads
    prepare = partial(machine.prepare, threads, code)
    rows = []
    for record in compute(tasks, prepare, title="precision", threads=threads):
        network, _, precision = record.variant.partition(" in ")
        measured = ("validation_loss", "validation_accuracy", "test_accuracy")
        for index, iteration in enumerate(record.history["iteration"]):
            rows.append(
                {
                    "network": network,
                    "weights_remaining": record.weights_remaining,
                    "precision": precision,
                    "iteration": int(iteration),
                    **{name: record.history[name][index] for name in measured},
                }
            )
    table = pd.DataFrame(rows).sort_values(["network", "precision", "iteration"])
    table.to_csv(options.out, index=False, float_format="%.7g")
    best = table.loc[table.groupby(["network", "precision"])["validation_loss"].idxmin()]
    print(best.to_string(index=False))


if __name__ == "__main__":
    main()
