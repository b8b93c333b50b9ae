"""Trains the tickets and their controls, in a data order other than the one that found them.

Reads   data/dataset/, data/dense/, data/masks/, data/pruned/; params.yaml: seeds, model, train, prune,
        retrain
Writes  data/retrained/: history.csv, environment.json
"""

from functools import partial

import numpy as np

from lottery import artifacts, execution, histories, own, stage, store
from lottery.params import Params
from lottery.runs import Result, Run, prepare
from lottery.variants import VARIANTS, Ticket


def main(params: Params) -> None:
    own.warn([params.model.name, *params.retrain.variants], "retrain")
    dataset = artifacts.open_dataset()
    iterations = params.train.length(len(dataset.train.labels))
    prune, dense_train = params.prune, params.train
    train = dense_train.last_learning_rate() if prune.strategy == "finetune" else dense_train
    entries: list[histories.Entry] = []
    results: list[Result] = []

    def retraining(seed: int, variant: str, round_: int) -> execution.Chain:
        mask, _ = artifacts.read_mask(artifacts.round_file(artifacts.MASKS, seed, round_))
        rewound, _ = artifacts.read_tensors(artifacts.seed_folder(artifacts.DENSE, seed) / "rewind.safetensors")
        ticket = Ticket(
            seed,
            round_,
            mask,
            rewound,
            rewound if prune.strategy == "rewind" else _trained(params, seed, round_),
            prune.rewind_iteration,
            train,
            dense_train,
            params.model,
            dataset.image_shape,
            dataset.facts["classes"],
        )
        start = yield from own.find(VARIANTS, variant)(ticket)
        result = yield Run(
            seed=seed,
            variant=variant,
            round=round_,
            model=params.model,
            train=start.train,
            dataset=str(artifacts.DATASET),
            weights=start.weights,
            mask=start.mask,
            order=("data order of retraining", seed),
            start=start.iteration,
            iterations=iterations,
            keep_trained=False,
        )
        entries.append(histories.Entry(seed, variant, round_, start.mask.weights_remaining, result.history))
        results.append(result)

    wanted = [(s, v, r) for r in params.retrain_rounds() for v in params.retrain.variants for s in params.seeds]
    with artifacts.folder_written_whole(artifacts.RETRAINED, checksums=True) as folder:
        execution.execute(
            [retraining(*one) for one in wanted],
            prepare=partial(prepare, params.train.threads),
            title="retrain",
            workers=execution.worker_count(params.train.threads),
            runs=len(wanted),
            iterations=len(wanted) * iterations,
        )
        histories.write(folder / "history.csv", entries)
        histories.write_environment(folder / "environment.json", [r.environment for r in results])
    store.save_used("retrain", [r.fingerprint for r in results])


def _trained(params: Params, seed: int, round_: int) -> dict[str, np.ndarray]:
    """The weights that a round pruned: trained in the round before it; densely where there is none, or in one shot."""
    if round_ > 1 and params.prune.schedule == "iterative":
        return artifacts.read_masked_weights(artifacts.round_file(artifacts.PRUNED, seed, round_ - 1))[0]
    return artifacts.read_tensors(artifacts.seed_folder(artifacts.DENSE, seed) / "trained.safetensors")[0]


if __name__ == "__main__":
    stage.main(main)
