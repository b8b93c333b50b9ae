"""Magnitude pruning by tensorflow-model-optimization, held against its definition."""

import numpy as np
import pytest
from clones import network

from lottery.masks import Mask, surviving_count
from lottery.tickets.pruning import magnitude_mask
from lottery.training import models

NETWORK = network("lenet_300_100", (8, 8, 1))


@pytest.fixture(scope="module")
def kinds():
    return models.kinds(models.build(NETWORK))


def random_weights(seed):
    generator = np.random.default_rng(seed)
    shapes = {n: tuple(v.shape) for n, v in models.variables(models.build(NETWORK)).items()}
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def by_definition(weights, mask, keep):
    """The largest survivors by magnitude; no ties."""
    layers = {}
    for name, before in mask.layers.items():
        magnitude = np.where(before, np.abs(weights[name]), -1).ravel()
        chosen = np.zeros(magnitude.size, bool)
        chosen[np.argsort(-magnitude, kind="stable")[: keep[name]]] = True
        layers[name] = chosen.reshape(before.shape)
    return layers


def test_five_rounds_keep_the_largest_survivors_exactly_and_nested(kinds):
    rates = {"dense": 0.2, "output": 0.1}
    weights = random_weights(0)
    mask = Mask.full({name: weights[name].shape for name in kinds})
    for round_ in range(1, 6):
        weights = mask.apply(random_weights(round_))  # as if trained again under the mask
        keep = {
            name: surviving_count(mask.sizes[name], rates[kind], round_)
            for name, kind in kinds.items()
        }
        after = magnitude_mask(weights, mask, keep, NETWORK)
        assert after.counts == keep
        assert after.within(mask)
        expected = by_definition(weights, mask, keep)
        for name in kinds:
            assert np.array_equal(after.layers[name], expected[name])
        mask = after


def test_equal_magnitudes_and_zero_survivors_are_still_counted_exactly(kinds):
    weights = random_weights(1)
    mask = Mask.full({name: weights[name].shape for name in kinds})
    half = {name: size // 2 for name, size in mask.sizes.items()}
    mask = magnitude_mask(weights, mask, half, NETWORK)
    for name in kinds:  # survivors: a fifth exactly zero, the rest of two magnitudes
        generator = np.random.default_rng(2)
        weights[name] = np.where(
            mask.layers[name], generator.choice([0, 0.5, -0.5, 1.0, -1.0], weights[name].shape), 0
        ).astype(np.float32)
    keep = {name: int(count * 0.9) for name, count in mask.counts.items()}
    after = magnitude_mask(weights, mask, keep, NETWORK)
    assert after.counts == keep
    assert after.within(mask)
    for name in kinds:
        magnitude = np.abs(weights[name])
        pruned = mask.layers[name] & ~after.layers[name]
        assert magnitude[pruned].max() <= magnitude[after.layers[name]].min()


def test_pruning_nothing_keeps_the_mask(kinds):
    weights = random_weights(3)
    mask = Mask.full({name: weights[name].shape for name in kinds})
    mask = magnitude_mask(weights, mask, {n: s // 3 for n, s in mask.sizes.items()}, NETWORK)
    same = magnitude_mask(mask.apply(weights), mask, mask.counts, NETWORK)
    assert all(np.array_equal(same.layers[n], mask.layers[n]) for n in kinds)


def test_asking_for_more_than_survives_or_less_than_nothing_is_refused(kinds):
    weights = random_weights(4)
    mask = Mask.full({name: weights[name].shape for name in kinds})
    for keep in ({n: s + 1 for n, s in mask.sizes.items()}, dict.fromkeys(mask.sizes, -1)):
        with pytest.raises(ValueError, match="asked to keep"):
            magnitude_mask(weights, mask, keep, NETWORK)


def test_a_layer_of_which_nothing_is_to_survive_comes_out_empty(kinds):
    weights = random_weights(4)
    mask = Mask.full({name: weights[name].shape for name in kinds})
    keep = {**mask.sizes, "dense2/kernel": 0}
    assert magnitude_mask(weights, mask, keep, NETWORK).counts == keep


def test_making_a_mask_leaves_the_weights_as_they_were(kinds):
    weights = random_weights(5)
    before = {name: value.tobytes() for name, value in weights.items()}
    mask = Mask.full({name: weights[name].shape for name in kinds})
    magnitude_mask(weights, mask, {n: s // 2 for n, s in mask.sizes.items()}, NETWORK)
    assert {name: value.tobytes() for name, value in weights.items()} == before
