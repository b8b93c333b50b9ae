"""Masks checked against what pruning promises, and as tables."""

import csv

import numpy as np
import pytest

from lottery.errors import LotteryError
from lottery.masks import Mask, overlap, random_mask, surviving_count
from lottery.streams import stream
from lottery.tickets import mask_tables

KINDS = {"conv1/kernel": "conv", "dense1/kernel": "dense", "output/kernel": "output"}
RATES = {"conv": 0.1, "dense": 0.2, "output": 0.05}
SHAPES = {"conv1/kernel": (3, 3, 1, 8), "dense1/kernel": (20, 15), "output/kernel": (15, 10)}


def pruned(round_, seed=0):
    """The mask of a round: nested in those of the rounds before, with the counts that the rates say."""
    layers = {}
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        order = stream("random mask", seed, size).permutation(size).reshape(shape)
        layers[name] = order < surviving_count(size, RATES[KINDS[name]], round_)
    return Mask(layers)


def with_layer(mask, name, keep):
    return Mask({**mask.layers, name: keep})


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def check(mask, before, round_, path):
    sizes = mask.sizes
    expected = {
        name: surviving_count(sizes[name], RATES[kind], round_) for name, kind in KINDS.items()
    }
    mask_tables.check(mask, before, expected, path)


def test_masks_of_successive_rounds_are_nested_and_keep_what_the_rates_say(tmp_path):
    before = None
    for round_ in range(1, 13):
        mask = pruned(round_)
        check(mask, before, round_, tmp_path / "mask")
        assert mask.counts == {
            "conv1/kernel": round(72 * 0.9**round_),
            "dense1/kernel": round(300 * 0.8**round_),
            "output/kernel": round(150 * 0.95**round_),
        }
        before = mask


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize(
    ("layer", "expected"), [("conv1/kernel", 58), ("dense1/kernel", 192), ("output/kernel", 135)]
)
def test_one_weight_too_many_or_too_few_is_an_error_that_names_file_layer_and_counts(
    tmp_path, layer, expected, change
):
    mask = pruned(2)
    keep = mask.layers[layer].copy()
    keep.flat[np.flatnonzero(keep == (change < 0))[0]] = change > 0
    with pytest.raises(LotteryError) as error:
        check(with_layer(mask, layer, keep), None, 2, tmp_path / "round-02")
    message = str(error.value)
    assert message.startswith(
        f"{tmp_path / 'round-02'}: {layer} keeps {expected + change} weights, expected {expected}"
    )


def test_the_mask_of_another_round_is_an_error(tmp_path):
    check(pruned(3), pruned(2), 3, tmp_path / "mask")
    for round_ in (2, 4):
        with pytest.raises(LotteryError, match="keeps"):
            check(pruned(3), None, round_, tmp_path / "mask")


def test_a_weight_that_comes_back_is_an_error_that_names_the_file(tmp_path):
    before, mask = pruned(2), pruned(3)
    keep = mask.layers["dense1/kernel"].copy()
    keep.flat[np.flatnonzero(keep)[0]] = False
    keep.flat[np.flatnonzero(~before.layers["dense1/kernel"])[0]] = True
    swapped = with_layer(mask, "dense1/kernel", keep)
    assert swapped.counts == mask.counts
    check(swapped, None, 3, tmp_path / "round-03")
    with pytest.raises(LotteryError) as error:
        check(swapped, before, 3, tmp_path / "round-03")
    assert str(error.value).startswith(
        f"{tmp_path / 'round-03'}: keeps weights that the round before had pruned"
    )


def test_a_random_mask_of_the_right_counts_is_not_nested(tmp_path):
    control = random_mask(pruned(5), stream("random mask", 0, 5))
    with pytest.raises(LotteryError, match="the round before had pruned"):
        check(control, pruned(4), 5, tmp_path / "mask")


