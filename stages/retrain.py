"""Trains the tickets and their controls, in a data order other than the one that found them.

Reads   data/dataset/, data/dense/, data/masks/, data/pruned/; params.yaml: seeds, model, train, prune,
        retrain
Writes  data/retrained/: history.csv, stability.csv (empty unless retrain.analysis asks for it), environment.json
"""

from dataclasses import replace
from functools import partial

import numpy as np

from lottery import parts
from lottery.artifacts import files, tables
from lottery.datasets.dataset import open_dataset
from lottery.masks import Mask
from lottery.params import Params
from lottery.running import executors, store
from lottery.running.run import Result, Run, prepare
from lottery.tickets import stability
from lottery.tickets.variants import VARIANTS, Start, Ticket, budget, trainings
from stages import command


def main(params: Params) -> None:
    parts.warn([params.model.name, *params.retrain.variants], "retrain")
    dataset = open_dataset()
    iterations = params.train.length(dataset.training - params.data.validation_size)
    prune = params.prune
    entries: list[tables.Entry] = []
    results: list[Result] = []
    lines: list[stability.Line] = []

    def ticket_of(seed: int, round_: int) -> Ticket:
        """The ticket of a round; of round 0 the dense network."""
        rewound, facts = files.read_tensors(
            files.seed_folder(files.DENSE, seed) / "rewind.safetensors"
        )
        mask = Mask.full({name: rewound[name].shape for name in facts["kinds"]})
        if round_:
            mask, _ = files.read_mask(files.round_file(files.MASKS, seed, round_))
        trained = round_ and prune.strategy != "rewind"
        path = files.seed_folder(files.DENSE, seed) / "trained.safetensors"
        dense = files.read_tensors(path)[0] if trained else rewound
        return Ticket(
            seed,
            round_,
            mask,
            rewound,
            _before(params, seed, round_, dense) if trained else rewound,
            dense,
            prune.rewind_iteration,
            params.tickets_train() if round_ else params.train,
            params.train,
            params.model,
            dataset.image_shape,
            dataset.classes,
            iterations,
            trainings(prune, round_),
        )

    def run(
        seed: int, variant: str, round_: int, start: Start, order: str, *, keep_trained: bool
    ) -> Run:
        return Run(
            seed=seed,
            variant=variant,
            round=round_,
            model=start.model or params.model,
            train=start.train,
            dataset=str(files.DATASET),
            split=dataset.split(params.data, seed),
            weights=start.weights,
            mask=start.mask,
            order=(order, seed),
            start=start.iteration,
            iterations=start.iterations or iterations,
            keep_trained=keep_trained,
        )

    def retraining(seed: int, variant: str, round_: int) -> executors.Chain:
        ticket = ticket_of(seed, round_)
        start = yield from parts.find(VARIANTS, variant)(ticket)
        result = yield run(
            seed, variant, round_, start, "data order of retraining", keep_trained=False
        )
        remaining = sum(start.mask.counts.values()) / sum(
            ticket.mask.sizes.values()
        )  # of the dense network's weights
        entries.append(tables.Entry(seed, variant, round_, remaining, result.history))
        results.append(result)

    def connecting(seed: int, round_: int) -> executors.Chain:
        start = yield from VARIANTS["ticket"](ticket_of(seed, round_))
        start = replace(start, train=start.train.stretched(1))  # so that both end at one iteration
        copies = []
        for copy in ("one", "other"):
            order = f"data order of the {copy} copy"
            result = yield run(seed, f"{copy} copy", round_, start, order, keep_trained=True)
            copies.append(result.weights)
            results.append(result)
        name = f"seed {seed}, round {round_}: the line between the copies"
        points = yield stability.Interpolate(
            name,
            params.model,
            start.train,
            str(files.DATASET),
            copies[0],
            copies[1],
            dataset.split(params.data, seed),
        )
        lines.append(stability.Line(seed, round_, start.mask.weights_remaining, points))

    wanted = [
        (s, v, r)
        for v in params.retrain.variants
        for r in params.retrain_rounds()
        for s in params.seeds
    ]
    connected = []
    if params.retrain.analysis == "linear_mode_connectivity":
        connected = [(s, r) for r in (0, *params.retrain_rounds()) for s in params.seeds]
    runs = len(wanted) + 2 * len(connected)
    ends = [
        budget(trainings(prune, r), prune.rewind_iteration, iterations)
        if v == "dense_longer"
        else iterations
        for _, v, r in wanted
    ]
    with files.folder_written_whole(files.RETRAINED, checksums=True) as folder:
        executors.execute(
            [retraining(*one) for one in wanted] + [connecting(*one) for one in connected],
            executors.chosen(partial(prepare, params.train.threads), params.train.threads),
            title="retrain",
            runs=runs,
            iterations=sum(ends) + 2 * len(connected) * iterations,
        )
        tables.write(folder / "history.csv", entries)
        stability.write(folder / "stability.csv", lines)
        tables.write_environment(folder / "environment.json", [r.environment for r in results])
    store.save_used("retrain", [r.fingerprint for r in results])
    tables.conclude("retrain", entries, [r.environment for r in results])


def _before(
    params: Params, seed: int, round_: int, dense: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The weights that a round pruned: trained in the round before it; densely where there is none, or in one shot."""
    if round_ > 1 and params.prune.schedule == "iterative":
        return files.read_masked_weights(files.round_file(files.PRUNED, seed, round_ - 1))[0]
    return dense


if __name__ == "__main__":
    command.main(main)
