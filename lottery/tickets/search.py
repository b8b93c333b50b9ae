"""Finding tickets: the dense network of a seed, pruned round by round.

Each function runs whole in one worker.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from lottery import parts
from lottery.artifacts import files, tables
from lottery.artifacts.tables import Record
from lottery.errors import LotteryError
from lottery.masks import Mask, Weights
from lottery.params import Network, Prune
from lottery.running.progress import Report
from lottery.running.run import Experiment, Run
from lottery.tickets import criteria, given
from lottery.tickets.pruning import pruned

DATA_ORDER = "data order of pruning"  # of the dense network and of each round


class Dense(NamedTuple):
    """A seed's dense network: its weights at the rewind iteration and at the end, the kinds of its
    prunable ones.
    """

    rewound: Weights
    trained: Weights
    kinds: Mapping[str, str]


class Round(NamedTuple):
    """What a pruning round ends with: its mask, and the weights that survive, trained where rounds
    train.
    """

    number: int
    mask: Mask
    weights: Weights


def search(
    dense: Dense,
    prune: Prune,
    pruned: Callable[[Mask, Weights, int], Mask],
    train: Callable[[Weights, Mask, int], Weights],
    found: Mapping[int, Mask] = MappingProxyType({}),
) -> Iterator[Round]:
    """Iterative pruning of one seed (Frankle & Carbin 2019, section 2), as ``prune`` has it.

    Args:
        pruned: from the mask before, the weights that are scored and the round's number to the
            round's mask.
        train: from weights, their mask and the round's number to the trained weights.
        found: masks of rounds that are taken over. The search goes on after the last of them.
    """
    mask = Mask.full({name: dense.trained[name].shape for name in dense.kinds})
    scored = dense.rewound if prune.at_initialisation else dense.trained
    trained = rounds_to_train(prune, found)
    for number in sorted({*found, *range(max(found, default=0) + 1, prune.rounds + 1)}):
        mask = found[number] if number in found else pruned(mask, scored, number)
        survivors = mask.apply(dense.rewound if number in found else scored)
        if number in trained:
            start = mask.apply(dense.rewound) if prune.strategy == "rewind" else survivors
            survivors = train(start, mask, number)
        yield Round(number, mask, survivors)
        if prune.schedule == "iterative":
            scored = survivors


def rounds_to_train(prune: Prune, found: Iterable[int]) -> range:
    """The rounds that train what they have pruned; of those ``found``, the last at most, and only
    where another one is pruned from it.
    """
    last = max(found, default=0)
    return (
        range(max(last, 1), prune.rounds + 1) if prune.trains and last < prune.rounds else range(0)
    )


def find_tickets(experiment: Experiment, folder: Path, seed: int, report: Report) -> list[Record]:
    """Prunes the dense network of a seed, or takes over the masks of ``retrain.masks``; writes a
    file a round. One record a round that trained.
    """
    params, dense = experiment.params, read_dense(seed)
    found = given.read(params, seed, {name: dense.trained[name].shape for name in dense.kinds})
    trained = rounds_to_train(params.prune, found.masks)
    records = [record for number, record in found.records.items() if number not in trained]
    dataset, batch = experiment.dataset, None
    criterion = params.prune.criterion
    if criterion in criteria.WITH_IMAGES or parts.is_own(criterion):
        training = dataset.part(experiment.split(seed).train)
        batch = criteria.batch(training, dataset.classes, seed)

    def by_criterion(mask: Mask, weights: Weights, number: int) -> Mask:
        """The mask of a round."""
        return pruned(
            mask,
            weights,
            params.prune.surviving(mask.shapes, dense.kinds, number),
            criterion=criterion,
            initial=dense.rewound,
            network=experiment.network,
            seed=seed,
            batch=batch,
            whole=params.prune.left_whole(dense.kinds),
            scoring_rounds=params.prune.scoring_rounds,
            pattern=params.prune.pattern,
        )

    def train(weights: Weights, mask: Mask, number: int) -> Weights:
        """The trained weights; keeps the run's record."""
        run = Run(
            seed=seed,
            variant="pruning",
            round=number,
            model=params.model,
            train=params.tickets_train(),
            weights=weights,
            mask=mask,
            order=DATA_ORDER,
            start=params.prune.rewind_iteration,
            iterations=experiment.iterations,
        )
        result = experiment.train(run, report)
        records.append(result.record)
        return result.weights

    from lottery.training.paths import effective

    for number, mask, weights in search(dense, params.prune, by_criterion, train, found.masks):
        facts = {"seed": seed, "round": number, "kinds": dense.kinds}
        facts["effective"] = effective(mask, experiment.network).counts
        if number in found.masks:
            facts["from"] = "retrain.masks"
        path = files.round_file(folder, seed, number)
        files.write_masked_weights(path, weights, mask, facts)
    return records


