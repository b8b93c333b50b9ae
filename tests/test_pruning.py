"""Magnitude pruning by tensorflow-model-optimization, held against its definition."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from clones import network, tiny
from tf_keras import layers

from lottery.errors import LotteryError
from lottery.masks import Mask, surviving_count
from lottery.params import validate
from lottery.tickets.pruning import magnitude_mask
from lottery.tickets.search import by_criterion, check_that_something_survives, search
from lottery.tickets.ticket import Dense

NETWORK = network("lenet_300_100", (8, 8, 1))
KINDS = {"dense1/kernel": "dense", "dense2/kernel": "dense", "output/kernel": "output"}
FULL = Mask.full(dict(zip(KINDS, ((64, 300), (300, 100), (100, 10)), strict=True)))
SHAPES = FULL.shapes | {"dense1/bias": (300,), "dense2/bias": (100,), "output/bias": (10,)}


def random_weights(seed):
    generator = np.random.default_rng(seed)
    return {n: generator.normal(size=shape).astype(np.float32) for n, shape in SHAPES.items()}


def by_definition(weights, mask, keep):
    """The largest survivors by magnitude; no ties."""
    layers = {}
    for name, before in mask.layers.items():
        magnitude = np.where(before, np.abs(weights[name]), -1).ravel()
        chosen = np.zeros(magnitude.size, bool)
        chosen[np.argsort(-magnitude, kind="stable")[: keep[name]]] = True
        layers[name] = chosen.reshape(before.shape)
    return layers


def test_five_rounds_keep_the_largest_survivors_exactly_and_nested():
    rates = {"dense": 0.2, "output": 0.1}
    mask = FULL
    for round_ in range(1, 6):
        weights = mask.apply(random_weights(round_))  # as if trained again under the mask
        sizes = mask.sizes
        keep = {n: surviving_count(sizes[n], rates[kind], round_) for n, kind in KINDS.items()}
        after = magnitude_mask(weights, mask, keep, NETWORK)
        assert after.counts == keep
        assert after.within(mask)
        expected = by_definition(weights, mask, keep)
        assert all(np.array_equal(after.layers[name], expected[name]) for name in KINDS)
        mask = after


def test_a_layer_that_is_shared_by_images_of_two_sizes_is_pruned_as_the_others(monkeypatch):
    def shared(images, classes):
        layer = layers.Conv2D(4, 3, name="shared")
        scales = images, layers.MaxPooling2D(2)(images)
        both = [layers.GlobalAveragePooling2D()(layer(scale)) for scale in scales]
        return layers.Dense(classes, name="output")(layers.Concatenate()(both))

    module = SimpleNamespace(shared=shared)
    monkeypatch.setitem(sys.modules, "two_sizes", module)
    weights = {"shared/kernel": np.arange(36, dtype=np.float32).reshape(3, 3, 1, 4)}
    weights["output/kernel"] = np.arange(80, dtype=np.float32).reshape(8, 10)
    full = Mask.full({name: value.shape for name, value in weights.items()})
    keep = {"shared/kernel": 9, "output/kernel": 20}
    mask = magnitude_mask(weights, full, keep, network("two_sizes:shared", (8, 8, 1)))
    for name, keep_of in keep.items():
        assert np.array_equal(
            np.flatnonzero(mask.layers[name]), np.arange(weights[name].size)[-keep_of:]
        )


def test_equal_magnitudes_and_zero_survivors_are_still_counted_exactly():
    weights = random_weights(1)
    half = {name: size // 2 for name, size in FULL.sizes.items()}
    mask = magnitude_mask(weights, FULL, half, NETWORK)
    for name, keep in mask.layers.items():  # a fifth exactly zero, the rest of two magnitudes
        drawn = np.random.default_rng(2).choice([0, 0.5, -0.5, 1.0, -1.0], keep.shape)
        weights[name] = np.where(keep, drawn, 0).astype(np.float32)
    keep = {name: int(count * 0.9) for name, count in mask.counts.items()}
    after = magnitude_mask(weights, mask, keep, NETWORK)
    assert after.counts == keep
    assert after.within(mask)
    for name in KINDS:
        magnitude = np.abs(weights[name])
        pruned = mask.layers[name] & ~after.layers[name]
        assert magnitude[pruned].max() <= magnitude[after.layers[name]].min()


def test_pruning_nothing_keeps_the_mask_a_layer_may_go_whole_and_weights_stay_as_they_were():
    weights = random_weights(3)
    before = {name: value.tobytes() for name, value in weights.items()}
    mask = magnitude_mask(weights, FULL, {n: s // 3 for n, s in FULL.sizes.items()}, NETWORK)
    same = magnitude_mask(mask.apply(weights), mask, mask.counts, NETWORK)
    assert all(np.array_equal(same.layers[n], mask.layers[n]) for n in KINDS)
    keep = {**FULL.sizes, "dense2/kernel": 0}
    assert magnitude_mask(weights, FULL, keep, NETWORK).counts == keep
    assert {name: value.tobytes() for name, value in weights.items()} == before
    for keep in ({n: s + 1 for n, s in FULL.sizes.items()}, dict.fromkeys(FULL.sizes, -1)):
        with pytest.raises(ValueError, match="asked to keep"):
            magnitude_mask(weights, FULL, keep, NETWORK)


@pytest.mark.parametrize(
    ("how", "scored", "starts"),
    [
        ({}, ["6 trained", "5 of round 1"], ["5 rewound", "5 rewound"]),
        ({"strategy": "finetune"}, ["6 trained", "5 of round 1"], ["5 trained", "5 of round 1"]),
        ({"schedule": "one_shot"}, ["6 trained", "6 trained"], []),
        ({"criterion": "snip"}, ["6 rewound", "5 rewound"], []),
        ({"criterion": "snip", "schedule": "one_shot"}, ["6 rewound", "6 rewound"], []),
    ],
)
def test_a_round_scores_what_the_one_before_left_or_the_dense_network_and_trains_from_its_start(
    how, scored, starts
):
    found, first = {"scored": [], "starts": []}, Mask({"a/kernel": np.arange(6).reshape(2, 3) > 0})
    states = ["rewound", "trained", "of round 1", "of round 2"]

    def weights(state):
        return {"a/kernel": np.full((2, 3), 1.0 + states.index(state), np.float32)}

    def told(kind, of):
        array = of["a/kernel"]
        found[kind].append(f"{np.count_nonzero(array)} {states[int(array.max()) - 1]}")

    def prune_to(mask, of, number):
        told("scored", of)
        return first

    def train(of, mask, number):
        told("starts", of)
        return mask.apply(weights(f"of round {number}"))

    dense = Dense(weights("rewound"), weights("trained"), {"a/kernel": "dense"})
    prune = validate(tiny({f"prune.{key}": value for key, value in how.items()})).prune
    assert [one.number for one in search(dense, prune, prune_to, train)] == [1, 2]
    assert found == {"scored": scored, "starts": starts}


def test_of_masks_that_are_taken_over_the_last_alone_is_trained_and_only_to_prune_from():
    ones = {"a/kernel": np.ones((2, 3), np.float32)}
    dense = Dense(ones, {"a/kernel": 2 * ones["a/kernel"]}, {"a/kernel": "dense"})
    mask, trained = Mask({"a/kernel": np.arange(6).reshape(2, 3) > 0}), []

    def train(of, mask, number):
        trained.append(number)
        return of

    for rounds, expected in ((2, []), (3, [2, 3])):
        prune = validate(tiny({"prune.rounds": rounds})).prune
        found = search(dense, prune, lambda *_: mask, train, {1: mask, 2: mask})
        assert [one.weights["a/kernel"].sum() for one in found] == [5] * rounds  # rewound
        assert trained == expected


def test_a_round_goes_by_the_seed_the_rounds_of_scoring_and_the_layers_that_stay_whole():
    rates = {"conv": 0.5, "dense": 0.5, "output": 0.0}
    dense = Dense(random_weights(0), random_weights(1), KINDS)

    def mask(seed=0, **how):
        changes = {f"prune.{key}": value for key, value in how.items()}
        prune = validate(tiny({"prune.rates": rates, "prune.scope": "global"} | changes)).prune
        found = by_criterion(prune, dense, NETWORK, seed, None)(dense.full_mask, dense.trained, 1)
        assert found.layers["output/kernel"].all()
        return found

    drawn = [mask(seed, criterion="random") for seed in (0, 1)]
    scored = [mask(criterion="synflow", scoring_rounds=rounds) for rounds in (1, 3)]
    for one, other in (drawn, scored):
        assert not one.within(other)


@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_a_search_goes_on_from_masks_that_have_what_the_next_round_keeps(scope):
    weights = {"dense1/kernel": np.ones((4, 5), np.float32)}
    dense = Dense(weights, weights, {"dense1/kernel": "dense"})
    rates = {"conv": 0.2, "dense": 0.2, "output": 0.2}
    prune = validate(tiny({"prune.rounds": 3, "prune.scope": scope, "prune.rates": rates})).prune
    fitting, smaller = (  # round 3 keeps 10 of the 20 weights
        {2: Mask({"dense1/kernel": np.arange(20).reshape(4, 5) < count})} for count in (10, 9)
    )
    check_that_something_survives(prune, dense, fitting)
    with pytest.raises(LotteryError, match="which round 3 keeps no more weights than the mask of"):
        check_that_something_survives(prune, dense, smaller)
    check_that_something_survives(prune.model_copy(update={"rounds": 2}), dense, smaller)


@pytest.mark.parametrize(
    "changes",
    [
        {"prune.scope": "layerwise"},
        {"prune.scope": "global"},
        {"prune.pattern": "unit", "prune.rates.dense": 0.01},  # less than half of a unit
    ],
)
def test_rates_that_prune_nothing_of_the_network_are_refused(changes):
    rates = {"conv": 0.2, "dense": 0.0, "output": 0.0}
    prune = validate(tiny({"prune.rates": rates, **changes})).prune
    weights = {"dense1/kernel": np.ones((4, 3), np.float32), "output/kernel": np.ones((3, 2))}
    dense = Dense(weights, weights, {"dense1/kernel": "dense", "output/kernel": "output"})
    with pytest.raises(LotteryError, match=r"prune\.rates: .*network has \(dense, output\): these"):
        check_that_something_survives(prune, dense)
