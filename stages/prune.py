"""Pruning, per seed: each round prunes, rewinds and trains.

Reads   data/dataset/, data/dense/, the masks of retrain.masks; params.yaml: seeds,
        data.{split,split_seed,validation_size}, model, train, prune, retrain.masks
Writes  data/pruned/: per seed and round the mask and the trained weights that survive
        (seed-N/round-NN.safetensors); history.csv, environment.json

One shot, and pruning at initialisation, train nothing here: the weights that survive are those that
were scored. Nor do rounds whose masks are taken over (retrain.masks): the initial weights survive.
Where these end before prune.rounds, the last is trained and the search goes on from it.
"""

from functools import partial

from lottery.artifacts import files
from lottery.running.executors import Task
from lottery.tickets import given, search
from lottery.tickets.ticket import read_dense
from stages import command, training


def main(stage: command.Stage) -> None:
    """The stage."""
    experiment, params = training.experiment(stage), stage.params
    dense = read_dense(params.seeds[0])
    runs = {}
    for seed in params.seeds:
        masks = given.read(params, seed, dense.full_mask.shapes).masks
        search.check_that_something_survives(params.prune, dense, masks)
        runs[seed] = len(search.rounds_to_train(params.prune, masks))
    with files.folder_written_whole(files.PRUNED, checksums=True) as folder:
        find = partial(search.find_tickets, experiment, folder)
        tasks = [
            Task(f"seed {seed}, pruning", partial(find, seed), n, n * experiment.iterations)
            for seed, n in runs.items()
        ]
        records = [record for of_seed in training.compute(stage, tasks) for record in of_seed]
        training.write(folder, records)
    training.conclude(stage, records)


if __name__ == "__main__":
    command.main("prune")
