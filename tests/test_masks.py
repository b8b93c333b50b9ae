"""Masks: counted, nested, bit-packed; random controls and the overlap of two masks."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lottery.masks import Mask, overlap, random_mask, surviving_count
from lottery.streams import stream

shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
names = st.text("abcdefg/", min_size=1, max_size=4)
masks = st.dictionaries(
    names, shapes.flatmap(lambda shape: npst.arrays(np.bool_, shape)), max_size=4
).map(Mask)
rates = st.floats(0, 1, exclude_max=True)


@st.composite
def masks_with_weights(draw):
    """A mask, and weights of any bit pattern: NaN with payloads, -0.0, infinities, subnormals."""
    mask = draw(masks)
    bits = {
        n: draw(npst.arrays(np.uint32, k.shape, elements=st.integers(0, 2**32 - 1)))
        for n, k in mask.layers.items()
    }
    return mask, {name: value.view(np.float32) for name, value in bits.items()}


@st.composite
def pairs_of_arrays(draw, min_side=1):
    shape = draw(npst.array_shapes(max_dims=3, min_side=min_side, max_side=6))
    return draw(npst.arrays(np.bool_, shape)), draw(npst.arrays(np.bool_, shape))


@given(masks)
def test_a_mask_comes_back_from_its_packed_bits(mask):
    bits = mask.pack()
    shapes = {name: keep.shape for name, keep in mask.layers.items()}
    again = Mask.unpack(bits, shapes)
    assert list(again.layers) == list(mask.layers)
    for name, keep in mask.layers.items():
        assert bits[name].dtype == np.uint8
        assert bits[name].shape == (math.ceil(keep.size / 8),)
        assert again.layers[name].dtype == np.bool_
        assert again.layers[name].shape == keep.shape
        assert again.layers[name].tolist() == keep.tolist()


def test_the_first_weight_is_in_the_highest_bit():
    mask = Mask(
        {
            "dense1/kernel": np.array(
                [[True, False, False], [False, False, False], [True, True, False]]
            )
        }
    )
    assert mask.pack()["dense1/kernel"].tolist() == [0b10000011, 0b00000000]


@given(masks)
def test_counts_and_sizes_are_those_of_the_layers(mask):
    assert mask.counts == {name: sum(map(bool, keep.ravel())) for name, keep in mask.layers.items()}
    assert mask.sizes == {name: math.prod(keep.shape) for name, keep in mask.layers.items()}
    assume(sum(mask.sizes.values()) > 0)
    assert mask.weights_remaining == sum(mask.counts.values()) / sum(mask.sizes.values())


@given(st.dictionaries(names, shapes, max_size=4))
def test_the_full_mask_keeps_every_weight(shapes):
    mask = Mask.full(shapes)
    assert mask.counts == mask.sizes == {name: math.prod(shape) for name, shape in shapes.items()}


def test_weights_remaining_weighs_layers_by_their_size():
    mask = Mask({"a": np.array([True] * 3 + [False] * 7), "b": np.zeros((3, 10), np.bool_)})
    assert mask.weights_remaining == 3 / 40


@given(pairs_of_arrays(min_side=0))
def test_within_is_inclusion_of_the_surviving_weights(pair):
    one, other = pair
    inclusion = set(np.flatnonzero(one)) <= set(np.flatnonzero(other))
    assert Mask({"a": one}).within(Mask({"a": other})) == inclusion
    both = one & other
    assert Mask({"a": both}).within(Mask({"a": one}))
    assert Mask({"a": both}).within(Mask({"a": other}))


def test_one_layer_beyond_is_enough_not_to_be_within():
    inner = {"a": np.array([True, False]), "b": np.array([False, True])}
    outer = {"a": np.array([True, True]), "b": np.array([True, False])}
    assert not Mask(inner).within(Mask(outer))
    assert Mask({"a": inner["a"]}).within(Mask({"a": outer["a"]}))


def test_masks_of_different_layers_are_not_within_one_another():
    assert not Mask({"a": np.ones(2, np.bool_)}).within(Mask({"b": np.ones(2, np.bool_)}))
    assert not Mask({"a": np.zeros(2, np.bool_)}).within(Mask.full({"a": (2,), "b": (2,)}))


@given(masks_with_weights())
def test_applying_a_mask_keeps_survivors_bit_for_bit_and_makes_the_rest_positive_zero(case):
    mask, weights = case
    before = {name: value.view(np.uint32).copy() for name, value in weights.items()}
    masked = mask.apply(weights)
    assert list(masked) == list(weights)
    for name, keep in mask.layers.items():
        assert masked[name].dtype == np.float32
        assert masked[name].shape == keep.shape
        expected = np.where(keep, before[name], np.uint32(0))  # +0.0 has no bit set
        assert masked[name].view(np.uint32).tolist() == expected.tolist()
        assert weights[name].view(np.uint32).tolist() == before[name].tolist()


def test_negative_zero_and_nan_survive_as_they_are():
    weights = np.array(
        [0x80000000, 0x7FC00001, 0xFFA00002, 0x00000001, 0x80000000, 0x7FC00001], np.uint32
    )
    keep = np.array([True, True, True, True, False, False])
    masked = Mask({"k": keep}).apply({"k": weights.view(np.float32)})["k"].view(np.uint32)
    assert masked.tolist() == [0x80000000, 0x7FC00001, 0xFFA00002, 0x00000001, 0, 0]


def test_applying_a_mask_leaves_biases_as_they_are():
    bias = np.array([-1.5, 0.25], np.float32)
    masked = Mask({"kernel": np.zeros(3, np.bool_)}).apply(
        {"kernel": np.ones(3, np.float32), "bias": bias}
    )
    assert masked["kernel"].tolist() == [0, 0, 0]
    assert masked["bias"].tolist() == [-1.5, 0.25]


@given(masks, st.integers(0, 2**31 - 1))
def test_a_random_control_keeps_the_same_count_in_each_layer(mask, seed):
    control = random_mask(mask, stream("random mask", seed, 1))
    assert control.counts == mask.counts
    assert {n: k.shape for n, k in control.layers.items()} == {
        n: k.shape for n, k in mask.layers.items()
    }


def test_a_random_control_is_a_function_of_its_stream():
    mask = Mask({"k": np.arange(1000).reshape(50, 20) % 4 == 0})
    one, same, other = (
        random_mask(mask, stream("random mask", seed, 3)).layers["k"] for seed in (0, 0, 1)
    )
    assert one.tolist() == same.tolist()
    assert 0 < np.count_nonzero(one != other) <= 500


def test_a_random_control_keeps_every_weight_equally_often():
    mask, generator = (
        Mask({"k": np.array([True, True, False, False, False, False])}),
        stream("random mask", 0, 0),
    )
    kept = sum(random_mask(mask, generator).layers["k"].astype(int) for _ in range(3000))
    assert kept.sum() == 6000
    assert np.abs(kept - 1000).max() < 5 * math.sqrt(
        3000 * 1 / 3 * 2 / 3
    )  # five standard deviations, 129


@given(pairs_of_arrays())
def test_overlap_is_the_jaccard_index_of_the_two_sets(pair):
    one, other = pair
    a, b = set(np.flatnonzero(one)), set(np.flatnonzero(other))
    found, chance = overlap(one, other)
    assert found == (len(a & b) / len(a | b) if a | b else 1.0)
    assert (found, chance) == overlap(other, one)
    assert 0 <= chance <= 1
    assert overlap(one, one)[0] == 1.0


def test_overlap_of_a_case_by_hand():
    one = np.array([True, True, False, False, False, False, False, False])
    other = np.array([True, False, True, True, True, False, False, False])
    # 2 and 4 of 8 weights, 1 in both: 1 / 5. By chance 2 · 4 / 8 = 1 in both, so 1 / (2 + 4 - 1).
    assert overlap(one, other) == (0.2, 0.2)
    other = np.array([True, True, True, True, False, False, False, False])
    assert overlap(one, other) == (0.5, 0.2)


def test_overlap_by_chance_is_the_ratio_of_the_mean_sizes_over_all_random_masks():
    size, a, b = 7, 3, 4
    one = np.arange(size) < a
    both = either = 0
    for chosen in itertools.combinations(range(size), b):
        other = np.isin(np.arange(size), chosen)
        both += np.count_nonzero(one & other)
        either += np.count_nonzero(one | other)
    assert overlap(one, np.arange(size) < b)[1] == pytest.approx(both / either, rel=1e-12)


def test_empty_masks_overlap_wholly():
    assert overlap(np.zeros(5, np.bool_), np.zeros(5, np.bool_)) == (1.0, 1.0)


def test_random_controls_overlap_as_much_as_chance_says():
    mask = Mask({"k": np.arange(20_000) % 5 == 0})
    one, other = (random_mask(mask, stream("random mask", seed, 1)).layers["k"] for seed in (0, 1))
    found, chance = overlap(one, other)
    assert chance == pytest.approx(800 / 7200)
    assert found == pytest.approx(chance, rel=0.1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, object])
def test_a_mask_of_anything_but_bool_is_refused(dtype):
    with pytest.raises(TypeError, match=rf"conv1/kernel.*{np.dtype(dtype)}.*bool"):
        Mask({"conv1/kernel": np.ones((2, 2), dtype)})


@given(masks)
def test_the_arrays_of_a_mask_are_read_only(mask):
    for keep in [
        *mask.layers.values(),
        *Mask.unpack(mask.pack(), {n: k.shape for n, k in mask.layers.items()}).layers.values(),
    ]:
        assert not keep.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            keep[...] = True


@given(npst.arrays(np.bool_, st.integers(1, 40)), st.data())
def test_bits_set_beyond_the_weights_are_refused(keep, data):
    spare = -keep.size % 8
    assume(spare)
    bits = Mask({"k": keep}).pack()["k"]
    bits[-1] |= 1 << data.draw(st.integers(0, spare - 1))
    with pytest.raises(ValueError, match=f"k has bits set beyond its {keep.size} weights"):
        Mask.unpack({"k": bits}, {"k": keep.shape})


@pytest.mark.parametrize(
    "bits",
    [
        np.zeros(1, np.uint8),
        np.zeros(3, np.uint8),
        np.zeros((2, 1), np.uint8),
        np.zeros(2, np.int8),
        np.zeros(0, np.uint8),
    ],
)
def test_bits_that_do_not_fit_the_shape_are_refused(bits):
    with pytest.raises(
        ValueError, match=r"packed mask of k is .*, expected uint8 \(2,\) for the shape \(3, 3\)"
    ):
        Mask.unpack({"k": bits}, {"k": (3, 3)})


@given(st.integers(0, 5_000_000), rates, st.integers(0, 40))
def test_a_layer_keeps_the_rounded_product_of_its_size_and_the_shares_left(size, rate, round_):
    count = surviving_count(size, rate, round_)
    exact = size * (1 - Fraction(rate)) ** round_
    assert isinstance(count, int)
    assert abs(count - exact) <= Fraction(1, 2) + Fraction(1, 10**6)
    assert count == round(size * (1 - rate) ** round_)


@given(st.integers(0, 5_000_000), rates, st.integers(0, 40))
def test_a_layer_never_grows_from_one_round_to_the_next(size, rate, round_):
    assert surviving_count(size, rate, 0) == size
    assert 0 <= surviving_count(size, rate, round_ + 1) <= surviving_count(size, rate, round_)


def test_the_counts_of_the_published_networks():
    """Frankle & Carbin 2019: Conv-4 keeps 81.08 % after round 1 and 2.01 % after round 21."""
    kernels = {
        "conv": (1_728, 36_864, 73_728, 147_456),
        "dense": (2_097_152, 65_536),
        "output": (2_560,),
    }
    rates = {"conv": 0.1, "dense": 0.2, "output": 0.1}
    total = sum(sum(sizes) for sizes in kernels.values())
    assert total == 2_425_024

    def remaining(round_):
        return (
            sum(
                surviving_count(n, rates[kind], round_)
                for kind, sizes in kernels.items()
                for n in sizes
            )
            / total
        )

    measured = {round_: round(100 * remaining(round_), 2) for round_ in (1, 11, 12, 15, 21)}
    assert measured == {1: 81.08, 11: 11.06, 12: 9.18, 15: 5.37, 21: 2.01}


@settings(max_examples=50)
@given(st.integers(1, 400), rates, st.integers(0, 2**31 - 1))
def test_masks_of_successive_rounds_are_nested_where_each_prunes_survivors(size, rate, seed):
    order = stream("random mask", seed).permutation(size)
    rounds = [Mask({"k": order < surviving_count(size, rate, round_)}) for round_ in range(6)]
    for earlier, later in itertools.pairwise(rounds):
        assert later.within(earlier)
        assert earlier.within(later) == (earlier.counts == later.counts)
