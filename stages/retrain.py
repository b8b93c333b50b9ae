"""Trains the tickets and their controls, in a data order other than the one that found them.

Reads   data/dataset/, data/dense/, data/masks/, data/pruned/; params.yaml: seeds,
        data.{split,split_seed,validation_size}, model, train, prune, retrain
Writes  data/retrained/: history.csv, environment.json, stability.csv (empty unless
        retrain.analysis asks for it)
"""

from functools import partial

from lottery.artifacts import files
from lottery.running.executors import Task
from lottery.tickets import stability, variants
from lottery.tickets.ticket import last_iteration
from stages import command, training


def main(stage: command.Stage) -> None:
    """The stage."""
    experiment, params = training.experiment(stage), stage.params
    rounds = params.retrain_rounds()
    tasks = [
        Task(
            f"seed {seed}, {variant}, round {round_}",
            partial(variants.retrain, experiment, seed, variant, round_),
            runs=1,
            iterations=last_iteration(variant, params.prune, round_, experiment.iterations),
        )
        for round_ in rounds
        for variant in params.retrain.variants
        for seed in params.seeds
    ]
    lines = []
    if params.retrain.analysis == "linear_mode_connectivity":
        lines = [
            Task(
                f"seed {seed}, round {round_}: two copies",
                partial(stability.connect, experiment, seed, round_),
                runs=2,
                iterations=2 * experiment.iterations,
            )
            for round_ in (0, *rounds)
            for seed in params.seeds
        ]
    elif params.retrain.analysis == "connectivity_of_pruning":
        along = partial(stability.along_pruning, experiment)
        lines = [
            Task(f"seed {seed}: lines between rounds", partial(along, seed))
            for seed in params.seeds
        ]
    with files.folder_written_whole(files.RETRAINED, checksums=True) as folder:
        results = training.compute(stage, [*tasks, *lines])
        retrained, connected = results[: len(tasks)], results[len(tasks) :]
        training.write(folder, retrained)
        stability.write(folder / "stability.csv", [line for some, _ in connected for line in some])
    training.conclude(stage, [*retrained, *(r for _, records in connected for r in records)])


if __name__ == "__main__":
    command.main("retrain")
