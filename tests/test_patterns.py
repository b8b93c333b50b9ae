"""Whole units and two of four inputs: masks known by hand, and their random controls."""

import numpy as np
import pytest

from lottery.masks import Mask, random_mask
from lottery.params import Network, Prune, Rates
from lottery.streams import stream
from lottery.tickets import patterns
from lottery.tickets.pruning import pruned

SHAPES = {"conv1/kernel": (3, 3, 3, 8), "conv2/kernel": (3, 3, 8, 6), "output/kernel": (8, 2)}
KINDS = {"conv1/kernel": "conv", "conv2/kernel": "conv", "output/kernel": "output"}
FULL = Mask.full(SHAPES)


def surviving(pattern, round_, **rates):
    rates = Rates(**{"conv": 0.0, "dense": 0.0, "output": 0.0, **rates})
    prune = Prune(rounds=3, rates=rates, pattern=pattern, rewind_iteration=0)
    return prune.surviving(SHAPES, KINDS, round_)


def masks_of_a(kernel, keep, pattern, before=None):
    """By magnitude, of one layer."""
    weights = {"a/kernel": np.array(kernel, np.float32)}
    mask = before or Mask.full({"a/kernel": weights["a/kernel"].shape})
    how = {"criterion": "magnitude", "initial": weights, "network": Network(None, (1, 1, 1), 2)}
    return pruned(mask, weights, {"a/kernel": keep}, pattern=pattern, seed=0, **how)


def test_of_whole_units_their_number_is_rounded_and_each_keeps_all_its_weights():
    # of 8 and 6 filters 8 · 0.7² = 3.92 and 6 · 0.7² = 2.94
    assert list(surviving("unit", 2, conv=0.3).values()) == [27 * 4, 72 * 3, 16]


def test_two_of_four_halves_each_layer_whose_inputs_are_a_multiple_of_4_and_whose_rate_is_not_0():
    assert list(surviving([2, 4], 1, conv=0.5).values()) == [216, 216, 16]
    assert list(surviving([2, 4], 1, output=0.5).values()) == [216, 432, 8]


def test_the_units_of_the_largest_l1_norm_survive_of_equals_the_first_and_none_comes_back():
    kernel = [[1, -3, 2, 0, -2], [1, 0, -1, 5, 1]]  # norms 2, 3, 3, 5, 3
    three = masks_of_a(kernel, 6, "unit")
    assert three.layers["a/kernel"].tolist() == [[False, True, True, True, False]] * 2
    kernel[0][0] = 9.0  # what is pruned is not looked at
    two = masks_of_a(kernel, 4, "unit", three)
    assert two.layers["a/kernel"].tolist() == [[False, True, False, True, False]] * 2


def test_a_filter_is_pruned_with_its_weights_at_all_pixels_and_channels():
    kernel = np.ones((3, 3, 2, 4))
    kernel[..., 1] = kernel[0, 0, 0, 2] = 2
    keep = masks_of_a(kernel, 36, "unit").layers["a/kernel"]
    assert keep.all(axis=(0, 1, 2)).tolist() == [False, True, True, False]
    assert not keep[..., [0, 3]].any()


def test_of_four_consecutive_inputs_of_a_unit_the_two_largest_survive_of_equals_the_first():
    kernel = np.array([[1, -4, 3, 2, 9, 0, 9, 9], [0, 0, 0, 0, -1, 2, -3, 1]]).T
    keep = masks_of_a(kernel, 8, (2, 4)).layers["a/kernel"]
    assert np.flatnonzero(keep[:, 0]).tolist() == [1, 2, 4, 6]
    assert np.flatnonzero(keep[:, 1]).tolist() == [0, 1, 5, 6]
    pixels = np.stack([kernel, -kernel[::-1]])[np.newaxis]  # each pixel of a kernel by itself
    of_pixels = masks_of_a(pixels, 16, (2, 4)).layers["a/kernel"]
    assert np.array_equal(of_pixels[0, 0], keep)
    assert np.flatnonzero(of_pixels[0, 1, :, 0]).tolist() == [0, 1, 5, 6]
    assert masks_of_a(kernel, 16, (2, 4)).layers["a/kernel"].all()  # one that stays whole


@pytest.mark.parametrize(("pattern", "rate"), [("unit", 0.4), ((2, 4), 0.5)])
def test_random_masks_have_the_pattern_and_the_count_of_each_layer_and_are_uniform(pattern, rate):
    scores = {n: stream("scores", i).random(s) for i, (n, s) in enumerate(SHAPES.items())}
    choose = patterns.whole_units if pattern == "unit" else patterns.two_of_four
    mask = choose(scores, FULL, surviving(pattern, 1, conv=rate))
    drawn = [patterns.random_mask(mask, pattern, stream("random mask", n)) for n in range(400)]
    assert all(patterns.holds(one, pattern) and one.counts == mask.counts for one in (mask, *drawn))
    for name, keep in mask.layers.items():
        mean = np.mean([one.layers[name] for one in drawn], axis=0)
        assert mean == pytest.approx(keep.mean(), abs=5 * 0.5 / 20)


def test_random_masks_of_single_weights_are_those_that_they_were():
    mask = Mask({"a": np.arange(60).reshape(4, 15) % 7 < 2})
    one, other = stream("random mask", 1), stream("random mask", 1)
    found = patterns.random_mask(mask, "weight", one)
    assert np.array_equal(found.layers["a"], random_mask(mask, other).layers["a"])
    found, keep = patterns.shuffled(mask, "weight", one), mask.layers["a"]
    assert np.array_equal(found.layers["a"].ravel(), other.permutation(keep.ravel()))


def test_a_mask_is_of_a_pattern_or_not():
    half, single = np.array([[True, False]] * 4), np.eye(4, dtype=bool)
    columns = np.eye(4, dtype=bool)[:, [0, 0, 1, 1]] | single
    cases = [(half, "unit", True), (half, (2, 4), False), (single, "unit", False)]
    cases += [
        (single, "weight", True),
        (single[:3] | True, (2, 4), True),
        (half[:3], (2, 4), False),
    ]
    cases += [(np.repeat(np.eye(2, dtype=bool), 2, axis=0), (2, 4), True), (columns, (2, 4), False)]
    for keep, pattern, expected in cases:
        assert patterns.holds(Mask({"a": keep.copy()}), pattern) is expected
