"""What is trained at a pruning round: the ticket, and the controls it is compared with.

A variant is one short function: from the ticket's mask and the dense network's artifacts to the
weights and the mask that training starts from, and how it is trained.
"""

from dataclasses import replace

import numpy as np

from lottery import masks, parts
from lottery.artifacts.tables import Record
from lottery.masks import Mask, Weights
from lottery.running.progress import Report
from lottery.running.run import Experiment
from lottery.streams import stream
from lottery.tickets import patterns
from lottery.tickets.ticket import Start, Ticket, ticket_of


def ticket(t: Ticket) -> Start:
    """The winning-ticket candidate: the mask, and the weights it keeps, by default the rewound."""
    return Start(t.mask.apply(t.weights), t.mask, t.rewind_iteration, t.train)


def random_reinit(t: Ticket) -> Start:
    """The same mask, fresh initial weights, from the start (Frankle & Carbin 2019, section 2)."""
    from lottery.training.models import initialise

    fresh, _ = initialise(t.network, "re-initialisation", t.seed, t.round)
    return Start(t.mask.apply(fresh), t.mask, 0, t.dense_train)


def _constants(signs: Weights, weights: Weights) -> Weights:
    """These signs times the standard deviation of each layer's weights."""
    deviations = {n: weights[n].std(dtype=np.float64).astype(np.float32) for n in signs}
    return weights | {name: sign * deviations[name] for name, sign in signs.items()}


def _signed_constants(t: Ticket, signs: Weights) -> Start:
    """These signs times the standard deviation of each layer's initial (or rewound) weights."""
    weights = _constants(signs, t.rewound)
    return Start(t.mask.apply(weights), t.mask, t.rewind_iteration, t.dense_train)


def sign_preserving_reinit(t: Ticket) -> Start:
    """The same mask; each initial (or rewound) weight replaced by its sign times the standard
    deviation of its layer's.

    Source: Zhou et al. 2019, section 4, "constant, keep sign".
    """
    return _signed_constants(t, {name: np.sign(t.rewound[name]) for name in t.mask.layers})


def random_sign_constant(t: Ticket) -> Start:
    """The same mask and the constants of ``sign_preserving_reinit``, each with a sign drawn at
    random.

    Source: Zhou et al. 2019, section 4, "constant, random sign".
    """
    generator, either = stream("random signs", t.seed, t.round), np.array([-1, 1], np.float32)
    signs = {name: generator.choice(either, shape) for name, shape in t.mask.shapes.items()}
    return _signed_constants(t, signs)


def signed_reinit(t: Ticket) -> Start:
    """``random_reinit`` with its fresh magnitudes, each given the sign of the initial (or rewound)
    weight.

    Source: Zhou et al. 2019, section 4, "reinit, keep sign".
    """
    start = random_reinit(t)
    signed = {name: np.copysign(start.weights[name], t.rewound[name]) for name in t.mask.layers}
    return replace(start, weights=t.mask.apply({**start.weights, **signed}))


def _under(t: Ticket, mask: Mask) -> Start:
    """Weights that no earlier round has zeroed, under another mask than the ticket's."""
    return Start(mask.apply(t.unmasked), mask, t.rewind_iteration, t.train)


def random_mask(t: Ticket) -> Start:
    """The dense network's weights under a random mask with the ticket's count in each layer: of
    whole units, or two of four inputs, where the ticket's mask is.
    """
    drawn = patterns.random_mask(t.mask, t.pattern, stream("random mask", t.seed, t.round))
    return _under(t, drawn)


def random_mask_global(t: Ticket) -> Start:
    """The dense network's weights under a random mask with the ticket's count in the whole network.

    Layers of a pruning rate of 0 stay whole.
    """
    drawn, count = _drawn(t)
    sizes = {name: t.mask.sizes[name] for name in drawn}
    chosen = np.zeros(sum(sizes.values()), np.bool_)
    generator = stream("random mask of all layers", t.seed, t.round)
    chosen[generator.permutation(len(chosen))[:count]] = True
    layers = dict(t.mask.layers)
    for name in drawn:
        layers[name] = chosen[: sizes[name]].reshape(layers[name].shape)
        chosen = chosen[sizes[name] :]
    return _under(t, Mask(layers))


def random_mask_erk(t: Ticket) -> Start:
    """The same with the densities of layers by the Erdős–Rényi-Kernel rule, the standard of sparse
    training from scratch (Evci et al. 2020, section 3).
    """
    drawn, count = _drawn(t)
    counts = masks.erk_counts({name: t.mask.shapes[name] for name in drawn}, count)
    generator = stream("random mask by erk", t.seed, t.round)
    layers = dict(t.mask.layers)
    for name, kept in counts.items():
        layers[name] = masks.random_layer(t.mask.shapes[name], kept, generator)
    return _under(t, Mask(layers))