def test_density_has_a_row_a_layer_and_one_for_the_whole_network(tmp_path):
    masks = {(seed, round_): pruned(round_, seed) for seed in (0, 1) for round_ in (1, 2)}
    mask_tables.write_density(tmp_path / "density.csv", masks)
    rows = rows_of(tmp_path / "density.csv")
    assert list(rows[0]) == ["seed", "round", "layer", "weights", "surviving", "weights_remaining"]
    assert len(rows) == 4 * (3 + 1)
    assert [tuple(row.values()) for row in rows[4:8]] == [
        ("0", "2", "conv1/kernel", "72", "58", "0.8055556"),
        ("0", "2", "dense1/kernel", "300", "192", "0.64"),
        ("0", "2", "output/kernel", "150", "135", "0.9"),
        ("0", "2", "all", "522", "385", "0.7375479"),
    ]
    for row in rows:
        assert float(row["weights_remaining"]) == pytest.approx(
            int(row["surviving"]) / int(row["weights"]), rel=1e-6
        )


def test_overlap_has_a_row_for_each_round_pair_and_layer(tmp_path):
    masks = {(seed, round_): pruned(round_, seed) for seed in (0, 1, 2) for round_ in (2, 1)}
    pairs = [(0, 1), (0, 2), (1, 2)]
    mask_tables.write_overlap(tmp_path / "overlap.csv", masks)
    rows = rows_of(tmp_path / "overlap.csv")
    assert list(rows[0]) == ["round", "seed_a", "seed_b", "layer", "jaccard", "jaccard_by_chance"]
    keys = [
        (int(row["round"]), int(row["seed_a"]), int(row["seed_b"]), row["layer"]) for row in rows
    ]
    assert keys == [
        (round_, a, b, layer) for round_ in (1, 2) for a, b in pairs for layer in SHAPES
    ]
    for (round_, a, b, layer), row in zip(keys, rows, strict=True):
        expected = overlap(masks[a, round_].layers[layer], masks[b, round_].layers[layer])
        found = float(row["jaccard"]), float(row["jaccard_by_chance"])
        assert found == pytest.approx(expected, rel=1e-6)


def test_the_overlap_of_a_case_by_hand(tmp_path):
    one = Mask({"k": np.array([True, True, False, False, False, False, False, False])})
    other = Mask({"k": np.array([True, False, True, True, True, False, False, False])})
    mask_tables.write_overlap(tmp_path / "overlap.csv", {(4, 1): one, (7, 1): other, (9, 1): one})
    assert (tmp_path / "overlap.csv").read_text().splitlines()[1:] == [
        "1,4,7,k,0.2,0.2",
        "1,4,9,k,1,0.1428571",
        "1,7,9,k,0.2,0.2",
    ]


def test_one_seed_has_no_pairs(tmp_path):
    mask_tables.write_overlap(tmp_path / "overlap.csv", {(0, 1): pruned(1)})
    assert rows_of(tmp_path / "overlap.csv") == []
    assert (
        tmp_path / "overlap.csv"
    ).read_text() == "round,seed_a,seed_b,layer,jaccard,jaccard_by_chance\n"


def test_a_unit_is_dead_when_none_of_its_incoming_weights_survives(tmp_path):
    conv = np.zeros((3, 3, 2, 4), bool)
    conv[0, 1, 1, [0, 3]] = True
    dense = np.ones((5, 6), bool)
    dense[:, 2] = False
    dense[1:, 3] = False  # one weight keeps it alive
    masks = {(7, 1): Mask({"conv1/kernel": conv, "output/kernel": dense})}
    mask_tables.write_units(tmp_path / "units.csv", masks)
    assert [list(row.values()) for row in rows_of(tmp_path / "units.csv")] == [
        ["7", "1", "conv1/kernel", "4", "2"],
        ["7", "1", "output/kernel", "6", "1"],
    ]


def test_the_first_layers_inputs_keep_the_mean_share_over_seeds(tmp_path):
    def mask(*kept):
        keep = np.zeros((3, 4), bool)
        for i, count in enumerate(kept):
            keep[i, :count] = True
        return Mask({"dense1/kernel": keep, "output/kernel": np.ones((4, 2), bool)})

    masks = {
        (0, 1): mask(4, 2, 1),
        (1, 1): mask(2, 2, 0),
        (0, 2): mask(4, 0, 0),
        (1, 2): mask(1, 0, 0),
    }
    mask_tables.write_first_layer(tmp_path / "first_layer.csv", masks)
    found = [tuple(float(v) for v in row.values()) for row in rows_of(tmp_path / "first_layer.csv")]
    assert found == [(1, 0, 0.75), (1, 1, 0.5), (1, 2, 0.125), (2, 0, 0.625), (2, 1, 0), (2, 2, 0)]
