"""One seed by the notebook's own protocol, whose choices make its result look better than it is.

    python -m benchmarks.notebook_protocol FOLDER [--seed 0] [--rounds 15]

All training images are trained on, runs end after a patience on the *test* loss, and the accuracy is the last one: the
test set chooses where to stop and then says how good that was. Everything else is the experiment's. To be run after
`fetch`, in the project's folder; FOLDER gets data/ of its own and `protocol.csv`. Interrupted, it goes on.
"""

import argparse
import contextlib
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lottery import params
from lottery.artifacts import files, tables
from lottery.artifacts.tables import Record
from lottery.code import of_stage
from lottery.datasets.split import Split
from lottery.running import machine
from lottery.running.executors import Task, compute
from lottery.running.progress import Report
from lottery.running.run import Experiment
from lottery.tickets import search, variants


class OnTestLoss(Experiment):
    """Trains on validation images too; what chooses the early stop is the test set."""

    def split(self, seed: int) -> Split:
        """The rows of a seed, with the test images as validation images."""
        train, validation, test = super().split(seed)
        return Split(np.concatenate([train, validation]), test, test)


def train(experiment: Experiment, folder: Path, seed: int, report: Report) -> list[Record]:
    """In a worker: the dense network, the rounds, the ticket of the last one."""
    with contextlib.chdir(folder):
        dense = search.train_dense(experiment, files.DENSE, seed, report)
        pruned = search.find_tickets(experiment, files.PRUNED, seed, report)
        last = experiment.params.prune.rounds
        _, mask, facts = files.read_masked_weights(files.round_file(files.PRUNED, seed, last))
        files.write_mask(files.round_file(files.MASKS, seed, last), mask, facts)
        return [*dense, *pruned, variants.retrain(experiment, seed, "ticket", last, report)]


def main() -> None:
    """Trains, prints and writes one row a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, help="in place of prune.rounds")
    options = parser.parse_args()
    loaded = params.load()
    rounds = options.rounds or loaded.prune.rounds
    prune = loaded.prune.model_copy(update={"rounds": rounds})
    code = of_stage("stages.retrain")
    experiment = OnTestLoss(loaded.model_copy(update={"prune": prune}), code.run)
    (options.folder / "data").mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (options.folder / files.DATASET).symlink_to(files.DATASET.absolute())
    call = partial(train, experiment, options.folder.absolute(), options.seed)
    task = Task("the notebook's protocol", call, rounds + 2, (rounds + 2) * experiment.iterations)
    prepare = partial(machine.prepare, loaded.train.threads, code)
    (records,) = compute([task], prepare, title="notebook", threads=loaded.train.threads)
    table = pd.DataFrame(
        {
            "seed": record.seed,
            "variant": record.variant,
            "round": record.round,
            "weights_remaining": record.weights_remaining,
            "iterations": int(record.history["iteration"][-1]),
            "test_accuracy": record.history["test_accuracy"][-1],
        }
        for record in records
    )
    tables.write_table(options.folder / "protocol.csv", table)
    print(table.to_markdown(index=False))


if __name__ == "__main__":
    main()
