"""Masks: counted, nested, bit-packed; random controls and the overlap of two masks."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lottery.masks import Mask, erk_counts, overlap, random_mask, surviving_count
from lottery.streams import stream

shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
arrays = shapes.flatmap(lambda shape: npst.arrays(np.bool_, shape))
masks = st.dictionaries(st.text("abcdefg/", min_size=1, max_size=4), arrays, max_size=4).map(Mask)
rates = st.floats(0, 1, exclude_max=True)


@st.composite
def pairs_of_arrays(draw, min_side=1):
    shape = draw(npst.array_shapes(max_dims=3, min_side=min_side, max_side=6))
    return draw(npst.arrays(np.bool_, shape)), draw(npst.arrays(np.bool_, shape))


# Bits


@given(masks)
def test_a_mask_comes_back_from_its_packed_bits_and_is_read_only(mask):
    bits = mask.pack()
    again = Mask.unpack(bits, {name: keep.shape for name, keep in mask.layers.items()})
    assert list(again.layers) == list(mask.layers)
    for name, keep in mask.layers.items():
        assert (bits[name].dtype, bits[name].shape) == (np.uint8, (math.ceil(keep.size / 8),))
        assert (again.layers[name].dtype, again.layers[name].shape) == (np.bool_, keep.shape)
        assert again.layers[name].tolist() == keep.tolist()
        for array in (keep, again.layers[name]):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = True


def test_the_first_weight_is_in_the_highest_bit():
    keep = np.array([[True, False, False], [False, False, False], [True, True, False]])
    assert Mask({"k": keep}).pack()["k"].tolist() == [0b10000011, 0b00000000]


@given(npst.arrays(np.bool_, st.integers(1, 40)), st.data())
def test_bits_set_beyond_the_weights_are_refused(keep, data):
    spare = -keep.size % 8
    assume(spare)
    bits = Mask({"k": keep}).pack()["k"]
    bits[-1] |= 1 << data.draw(st.integers(0, spare - 1))
    with pytest.raises(ValueError, match=f"k has bits set beyond its {keep.size} weights"):
        Mask.unpack({"k": bits}, {"k": keep.shape})


@pytest.mark.parametrize(("shape", "dtype"), [(1, "u1"), (3, "u1"), ((2, 1), "u1"), (2, "i1")])
def test_bits_that_do_not_fit_the_shape_are_refused(shape, dtype):
    why = r"packed mask of k is .*, expected uint8 \(2,\) for the shape \(3, 3\)"
    with pytest.raises(ValueError, match=why):
        Mask.unpack({"k": np.zeros(shape, dtype)}, {"k": (3, 3)})


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, object])
def test_a_mask_of_anything_but_bool_is_refused(dtype):
    with pytest.raises(TypeError, match=rf"conv1/kernel.*{np.dtype(dtype)}.*bool"):
        Mask({"conv1/kernel": np.ones((2, 2), dtype)})


# Counts


@given(masks)
def test_counts_and_sizes_are_those_of_the_layers(mask):
    assert mask.counts == {name: sum(map(bool, keep.ravel())) for name, keep in mask.layers.items()}
    assert mask.sizes == {name: math.prod(keep.shape) for name, keep in mask.layers.items()}
    full = Mask.full({name: keep.shape for name, keep in mask.layers.items()})
    assert full.counts == full.sizes == mask.sizes
    assume(sum(mask.sizes.values()) > 0)
    assert mask.weights_remaining == sum(mask.counts.values()) / sum(mask.sizes.values())


@given(st.integers(0, 5_000_000), rates, st.integers(0, 40))
def test_a_layer_keeps_the_rounded_product_of_its_size_and_the_shares_left(size, rate, round_):
    count = surviving_count(size, rate, round_)
    exact = size * (1 - Fraction(rate)) ** round_
    assert isinstance(count, int)
    assert abs(count - exact) <= Fraction(1, 2) + Fraction(1, 10**6)
    assert count == round(size * (1 - rate) ** round_)
    assert surviving_count(size, rate, 0) == size
    assert 0 <= surviving_count(size, rate, round_ + 1) <= count


def test_erk_gives_small_layers_more_and_a_full_ones_surplus_to_the_others():
    shapes = {"a": (10, 10), "b": (10, 90), "c": (3, 3, 4, 10)}  # sides: 20, 100, 20
    assert erk_counts(shapes, 70) == {"a": 10, "b": 50, "c": 10}
    assert erk_counts(shapes, 960) == {"a": 100, "b": 717, "c": 143}  # 860 by 100 and 20
    assert erk_counts(shapes, 1360) == {"a": 100, "b": 900, "c": 360}
    before = erk_counts(shapes, 1360)
    for total in range(1360, 0, -1):
        counts = erk_counts(shapes, total)
        assert abs(sum(counts.values()) - total) <= 1
        assert all(counts[name] <= before[name] for name in shapes)
        before = counts


@given(pairs_of_arrays(min_side=0))
def test_within_is_inclusion_of_the_surviving_weights_in_every_layer(pair):
    one, other = pair
    inclusion = set(np.flatnonzero(one)) <= set(np.flatnonzero(other))
    assert Mask({"a": one}).within(Mask({"a": other})) == inclusion
    assert Mask({"a": one, "b": one}).within(Mask({"a": one, "b": other})) == inclusion
    assert not Mask({"a": one}).within(Mask({"b": one}))
    assert not Mask({"a": one}).within(Mask({"a": one, "b": one}))


# Applied


@given(arrays, st.data())
def test_applying_a_mask_keeps_survivors_bit_for_bit_and_makes_the_rest_positive_zero(keep, data):
    """Whatever the bits: NaN with payloads, -0.0, infinities, subnormals."""
    bits = data.draw(npst.arrays(np.uint32, keep.shape, elements=st.integers(0, 2**32 - 1)))
    before, bias = bits.copy(), np.array([-1.5, 0.25], np.float32)
    masked = Mask({"k": keep}).apply({"k": bits.view(np.float32), "bias": bias})
    assert (masked["k"].dtype, masked["k"].shape) == (np.float32, keep.shape)
    expected = np.where(keep, before, np.uint32(0))  # +0.0 has no bit set
    assert masked["k"].view(np.uint32).tolist() == expected.tolist()
    assert bits.tolist() == before.tolist()
    assert (list(masked), masked["bias"].tolist()) == (["k", "bias"], [-1.5, 0.25])


# Random controls


@given(masks, st.integers(0, 2**31 - 1))
def test_a_random_control_keeps_the_same_count_in_each_layer(mask, seed):
    control = random_mask(mask, stream("random mask", seed, 1))
    assert control.counts == mask.counts
    assert all(control.layers[name].shape == keep.shape for name, keep in mask.layers.items())


def test_a_random_control_is_a_function_of_its_stream_and_keeps_every_weight_equally_often():
    mask = Mask({"k": np.arange(1000).reshape(50, 20) % 4 == 0})
    keys = [(seed, 3) for seed in (0, 0, 1)]
    one, same, other = (random_mask(mask, stream("random mask", *k)).layers["k"] for k in keys)
    assert one.tolist() == same.tolist()
    assert 0 < np.count_nonzero(one != other) <= 500
    two_of_six, generator = Mask({"k": np.arange(6) < 2}), stream("random mask", 0, 0)
    kept = sum(random_mask(two_of_six, generator).layers["k"].astype(int) for _ in range(3000))
    assert kept.sum() == 6000
    assert np.abs(kept - 1000).max() < 5 * math.sqrt(3000 * 1 / 3 * 2 / 3)  # standard deviations


# Overlap


@given(pairs_of_arrays())
def test_overlap_is_the_jaccard_index_of_the_two_sets(pair):
    one, other = pair
    a, b = set(np.flatnonzero(one)), set(np.flatnonzero(other))
    found, chance = overlap(one, other)
    assert found == (len(a & b) / len(a | b) if a | b else 1.0)
    assert (found, chance) == overlap(other, one)
    assert 0 <= chance <= 1
    assert overlap(one, one)[0] == 1.0


def test_overlap_by_chance_is_the_ratio_of_the_mean_sizes_over_all_random_masks():
    size, a, b = 7, 3, 4
    one = np.arange(size) < a
    both = either = 0
    for chosen in itertools.combinations(range(size), b):
        other = np.isin(np.arange(size), chosen)
        both += np.count_nonzero(one & other)
        either += np.count_nonzero(one | other)
    assert overlap(one, np.arange(size) < b)[1] == pytest.approx(both / either, rel=1e-12)
    assert overlap(np.zeros(5, np.bool_), np.zeros(5, np.bool_)) == (1.0, 1.0)


def test_random_controls_overlap_as_much_as_chance_says():
    mask = Mask({"k": np.arange(20_000) % 5 == 0})
    one, other = (random_mask(mask, stream("random mask", seed, 1)).layers["k"] for seed in (0, 1))
    found, chance = overlap(one, other)
    assert chance == pytest.approx(800 / 7200)
    assert found == pytest.approx(chance, rel=0.1)
