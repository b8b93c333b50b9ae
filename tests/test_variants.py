"""What each variant starts from."""

from dataclasses import replace

import numpy as np
import pytest
from clones import network
from networks import models, same

from lottery.masks import Mask, erk_counts
from lottery.params import EarlyStopping, LearningRateSteps, Prune, Rates, Train
from lottery.tickets import variants
from lottery.tickets.ticket import Ticket, budget
from lottery.training.schedule import learning_rates

TRAIN = Train(
    optimizer="sgd",
    learning_rate=0.1,
    learning_rate_steps=LearningRateSteps(iterations=[50, 75], factor=0.1),
    warmup_iterations=5,
    batch_size=10,
    iterations=100,
    evaluate_every=10,
    early_stopping=EarlyStopping(patience=3),
)
LAST = TRAIN.last_learning_rate()
KEPT = 10


@pytest.fixture(scope="module")
def a_ticket():
    generator = np.random.default_rng(0)
    kernels = ("dense1/kernel", "dense2/kernel", "output/kernel")
    shapes = dict(zip(kernels, ((64, 30), (30, 10), (10, 5)), strict=True))
    biases = {"dense1/bias": 30, "dense2/bias": 10, "output/bias": 5}

    def draw():
        sizes = (shapes | biases).items()
        return {name: generator.normal(size=size).astype(np.float32) for name, size in sizes}

    before = Mask({name: generator.random(shape) < 0.6 for name, shape in shapes.items()})
    halved = {n: k & (generator.random(k.shape) < 0.5) for n, k in before.layers.items()}
    mask = Mask(halved)
    trained = before.apply(draw())  # in the round before, under its mask
    how = (KEPT, LAST, TRAIN, network("lenet_300_100", (8, 8, 1), 5, width=0.1), 100, 280)
    return Ticket(3, 2, mask, draw(), trained, draw(), *how)


def start(variant, ticket):
    """What the variant starts from."""
    return getattr(variants, variant)(ticket)


def fresh(ticket):
    """What random_reinit draws."""
    return models.initialise(ticket.network, "re-initialisation", ticket.seed, ticket.round)[0]


def initial(ticket):
    """The dense network's weights at iteration 0."""
    return models.initialise(ticket.network, "initialisation", ticket.seed)[0]


def keeps(found, weights):
    """Whether weights are these under the mask, bit for bit, and zero outside it."""
    return same(found.weights, found.mask.apply(weights))


@pytest.mark.parametrize(
    ("variant", "begins", "of"),
    [
        ("ticket", (KEPT, LAST), lambda ticket: ticket.weights),
        ("random_reinit", (0, TRAIN), fresh),
    ],
)
def test_the_ticket_keeps_the_weights_it_is_given_and_random_reinit_trains_fresh_ones_from_the_start(
    variant, begins, of, a_ticket
):
    found = start(variant, a_ticket)
    assert found.mask is a_ticket.mask
    assert (found.iteration, found.train) == begins
    assert keeps(found, of(a_ticket))


def test_sign_preserving_reinit_keeps_the_sign_and_a_constant_of_each_layer(a_ticket):
    found, rewound = start("sign_preserving_reinit", a_ticket), a_ticket.rewound
    assert found.mask is a_ticket.mask
    for name, keep in a_ticket.mask.layers.items():
        deviation = np.sqrt(np.mean((rewound[name] - rewound[name].mean()) ** 2))
        expected = np.where(keep, np.sign(rewound[name]) * deviation, 0)
        assert found.weights[name] == pytest.approx(expected)
        assert len(np.unique(np.abs(found.weights[name][keep]))) == 1
    assert np.array_equal(found.weights["dense1/bias"], rewound["dense1/bias"])


def test_random_sign_constant_has_its_constants_with_as_many_signs_of_either_kind(a_ticket):
    kept, found = (start(v, a_ticket) for v in ("sign_preserving_reinit", "random_sign_constant"))
    assert (found.iteration, found.train) == (kept.iteration, kept.train)
    for name, keep in a_ticket.mask.layers.items():
        constants, signed = kept.weights[name], found.weights[name]
        assert np.array_equal(np.abs(signed), np.abs(constants))
        half = pytest.approx(0.5, abs=4 * (0.25 / np.count_nonzero(keep)) ** 0.5)
        for other in (constants, np.ones_like(constants)):
            assert np.mean(np.sign(signed[keep]) == np.sign(other[keep])) == half
    assert np.array_equal(found.weights["dense1/bias"], a_ticket.rewound["dense1/bias"])


