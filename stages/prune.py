"""Iterative magnitude pruning, per seed: each round prunes, rewinds and trains.

Reads   data/dataset/, data/dense/; params.yaml: seeds, model, train, prune
Writes  data/pruned/: per seed and round the mask and the trained weights that survive
        (seed-N/round-NN.safetensors); history.csv, environment.json
"""

from functools import partial
from pathlib import Path

from lottery import artifacts, execution, histories, stage, store
from lottery.errors import LotteryError
from lottery.masks import Mask, surviving_count
from lottery.params import Params
from lottery.pruning import Prune
from lottery.runs import Result, Run, prepare


def main(params: Params) -> None:
    dataset = artifacts.open_dataset()
    iterations = params.train.length(len(dataset.train.labels))
    start = params.prune.rewind_iteration
    rounds = range(1, params.prune.rounds + 1)
    rates = params.prune.rates.model_dump()
    entries: list[histories.Entry] = []
    results: list[Result] = []

    def pruning(seed: int, folder: Path) -> execution.Chain:
        dense = artifacts.seed_folder(artifacts.DENSE, seed)
        weights, facts = artifacts.read_tensors(dense / "trained.safetensors")
        rewound, _ = artifacts.read_tensors(dense / "rewind.safetensors")
        kinds = facts["kinds"]
        mask = Mask.full({name: weights[name].shape for name in kinds})
        for round_ in rounds:
            before = mask
            keep = {name: surviving_count(mask.sizes[name], rates[kinds[name]], round_) for name in kinds}
            mask = yield Prune(
                f"seed {seed}, round {round_}: mask",
                params.model.name,
                dataset.image_shape,
                dataset.facts["classes"],
                weights,
                before,
                keep,
            )
            result = yield Run(
                seed=seed,
                variant="pruning",
                round=round_,
                model=params.model,
                train=params.train,
                dataset=str(artifacts.DATASET),
                weights=mask.apply(rewound),
                mask=mask,
                order=("data order of pruning", seed),
                start=start,
                iterations=iterations,
            )
            weights = result.weights
            facts = {"seed": seed, "round": round_, "kinds": kinds}
            artifacts.write_masked_weights(artifacts.round_file(folder, seed, round_), weights, mask, facts)
            entries.append(histories.Entry(seed, "pruning", round_, mask.weights_remaining, result.history))
            results.append(result)

    _check_something_survives(params)
    with artifacts.folder_written_whole(artifacts.PRUNED, checksums=True) as folder:
        execution.execute(
            [pruning(seed, folder) for seed in params.seeds],
            prepare=partial(prepare, params.train.threads),
            title="prune",
            workers=execution.worker_count(params.train.threads),
            runs=len(params.seeds) * len(rounds),
            iterations=len(params.seeds) * len(rounds) * (iterations - start),
        )
        histories.write(folder / "history.csv", entries)
        histories.write_environment(folder / "environment.json", [r.environment for r in results])
    store.save_used("prune", [r.fingerprint for r in results])


def _check_something_survives(params: Params) -> None:
    first = artifacts.seed_folder(artifacts.DENSE, params.seeds[0]) / "trained.safetensors"
    weights, facts = artifacts.read_tensors(first)
    rates = params.prune.rates.model_dump()
    for name, kind in facts["kinds"].items():
        size = weights[name].size
        if surviving_count(size, rates[kind], params.prune.rounds) < 1:
            most = max(r for r in range(params.prune.rounds) if surviving_count(size, rates[kind], r) >= 1)
            raise LotteryError(
                f"params.yaml: prune.rounds: got {params.prune.rounds}; accepted: at most {most} at "
                f"prune.rates.{kind} {rates[kind]}: afterwards none of the {size:,} weights of {name} survives"
            )


if __name__ == "__main__":
    stage.main(main)
