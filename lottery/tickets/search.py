"""Finding tickets: the dense network of a seed, pruned round by round.

Each function runs whole in one worker.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from lottery import parts
from lottery.artifacts import files, tables
from lottery.artifacts.tables import Record
from lottery.datasets.split import Part
from lottery.errors import LotteryError
from lottery.masks import Mask, Weights
from lottery.params import Network, Prune
from lottery.running.progress import Report
from lottery.running.run import Experiment
from lottery.tickets import criteria, given
from lottery.tickets.pruning import pruned
from lottery.tickets.ticket import Dense, Start, read_dense

DATA_ORDER = "data order of pruning"  # of the dense network and of each round


class Round(NamedTuple):
    """What a pruning round ends with: its mask, and the weights that survive, perhaps trained."""

    number: int
    mask: Mask
    weights: Weights


def search(
    dense: Dense,
    prune: Prune,
    pruned: Callable[[Mask, Weights, int], Mask],
    train: Callable[[Weights, Mask, int], Weights],
    known: Mapping[int, Mask] = MappingProxyType({}),
) -> Iterator[Round]:
    """Iterative pruning of one seed (Frankle & Carbin 2019, section 2), as ``prune`` has it.

    Args:
        pruned: from the mask before, the weights that are scored and the round's number to the
            round's mask.
        train: from weights, their mask and the round's number to the trained weights.
        known: masks of rounds that are taken over. The search goes on after the last of them.
    """
    mask = dense.full_mask
    scored = dense.rewound if prune.at_initialisation else dense.trained
    trained = rounds_to_train(prune, known)
    for number in sorted({*known, *range(max(known, default=0) + 1, prune.rounds + 1)}):
        mask = known[number] if number in known else pruned(mask, scored, number)
        survivors = mask.apply(dense.rewound if number in known else scored)
        if number in trained:
            start = mask.apply(dense.rewound) if prune.strategy == "rewind" else survivors
            survivors = train(start, mask, number)
        yield Round(number, mask, survivors)
        if prune.schedule == "iterative":
            scored = survivors


def rounds_to_train(prune: Prune, known: Iterable[int]) -> range:
    """The rounds that train what they have pruned; of those ``known``, the last at most, and only
    where another one is pruned from it.
    """
    last = max(known, default=0)
    trains = prune.trains and last < prune.rounds
    return range(max(last, 1), prune.rounds + 1) if trains else range(0)


def by_criterion(
    prune: Prune, dense: Dense, network: Network, seed: int, batch: Part | None
) -> Callable[[Mask, Weights, int], Mask]:
    """What makes the mask of a round, for ``search``."""

    def mask_of_round(mask: Mask, weights: Weights, number: int) -> Mask:
        """What is left of the mask before."""
        return pruned(
            mask,
            weights,
            prune.surviving(mask.shapes, dense.kinds, number),
            criterion=prune.criterion,
            initial=dense.rewound,
            network=network,
            seed=seed,
            batch=batch,
            whole=prune.left_whole(dense.kinds),
            scoring_rounds=prune.scoring_rounds,
            pattern=prune.pattern,
        )

    return mask_of_round


def find_tickets(experiment: Experiment, folder: Path, seed: int, report: Report) -> list[Record]:
    """Prunes the dense network of a seed, or takes over the masks of ``retrain.masks``; writes a
    file a round. One record a round that trained.
    """
    params, prune, dense = experiment.params, experiment.params.prune, read_dense(seed)
    known = given.read(params, seed, dense.full_mask.shapes)
    trained = rounds_to_train(prune, known.masks)
    records = [record for number, record in known.records.items() if number not in trained]
    dataset, network, batch = experiment.dataset, experiment.network, None
    if prune.criterion in criteria.WITH_IMAGES or parts.is_own(prune.criterion):
        training = dataset.part(experiment.split(seed).train)
        batch = criteria.batch(training, dataset.classes, seed)

    def train(weights: Weights, mask: Mask, number: int) -> Weights:
        """The trained weights; keeps the run's record."""
        start = Start(weights, mask, prune.rewind_iteration, params.tickets_train())
        run = start.run(experiment, seed, "pruning", number, DATA_ORDER)
        result = experiment.train(run, report)
        records.append(result.record)
        return result.weights

    from lottery.training.paths import effective

    one_round = by_criterion(prune, dense, network, seed, batch)
    for number, mask, weights in search(dense, prune, one_round, train, known.masks):
        facts = {"seed": seed, "round": number, "kinds": dense.kinds}
        on_path = effective(mask, network)
        facts["effective"] = on_path.counts if on_path else None
        if number in known.masks:
            facts["from"] = "retrain.masks"
        files.write_masked_weights(files.round_file(folder, seed, number), weights, mask, facts)
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
    start = Start(initial, Dense(initial, initial, kinds).full_mask, 0, params.train)
    run = replace(start.run(experiment, seed, "dense", 0, DATA_ORDER), keep=(rewind,))
    record, trained, kept = experiment.train(run, report)
    last = int(record.history["iteration"][-1])
    if rewind not in kept:
        raise LotteryError(
            f"params.yaml: prune.rewind_iteration: got {rewind}; accepted: iterations that the "
            f"dense network reaches: with seed {seed}, train.early_stopping ends it at {last}"
        )
    states = {"initial": (initial, 0), "rewind": (kept[rewind], rewind), "trained": (trained, last)}
    for name, (weights, iteration) in states.items():
        path = files.seed_folder(folder, seed) / f"{name}.safetensors"
        files.write_tensors(path, weights, {"seed": seed, "iteration": iteration, "kinds": kinds})
    return [record]


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


def check_that_something_survives(
    prune: Prune, dense: Dense, known: Mapping[int, Mask] = MappingProxyType({})
) -> None:
    """Raises LotteryError where the rounds leave no weight of a layer, none at all, or all; or the
    next one more than the last mask that is taken over.
    """
    mask, kinds, begun = dense.full_mask, dense.kinds, max(known, default=0)
    if begun >= prune.rounds:
        return
    asked, has = prune.surviving(mask.shapes, kinds, begun + 1), known.get(begun, mask).counts
    if not isinstance(asked, dict):  # of all layers together
        asked, has = {"": asked}, {"": sum(has.values())}
    if any(has[name] < count for name, count in asked.items()):
        raise LotteryError(
            f"params.yaml: prune.rates: got {prune.rates.model_dump()}; accepted: rates by which "
            f"round {begun + 1} keeps no more weights than the mask of round {begun} in "
            "retrain.masks has, from which the search goes on"
        )
    sizes, last = mask.sizes, prune.surviving(mask.shapes, kinds, prune.rounds)
    lost = {}
    if isinstance(last, dict):
        emptied = [name for name, count in last.items() if count < 1]
        lost = {kinds[n]: f"none of the {sizes[n]:,} weights of {n} survives" for n in emptied}
    elif last <= sum(sizes[name] for name in prune.left_whole(kinds)) < sum(sizes.values()):
        lost = {"dense": "no weight survives"}
    if last in (sizes, sum(sizes.values())):
        kinds_here = ", ".join(dict.fromkeys(kinds.values()))
        raise LotteryError(
            f"params.yaml: prune.rates: got {prune.rates.model_dump()}; accepted: rates that, with "
            f"prune.pattern, prune a layer that the network has ({kinds_here}): these prune nothing"
        )
    for kind, what in lost.items():
        raise LotteryError(
            f"params.yaml: prune.rates.{kind}: got {getattr(prune.rates, kind)}; accepted: a lower "
            f"rate, or fewer than the {prune.rounds} rounds of prune.rounds: after these {what}"
        )
