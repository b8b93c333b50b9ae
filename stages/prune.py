"""Pruning, per seed: each round prunes and, where the next one needs it, rewinds and trains.

Reads   data/dataset/, data/dense/; params.yaml: seeds, model, train, prune
Writes  data/pruned/: per seed and round the mask and the trained weights that survive
        (seed-N/round-NN.safetensors); history.csv, environment.json

One shot, and pruning at initialisation, train nothing here: the weights that survive are those that
were scored.
"""

from functools import partial

from lottery.artifacts import files
from lottery.running.executors import Task
from lottery.tickets import search
from stages import command, training


def main(stage: command.Stage) -> None:
    """The stage."""
    experiment, prune = training.experiment(stage), stage.params.prune
    search.check_that_something_survives(prune, search.read_dense(stage.params.seeds[0]))
    runs = prune.rounds if prune.trains else 0
    with files.folder_written_whole(files.PRUNED, checksums=True) as folder:
        tasks = [
            Task(
                f"seed {seed}, pruning",
                partial(search.find_tickets, experiment, folder, seed),
                runs,
                runs * experiment.iterations,
            )
            for seed in stage.params.seeds
        ]
        records = [record for found in training.compute(stage, tasks) for record in found]
        training.write(folder, records)
    training.conclude(stage, records)


if __name__ == "__main__":
    command.main("prune")