def test_signed_reinit_gives_fresh_magnitudes_the_signs_of_the_initial_weights(a_ticket):
    found, drawn = start("signed_reinit", a_ticket), fresh(a_ticket)
    assert (found.iteration, found.train) == (0, TRAIN)
    signs = {name: np.sign(a_ticket.rewound[name]) for name in a_ticket.mask.layers}
    assert keeps(found, drawn | {name: np.abs(drawn[name]) * sign for name, sign in signs.items()})


@pytest.mark.parametrize("variant", ["random_mask", "shuffled_mask"])
def test_a_random_mask_has_the_tickets_count_in_each_layer(variant, a_ticket):
    found = start(variant, a_ticket)
    assert (found.iteration, found.train) == (KEPT, LAST)  # as the ticket
    assert found.mask.counts == a_ticket.mask.counts
    for name, keep in a_ticket.mask.layers.items():
        assert 0 < np.count_nonzero(found.mask.layers[name] & keep) < np.count_nonzero(keep)
    assert keeps(found, a_ticket.unmasked)


def test_a_random_mask_of_whole_units_has_as_many_of_them(a_ticket):
    layers = {n: np.ones_like(keep) for n, keep in a_ticket.mask.layers.items()}
    layers["dense1/kernel"][:, 7:] = False
    of_units, drawn = replace(a_ticket, mask=Mask(layers), pattern="unit"), []
    for variant in ("random_mask", "shuffled_mask"):
        found = start(variant, of_units).mask
        alive = found.layers["dense1/kernel"].all(axis=0)
        assert np.array_equal(found.layers["dense1/kernel"].any(axis=0), alive)
        assert np.count_nonzero(alive) == 7 > np.count_nonzero(alive[:7])
        assert found.layers["output/kernel"].all()
        drawn.append(alive.tolist())
    assert drawn[0] != drawn[1]  # two draws


def test_a_global_random_mask_has_the_tickets_count_in_all_but_not_in_each_layer(a_ticket):
    found = start("random_mask_global", a_ticket)
    assert sum(found.mask.counts.values()) == sum(a_ticket.mask.counts.values())
    assert found.mask.counts != a_ticket.mask.counts
    assert keeps(found, a_ticket.unmasked)
    share = found.mask.weights_remaining
    for name, size in found.mask.sizes.items():
        spread = 4 * (share * (1 - share) * size) ** 0.5
        assert found.mask.counts[name] == pytest.approx(share * size, abs=spread)
    # a layer of a rate of 0 stays whole; one that the ticket happens to keep whole does not
    layers = ("dense2/kernel", "output/kernel")
    whole = a_ticket.mask.layers | {n: np.ones_like(a_ticket.mask.layers[n]) for n in layers}
    whole = replace(a_ticket, mask=Mask(whole))
    found = start("random_mask_global", replace(whole, never_pruned=frozenset(layers)))
    assert found.mask.layers["output/kernel"].all()
    assert found.mask.counts["dense1/kernel"] == a_ticket.mask.counts["dense1/kernel"]
    assert not start("random_mask_global", whole).mask.layers["output/kernel"].all()
    elsewhere = replace(a_ticket, never_pruned=frozenset(a_ticket.mask.layers))  # prunes it still
    for name in ("random_mask_global", "random_mask_erk"):
        assert not start(name, elsewhere).mask.within(a_ticket.mask)


def test_a_random_mask_by_erk_has_the_tickets_count_and_the_rules_densities(a_ticket):
    found, counts = start("random_mask_erk", a_ticket), a_ticket.mask.counts
    assert found.mask.counts == erk_counts(a_ticket.mask.shapes, sum(counts.values()))
    assert found.mask.counts["output/kernel"] == 50 > counts["output/kernel"]  # full
    assert keeps(found, a_ticket.unmasked)
    whole = a_ticket.mask.layers | {"dense1/kernel": np.ones((64, 30), bool)}
    whole = replace(a_ticket, mask=Mask(whole))
    never = frozenset(["dense1/kernel"])
    found = start("random_mask_erk", replace(whole, never_pruned=never)).mask
    assert found.layers["dense1/kernel"].all()
    assert not start("random_mask_erk", whole).mask.layers["dense1/kernel"].all()