def train_dense(experiment: Experiment, folder: Path, seed: int, report: Report) -> list[Record]:
    """Trains the dense network of a seed; one record.

    Writes its weights at initialisation, at the rewind iteration and after training; of the first
    seed, what its layers are, which are the same for all.
    """
    from lottery.training.models import initialise

    params, rewind = experiment.params, experiment.params.prune.rewind_iteration
    if seed == params.seeds[0]:
        write_layers(folder / "layers.csv", experiment.network)
    initial, kinds = initialise(experiment.network, "initialisation", seed)
    run = Run(
        seed=seed,
        variant="dense",
        round=0,
        model=params.model,
        train=params.train,
        weights=initial,
        mask=Mask.full({name: initial[name].shape for name in kinds}),
        order=DATA_ORDER,
        iterations=experiment.iterations,
        keep=(rewind,),
    )
    record, trained, kept = experiment.train(run, report)
    last = int(record.history["iteration"][-1])
    if rewind not in kept:
        raise LotteryError(
            f"params.yaml: prune.rewind_iteration: got {rewind}; accepted: iterations that the "
            f"dense network reaches: with seed {seed}, train.early_stopping ends it at {last}"
        )
    for name, weights, iteration in (
        ("initial", initial, 0),
        ("rewind", kept[rewind], rewind),
        ("trained", trained, last),
    ):
        path = files.seed_folder(folder, seed) / f"{name}.safetensors"
        files.write_tensors(path, weights, {"seed": seed, "iteration": iteration, "kinds": kinds})
    return [record]


def read_dense(seed: int) -> Dense:
    """A seed's dense network, as ``train_dense`` wrote it."""
    folder = files.seed_folder(files.DENSE, seed)
    rewound, facts = files.read_tensors(folder / "rewind.safetensors")
    trained, _ = files.read_tensors(folder / "trained.safetensors")
    return Dense(rewound, trained, facts["kinds"])


def write_layers(path: Path, network: Network) -> None:
    """``layer, positions``: at how many places of its output each prunable layer applies a weight.

    1 for a dense layer, height times width for a convolution, of each place where it is used.
    """
    from lottery.training import models

    model = models.build(network)
    rows = []
    for name in models.kinds(model):
        used = model.get_layer(name.removesuffix("/kernel")).inbound_nodes
        rows.append([name, sum(math.prod(node.output_shapes[1:-1]) for node in used)])
    tables.write_rows(path, ["layer", "positions"], rows)


def check_that_something_survives(prune: Prune, dense: Dense) -> None:
    """Raises LotteryError where the rounds leave no weight of a layer, or none at all."""
    full = Mask.full({name: dense.trained[name].shape for name in dense.kinds})
    sizes, last = full.sizes, prune.surviving(full.shapes, dense.kinds, prune.rounds)
    fewer = f"a lower rate, or fewer than the {prune.rounds} rounds of prune.rounds: after these"
    for name, kind in dense.kinds.items():
        if isinstance(last, dict) and last[name] < 1:
            rate = prune.rates.model_dump()[kind]
            raise LotteryError(
                f"params.yaml: prune.rates.{kind}: got {rate}; accepted: {fewer} none of the "
                f"{sizes[name]:,} weights of {name} survives"
            )
    whole = sum(sizes[name] for name in prune.left_whole(dense.kinds))
    if isinstance(last, int) and last <= whole < sum(sizes.values()):
        raise LotteryError(
            f"params.yaml: prune.rates.dense: got {prune.rates.dense}; accepted: {fewer} "
            "no weight survives"
        )
