"""A seed's dense network and its tickets as stages wrote them, and where runs begin."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from lottery.artifacts import files
from lottery.masks import Mask, Weights
from lottery.params import Model, Network, Params, Pattern, Prune, Train
from lottery.running.run import Experiment, Run


class Dense(NamedTuple):
    """A seed's dense network."""

    rewound: Weights  # at the rewind iteration
    trained: Weights  # at the end
    kinds: Mapping[str, str]  # of the prunable ones, by name

    @property
    def full_mask(self) -> Mask:
        """The mask that prunes nothing."""
        return Mask.full({name: self.rewound[name].shape for name in self.kinds})


def read_dense(seed: int) -> Dense:
    """A seed's dense network, as ``train_dense`` wrote it."""
    folder = files.seed_folder(files.DENSE, seed)
    rewound, facts = files.read_tensors(folder / "rewind.safetensors")
    trained, _ = files.read_tensors(folder / "trained.safetensors")
    return Dense(rewound, trained, facts["kinds"])


@dataclass(frozen=True)
class Ticket:
    """A ticket of one seed and round, with what its controls are made of."""

    seed: int
    round: int
    mask: Mask
    rewound: Weights  # the dense network's weights at rewind_iteration
    weights: Weights  # what the ticket keeps: the rewound or, by prune.strategy, trained weights
    unmasked: Weights  # what other masks keep: the rewound or the dense network's trained weights
    rewind_iteration: int
    train: Train  # how the ticket is trained
    dense_train: Train  # how the dense network was: what training from the start needs
    network: Network
    iterations: int  # length of a run
    budget: int  # iterations that finding the mask and training the ticket take at most
    pattern: Pattern = "weight"  # of the mask, and of random ones
    never_pruned: frozenset[str] = frozenset()  # layers of a rate of 0


@dataclass(frozen=True)
class Start:
    """Where a run begins, and how it goes on; weights are those under the mask (of edge_popup all
    that it chooses among: only the mask's counts matter)."""

    weights: Weights
    mask: Mask
    iteration: int
    train: Train
    model: Model | None = None  # None: the ticket's
    iterations: int | None = None  # at which training ends; None: the ticket's
    masks: str = "fixed"  # how the mask changes: set, rigl, or edge_popup

    def run(self, experiment: Experiment, seed: int, variant: str, round_: int, order: str) -> Run:
        """The run that begins here; ``order``: purpose of the data order."""
        return Run(
            seed=seed,
            variant=variant,
            round=round_,
            model=self.model or experiment.params.model,
            train=self.train,
            weights=self.weights,
            mask=self.mask,
            order=order,
            start=self.iteration,
            iterations=self.iterations or experiment.iterations,
            masks=self.masks,
        )


def budget(prune: Prune, round_: int, iterations: int) -> int:
    """Iterations that finding the mask of a round and training its ticket take, if nothing stops
    them early.

    The dense network's run begins at 0; where rounds train, those of the rounds before begin at
    ``rewind_iteration``, like the ticket's, with weights that have as many behind them.
    """
    found_by = round_ if prune.schedule == "iterative" else 1  # runs
    if prune.at_initialisation:
        found_by = 0
    return iterations + found_by * (iterations - prune.rewind_iteration)


def last_iteration(variant: str, prune: Prune, round_: int, iterations: int) -> int:
    """The iteration that a variant's run ends at, unless it is stopped early."""
    return budget(prune, round_, iterations) if variant == "dense_longer" else iterations


def rewound_ticket(
    params: Params,
    network: Network,
    iterations: int,
    dense: Dense,
    seed: int,
    round_: int,
    mask: Mask,
) -> Ticket:
    """The ticket of a mask that keeps the rewound weights; of round 0 the dense network."""
    return Ticket(
        seed=seed,
        round=round_,
        mask=mask,
        rewound=dense.rewound,
        weights=dense.rewound,
        unmasked=dense.rewound,
        rewind_iteration=params.prune.rewind_iteration,
        train=params.tickets_train() if round_ else params.train,
        dense_train=params.train,
        network=network,
        iterations=iterations,
        budget=budget(params.prune, round_, iterations),
        pattern=params.prune.pattern,
        never_pruned=frozenset(params.prune.never_pruned(dense.kinds)),
    )


def ticket_of(experiment: Experiment, seed: int, round_: int) -> Ticket:
    """The ticket of a round, as the stages before wrote it."""
    params, dense = experiment.params, read_dense(seed)
    path = files.round_file(files.MASKS, seed, round_)
    mask = files.read_mask(path)[0] if round_ else dense.full_mask
    common = (params, experiment.network, experiment.iterations)
    ticket = rewound_ticket(*common, dense, seed, round_, mask)
    if not round_ or params.prune.strategy == "rewind":
        return ticket
    weights = dense.trained  # it keeps what the round has pruned
    if round_ > 1 and params.prune.schedule == "iterative":
        before = files.round_file(files.PRUNED, seed, round_ - 1)
        weights, _, _ = files.read_masked_weights(before)
    return replace(ticket, weights=weights, unmasked=dense.trained)
