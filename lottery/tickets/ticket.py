"""A ticket with what its controls are made of, and the start of a run that comes of it."""

from dataclasses import dataclass

from lottery.artifacts import files
from lottery.masks import Mask, Weights
from lottery.params import Model, Network, Pattern, Prune, Train
from lottery.running.run import Experiment, Run
from lottery.tickets.search import read_dense


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
    budget: int  # iterations that finding the mask and training the ticket take
    pattern: Pattern = "weight"  # of the mask, and of random ones


@dataclass(frozen=True)
class Start:
    """Where a run begins, and how it goes on; weights are those under the mask."""

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
    """Iterations that finding the mask of a round and training its ticket take.

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


def ticket_of(experiment: Experiment, seed: int, round_: int) -> Ticket:
    """The ticket of a round, as the stages before wrote it; of round 0 the dense network."""
    params, dense = experiment.params, read_dense(seed)
    mask = Mask.full({name: dense.rewound[name].shape for name in dense.kinds})
    weights = unmasked = dense.rewound
    if round_:
        mask, _ = files.read_mask(files.round_file(files.MASKS, seed, round_))
    if round_ and params.prune.strategy != "rewind":  # it keeps what the round has pruned
        weights = unmasked = dense.trained
        if round_ > 1 and params.prune.schedule == "iterative":
            before = files.round_file(files.PRUNED, seed, round_ - 1)
            weights, _, _ = files.read_masked_weights(before)
    return Ticket(
        seed=seed,
        round=round_,
        mask=mask,
        rewound=dense.rewound,
        weights=weights,
        unmasked=unmasked,
        rewind_iteration=params.prune.rewind_iteration,
        train=params.tickets_train() if round_ else params.train,
        dense_train=params.train,
        network=experiment.network,
        iterations=experiment.iterations,
        budget=budget(params.prune, round_, experiment.iterations),
        pattern=params.prune.pattern,
    )
