"""Trains the dense network, once per seed.

Reads   data/dataset/; params.yaml: seeds, data.{split,split_seed,validation_size}, model, train,
        prune.rewind_iteration
Writes  data/dense/: per seed the weights at initialisation, at the rewind iteration and after
        training (seed-N/{initial,rewind,trained}.safetensors); history.csv, layers.csv,
        environment.json
"""

from functools import partial

from lottery.artifacts import files
from lottery.running.executors import Task
from lottery.tickets.search import train_dense
from stages import command, training


def main(stage: command.Stage) -> None:
    """The stage."""
    experiment = training.experiment(stage)
    with files.folder_written_whole(files.DENSE, checksums=True) as folder:
        train = partial(train_dense, experiment, folder)
        tasks = [
            Task(f"seed {seed}, dense", partial(train, seed), 1, experiment.iterations)
            for seed in stage.params.seeds
        ]
        records = [record for of_seed in training.compute(stage, tasks) for record in of_seed]
        training.write(folder, records)
    training.conclude(stage, records)


if __name__ == "__main__":
    command.main("train_dense")
