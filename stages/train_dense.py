"""Trains the dense network, once per seed.

Reads   data/dataset/; params.yaml: seeds, model, train, prune.rewind_iteration
Writes  data/dense/: per seed the weights at initialisation, at the rewind iteration and after training
        (seed-N/{initial,rewind,trained}.safetensors); history.csv, environment.json
"""

from functools import partial
from pathlib import Path

from lottery import artifacts, execution, histories, own, stage, store
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.params import Params, check_fit
from lottery.runs import Initialise, Result, Run, prepare


def main(params: Params) -> None:
    own.warn([params.model.name], "train_dense")
    dataset = artifacts.open_dataset()
    check_fit(
        params,
        images=len(dataset.train.labels) + len(dataset.validation.labels),
        classes=dataset.facts["classes"],
        side=min(dataset.image_shape[:2]),
    )
    iterations = params.train.length(len(dataset.train.labels))
    entries: list[histories.Entry] = []
    results: list[Result] = []

    def dense(seed: int, folder: Path) -> execution.Chain:
        weights, kinds = yield Initialise(
            f"seed {seed}: initial weights",
            params.model,
            dataset.image_shape,
            dataset.facts["classes"],
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
            dataset=str(artifacts.DATASET),
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
            artifacts.write_tensors(artifacts.seed_folder(folder, seed) / f"{name}.safetensors", content, facts)
        entries.append(histories.Entry(seed, "dense", 0, 1.0, result.history))
        results.append(result)

    with artifacts.folder_written_whole(artifacts.DENSE, checksums=True) as folder:
        execution.execute(
            [dense(seed, folder) for seed in params.seeds],
            execution.chosen(partial(prepare, params.train.threads), params.train.threads),
            title="train_dense",
            runs=len(params.seeds),
            iterations=len(params.seeds) * iterations,
        )
        histories.write(folder / "history.csv", entries)
        histories.write_environment(folder / "environment.json", [r.environment for r in results])
    store.save_used("train_dense", [r.fingerprint for r in results])
    histories.conclude("train_dense", entries, [r.environment for r in results])


if __name__ == "__main__":
    stage.main(main)
