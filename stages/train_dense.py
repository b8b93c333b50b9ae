"""Trains the dense network, once per seed.

Reads   data/dataset/; params.yaml: seeds, model, train, prune.rewind_iteration
Writes  data/dense/: per seed the weights at initialisation, at the rewind iteration and after training
        (seed-N/{initial,rewind,trained}.safetensors); history.csv, environment.json
"""

from functools import partial
from pathlib import Path

from lottery import parts
from lottery.artifacts import files, tables
from lottery.datasets.dataset import open_dataset
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.params import Params, check_fit
from lottery.running import executors, store
from lottery.running.run import Initialise, Result, Run, prepare
from stages import command


def main(params: Params) -> None:
    parts.warn([params.model.name], "train_dense")
    dataset = open_dataset()
    check_fit(
        params,
        images=dataset.training,
        classes=dataset.classes,
        side=min(dataset.image_shape[:2]),
    )
    for seed in params.seeds:
        dataset.split(params.data, seed)  # a class that is too small is named now
    iterations = params.train.length(dataset.training - params.data.validation_size)
    entries: list[tables.Entry] = []
    results: list[Result] = []

    def dense(seed: int, folder: Path) -> executors.Chain:
        weights, kinds = yield Initialise(
            f"seed {seed}: initial weights",
            params.model,
            dataset.image_shape,
            dataset.classes,
            "initialisation",
            (seed,),
        )
        rewind = params.prune.rewind_iteration
        run = Run(
            seed=seed,
            variant="dense",
            round=0,
            model=params.model,
            train=params.train,
            dataset=str(files.DATASET),
            split=dataset.split(params.data, seed),
            weights=weights,
            mask=Mask.full({name: weights[name].shape for name in kinds}),
            order=("data order of pruning", seed),
            iterations=iterations,
            keep=(rewind,),
        )
        result = yield run
        last = int(result.history["iteration"][-1])
        if rewind not in result.kept:
            raise LotteryError(
                f"params.yaml: prune.rewind_iteration: got {rewind}; accepted: iterations that the dense network reaches: "
                f"with seed {seed}, train.early_stopping ends it at {last}"
            )
        for name, content, iteration in (
            ("initial", weights, 0),
            ("rewind", result.kept[rewind], rewind),
            ("trained", result.weights, last),
        ):
            facts = {"seed": seed, "iteration": iteration, "kinds": kinds}
            files.write_tensors(
                files.seed_folder(folder, seed) / f"{name}.safetensors", content, facts
            )
        entries.append(tables.Entry(seed, "dense", 0, 1.0, result.history))
        results.append(result)

    with files.folder_written_whole(files.DENSE, checksums=True) as folder:
        executors.execute(
            [dense(seed, folder) for seed in params.seeds],
            executors.chosen(partial(prepare, params.train.threads), params.train.threads),
            title="train_dense",
            runs=len(params.seeds),
            iterations=len(params.seeds) * iterations,
        )
        tables.write(folder / "history.csv", entries)
        tables.write_environment(folder / "environment.json", [r.environment for r in results])
    store.save_used("train_dense", [r.fingerprint for r in results])
    tables.conclude("train_dense", entries, [r.environment for r in results])


if __name__ == "__main__":
    command.main(main)