@pytest.mark.parametrize("variant", ["set", "rigl"])
def test_dynamic_sparse_training_begins_as_a_random_mask_of_the_initial_weights(variant, a_ticket):
    found = start(variant, replace(a_ticket, iterations=134))
    assert (found.masks, found.iteration, found.train) == (variant, 0, TRAIN)
    assert found.mask.counts == a_ticket.mask.counts
    assert not found.mask.within(a_ticket.mask)
    assert keeps(found, initial(a_ticket))


def test_a_supermask_is_learned_over_all_initial_weights_or_their_signs(a_ticket):
    learned = ("supermask", "supermask_signed_constant")
    weights, constants = (start(variant, a_ticket) for variant in learned)
    assert weights.masks == constants.masks == "edge_popup"
    for name, keep in a_ticket.mask.layers.items():
        drawn, scale = initial(a_ticket)[name], (keep.size / np.count_nonzero(keep)) ** 0.5
        assert np.allclose(weights.weights[name], scale * drawn, rtol=1e-6)
        expected = scale * drawn.std(dtype=np.float64) * np.sign(drawn)
        assert np.allclose(constants.weights[name], expected, rtol=1e-6)


def test_random_masks_are_independent_of_one_another_and_the_same_each_time(a_ticket):
    names = ("random_mask", "random_mask_global", "random_mask_erk", "shuffled_mask", "set")
    longer = replace(a_ticket, iterations=134)
    masks, again = ([start(v, longer).mask for v in names] for _ in range(2))
    assert len({mask.layers["dense1/kernel"].tobytes() for mask in masks}) == 5
    assert all(same(one.layers, other.layers) for one, other in zip(masks, again, strict=True))
    # and others for each seed and each round, as all that is drawn
    tickets = [longer, replace(longer, seed=4), replace(longer, round=3)]
    for variant in (*names, "random_reinit", "random_sign_constant", "small_dense"):
        drawn = {start(variant, one).weights["dense1/kernel"].tobytes() for one in tickets}
        assert len(drawn) == 3, variant


def test_small_dense_trains_a_whole_network_with_at_most_the_tickets_number_of_weights(a_ticket):
    found, count = start("small_dense", a_ticket), sum(a_ticket.mask.counts.values())
    assert (found.iteration, found.train) == (0, TRAIN)
    assert found.model.width < a_ticket.network.model.width
    assert found.mask.weights_remaining == 1
    # 64 inputs and 5 classes; 64 a + a b + 5 b for a = round(300 w), b = round(100 w)
    a, b = found.mask.layers["dense1/kernel"].shape[1], found.mask.layers["dense2/kernel"].shape[1]
    assert sum(found.mask.counts.values()) == 64 * a + a * b + 5 * b <= count
    wider = found.model.width + 1 / 4096
    a, b = round(300 * wider), max(1, round(100 * wider))
    assert 64 * a + a * b + 5 * b > count


def test_dense_longer_trains_the_dense_network_for_as_long_as_the_ticket_cost(a_ticket):
    found = start("dense_longer", a_ticket)
    assert found.mask.weights_remaining == 1
    assert (found.iteration, found.iterations) == (KEPT, a_ticket.budget)
    assert same(found.weights, a_ticket.rewound)
    # warm-up and steps are stretched over it, and nothing stops it early
    train = found.train
    assert train.learning_rate_steps.iterations == (140, 210)  # of 280, as 50 and 75 are of 100
    assert (train.warmup_iterations, train.early_stopping) == (14, None)
    rates = learning_rates(train, 0, 280)
    assert rates[[6, 13, 139, 140, 210]] == pytest.approx([0.05, 0.1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize(
    ("criterion", "schedule", "expected"),
    [("magnitude", "iterative", [190, 280, 370]), ("magnitude", "one_shot", [190] * 3),
     ("synflow", "iterative", [100] * 3)],
)  # fmt: skip
def test_a_ticket_takes_the_dense_run_one_for_each_round_before_and_its_own(
    criterion, schedule, expected
):
    how = {"rates": Rates(conv=0.2, dense=0.2, output=0.2), "rewind_iteration": 10}
    prune = Prune(rounds=3, criterion=criterion, schedule=schedule, **how)
    assert [budget(prune, round_, 100) for round_ in (1, 2, 3)] == expected
