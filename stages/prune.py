"""Pruning, per seed: each round prunes and, where the next one needs it, rewinds and trains.

Reads   data/dataset/, data/dense/; params.yaml: seeds, model, train, prune
Writes  data/pruned/: per seed and round the mask and the trained weights that survive
        (seed-N/round-NN.safetensors); history.csv, environment.json

One shot, and pruning at initialisation, train nothing here: the weights that survive are those that were scored.
"""

from functools import partial
from pathlib import Path

from lottery import parts
from lottery.artifacts import files, tables
from lottery.datasets.dataset import open_dataset
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.params import Params
from lottery.running import executors, store
from lottery.running.run import Result, Run, prepare
from lottery.tickets import criteria
from lottery.tickets.pruning import Prune
from stages import command


def main(params: Params) -> None:
    parts.warn([params.model.name, params.prune.criterion], "prune")
    dataset = open_dataset()
    iterations = params.train.length(dataset.training - params.data.validation_size)
    start = params.prune.rewind_iteration
    prune = params.prune
    rounds = range(1, prune.rounds + 1)
    entries: list[tables.Entry] = []
    results: list[Result] = []

    def pruning(seed: int, folder: Path) -> executors.Chain:
        dense = files.seed_folder(files.DENSE, seed)
        weights, facts = files.read_tensors(dense / "trained.safetensors")
        rewound, _ = files.read_tensors(dense / "rewind.safetensors")
        kinds = facts["kinds"]
        mask = Mask.full({name: weights[name].shape for name in kinds})
        if prune.at_initialisation:
            weights = rewound
        batch, split = None, dataset.split(params.data, seed)
        if prune.criterion in ("snip", "grasp"):
            batch = criteria.batch(dataset.part(split.train), dataset.classes, seed)
        for round_ in rounds:
            mask = yield Prune(
                f"seed {seed}, round {round_}: mask",
                params.model,
                dataset.image_shape,
                dataset.classes,
                prune.criterion,
                weights,
                rewound,
                mask,
                prune.surviving(mask.sizes, kinds, round_),
                seed,
                batch,
                prune.left_whole(kinds),
                prune.scoring_rounds,
            )
            survivors = mask.apply(weights)
            if prune.trains:
                result = yield Run(
                    seed=seed,
                    variant="pruning",
                    round=round_,
                    model=params.model,
                    train=params.tickets_train(),
                    dataset=str(files.DATASET),
                    split=split,
                    weights=mask.apply(rewound) if prune.strategy == "rewind" else survivors,
                    mask=mask,
                    order=("data order of pruning", seed),
                    start=start,
                    iterations=iterations,
                )
                survivors = result.weights
                entries.append(
                    tables.Entry(seed, "pruning", round_, mask.weights_remaining, result.history)
                )
                results.append(result)
            if prune.schedule == "iterative":
                weights = survivors
            facts = {"seed": seed, "round": round_, "kinds": kinds}
            files.write_masked_weights(
                files.round_file(folder, seed, round_), survivors, mask, facts
            )

    _check_something_survives(params)
    runs = len(params.seeds) * len(rounds) if prune.trains else 0
    with files.folder_written_whole(files.PRUNED, checksums=True) as folder:
        executors.execute(
            [pruning(seed, folder) for seed in params.seeds],
            executors.chosen(partial(prepare, params.train.threads), params.train.threads),
            title="prune",
            runs=runs,
            iterations=runs * iterations,
        )
        tables.write(folder / "history.csv", entries)
        tables.write_environment(folder / "environment.json", [r.environment for r in results])
    store.save_used("prune", [r.fingerprint for r in results])
    tables.conclude("prune", entries, [r.environment for r in results])


def _check_something_survives(params: Params) -> None:
    first = files.seed_folder(files.DENSE, params.seeds[0]) / "trained.safetensors"
    weights, facts = files.read_tensors(first)
    kinds = facts["kinds"]
    sizes = {name: weights[name].size for name in kinds}
    last = params.prune.surviving(sizes, kinds, params.prune.rounds)
    for name, kind in kinds.items():
        if isinstance(last, dict) and last[name] < 1:
            rate = params.prune.rates.model_dump()[kind]
            raise LotteryError(
                f"params.yaml: prune.rates.{kind}: got {rate}; accepted: a lower rate, or fewer than "
                f"the {params.prune.rounds} rounds of prune.rounds: after these none of the "
                f"{sizes[name]:,} weights of {name} survives"
            )
    whole = sum(sizes[name] for name in params.prune.left_whole(kinds))
    if isinstance(last, int) and last <= whole < sum(sizes.values()):
        raise LotteryError(
            f"params.yaml: prune.rates.dense: got {params.prune.rates.dense}; accepted: a lower rate, or "
            f"fewer than the {params.prune.rounds} rounds of prune.rounds: after these no weight survives"
        )


if __name__ == "__main__":
    command.main(main)