def _drawn(t: Ticket) -> tuple[list[str], int]:
    """The layers that may be pruned, and how many of their weights the ticket keeps."""
    counts, sizes = t.mask.counts, t.mask.sizes  # masks from elsewhere may prune any
    drawn = [n for n in counts if n not in t.never_pruned or counts[n] < sizes[n]]
    return drawn, sum(counts[name] for name in drawn)


def shuffled_mask(t: Ticket) -> Start:
    """The dense network's weights under the ticket's mask, shuffled within each layer.

    Source: Su et al. 2020 ("layerwise rearranging"), Frankle et al. 2021 ("shuffling"). In
    distribution the same as ``random_mask``: a second, independent draw.
    """
    drawn = patterns.shuffled(t.mask, t.pattern, stream("shuffled mask", t.seed, t.round))
    return _under(t, drawn)


def _from_scratch(t: Ticket, rule: str) -> Start:
    """A random mask that changes while it is trained from the initial weights; counts are kept."""
    mask = masks.random_mask(t.mask, stream(f"first mask of {rule}", t.seed, t.round))
    return Start(mask.apply(_initial(t)), mask, 0, t.dense_train, masks=rule)


def set(t: Ticket) -> Start:  # the method's name, not the built-in's
    """Sparse evolutionary training (Mocanu et al. 2018), with the ticket's count in each layer.

    As Evci et al. 2020 compare with it, from a random mask and for as long as the ticket: the
    share that is replaced falls by a cosine, and the smallest magnitudes go, whatever their sign.
    """
    return _from_scratch(t, "set")


def rigl(t: Ticket) -> Start:
    """RigL (Evci et al. 2020): as ``set``, but weights grow where the gradient is largest."""
    return _from_scratch(t, "rigl")


def supermask(t: Ticket) -> Start:
    """A mask that is learned over the initial weights, none of which is trained: edge-popup, with
    the ticket's count in each layer (Ramanujan et al. 2020, section 3).

    Weights are scaled up by the square root of their layer's size over that count, which keeps the
    variance of a unit's sum. ``scale_fan`` of the authors' code means to, but divides by the square
    root of the share that is left out: the same where a half survives.
    """
    return _supermask(t, _initial(t))


def supermask_signed_constant(t: Ticket) -> Start:
    """``supermask`` of the signs of the initial weights times each layer's standard deviation.

    Source: "signed constant" of Ramanujan et al. 2020; Zhou et al. 2019, section 5.
    """
    initial = _initial(t)
    signs = {name: np.sign(initial[name]) for name in t.mask.layers}
    return _supermask(t, _constants(signs, initial))


def _supermask(t: Ticket, weights: Weights) -> Start:
    counts, sizes = t.mask.counts, t.mask.sizes
    scaled = {n: weights[n] * np.float32((sizes[n] / max(counts[n], 1)) ** 0.5) for n in counts}
    return Start({**weights, **scaled}, t.mask, 0, t.dense_train, masks="edge_popup")


def _initial(t: Ticket) -> Weights:
    """The dense network's weights at iteration 0."""
    from lottery.training.models import initialise

    return initialise(t.network, "initialisation", t.seed)[0]


def small_dense(t: Ticket) -> Start:
    """A dense network, narrowed to at most the ticket's number of weights, trained from the start.

    Source: Ma et al. 2021 ("small dense training").
    """
    from lottery.training.models import initialise, narrowed

    narrow = narrowed(t.network, sum(t.mask.counts.values()))
    purpose = "initialisation of the narrow network"
    weights, kinds = initialise(narrow, purpose, t.seed, t.round)
    mask = Mask.full({name: weights[name].shape for name in kinds})
    return Start(weights, mask, 0, t.dense_train, model=narrow.model)


def dense_longer(t: Ticket) -> Start:
    """The dense network, trained from its initial (or rewound) weights for as many iterations as
    finding and training the ticket take at most, without early stopping.

    Source: the "same computation budget" of Liu et al. 2019, section 3 (Scratch-B), given to the
    dense network: the learning-rate schedule is stretched over it, and nothing stops it early.
    """
    mask = Mask.full(t.mask.shapes)
    train = t.dense_train.stretched(t.budget / t.iterations)
    return Start(t.rewound, mask, t.rewind_iteration, train, iterations=t.budget)


def retrain(experiment: Experiment, seed: int, variant: str, round_: int, report: Report) -> Record:
    """Trains a variant of the ticket of a round, in another data order than found it."""
    origin = ticket_of(experiment, seed, round_)
    start: Start = parts.find(globals(), variant)(origin)
    run = start.run(experiment, seed, variant, round_, "data order of retraining")
    record = experiment.train(replace(run, keep_trained=False), report).record
    # of the dense network's weights, of which a narrow one has fewer
    remaining = sum(start.mask.counts.values()) / sum(origin.mask.sizes.values())
    return record._replace(weights_remaining=remaining)
