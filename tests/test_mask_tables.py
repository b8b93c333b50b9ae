"""Masks checked against what pruning promises, and as tables."""

import numpy as np
import pandas as pd
import pytest

from lottery.errors import LotteryError
from lottery.masks import Mask, overlap, random_mask, surviving_count
from lottery.streams import stream
from lottery.tickets import mask_tables

RATES = {"conv1/kernel": 0.1, "dense1/kernel": 0.2, "output/kernel": 0.05}
SHAPES = {"conv1/kernel": (3, 3, 1, 8), "dense1/kernel": (20, 15), "output/kernel": (15, 10)}


def pruned(round_, seed=0):
    """The mask of a round: nested in those of the rounds before, with the counts that the rates say."""
    layers = {}
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        order = stream("random mask", seed, size).permutation(size).reshape(shape)
        layers[name] = order < surviving_count(size, RATES[name], round_)
    return Mask(layers)


def check(mask, before, round_):
    expected = {name: surviving_count(mask.sizes[name], RATES[name], round_) for name in RATES}
    mask_tables.check(mask, before, expected, f"round-{round_:02d}")


def moved(mask, layer, gone=(), back=()):
    """The mask with some of a layer's weights gone and others back."""
    keep = mask.layers[layer].copy()
    keep.flat[list(gone)], keep.flat[list(back)] = False, True
    return Mask({**mask.layers, layer: keep})


def test_nested_masks_that_keep_what_the_rates_say_pass():
    before = None
    for round_ in range(1, 13):
        mask = pruned(round_)
        check(mask, before, round_)
        by_hand = [round(72 * 0.9**round_), round(300 * 0.8**round_), round(150 * 0.95**round_)]
        assert list(mask.counts.values()) == by_hand
        before = mask


@pytest.mark.parametrize("layer", RATES)
def test_one_weight_too_many_or_too_few_is_an_error_that_names_file_layer_and_counts(layer):
    mask = pruned(2)
    expected = {"conv1/kernel": 58, "dense1/kernel": 192, "output/kernel": 135}[layer]
    kept, gone = (np.flatnonzero(mask.layers[layer] == side) for side in (True, False))
    for change, wrong in [(-1, {"gone": kept[:1]}), (1, {"back": gone[:1]})]:
        keeps = f"{layer} keeps {expected + change} weights, expected {expected}"
        with pytest.raises(LotteryError, match=f"^round-02: {keeps}"):
            check(moved(mask, layer, **wrong), None, 2)


def test_a_weight_that_comes_back_is_an_error_that_names_the_file():
    before, mask = pruned(2), pruned(3)
    layer = "dense1/kernel"
    gone, back = np.flatnonzero(mask.layers[layer]), np.flatnonzero(~before.layers[layer])
    swapped = moved(mask, layer, gone[:1], back[:1])
    control = random_mask(mask, stream("random mask", 0, 5))
    for wrong in (swapped, control):
        check(wrong, None, 3)
        with pytest.raises(LotteryError, match=r"^round-03: keeps weights that the round before"):
            check(wrong, before, 3)


def test_where_one_threshold_serves_all_layers_the_weights_of_the_network_are_counted():
    mask = pruned(2)
    mask_tables.check(mask, pruned(1), 385, "round-02")
    with pytest.raises(LotteryError, match=r"^round-02: all keeps 385 weights, expected 384"):
        mask_tables.check(mask, None, 384, "round-02")
    with pytest.raises(LotteryError, match=r"^round-02: keeps weights that the round before"):
        mask_tables.check(mask, pruned(3), 385, "round-02")


def test_a_mask_of_another_pattern_is_an_error_that_names_the_file():
    mask = pruned(1)
    with pytest.raises(LotteryError, match=r"^round-01: its mask is not of prune.pattern unit"):
        mask_tables.check(mask, None, mask.counts, "round-01", "unit")


def test_density_has_a_row_a_layer_and_one_for_the_whole_network(tmp_path):
    masks = {(seed, round_): pruned(round_, seed) for seed in (0, 1) for round_ in (1, 2)}
    effective = {key: {n: count - 1 for n, count in m.counts.items()} for key, m in masks.items()}
    mask_tables.write_density(tmp_path / "density.csv", masks, effective)
    lines = (tmp_path / "density.csv").read_text().splitlines()
    assert lines[0] == "seed,round,layer,weights,surviving,weights_remaining,effective"
    assert len(lines) == 1 + 4 * (3 + 1)
    assert lines[5:9] == [
        "0,2,conv1/kernel,72,58,0.8055556,57",
        "0,2,dense1/kernel,300,192,0.64,191",
        "0,2,output/kernel,150,135,0.9,134",
        "0,2,all,522,385,0.7375479,382",
    ]


def test_overlap_has_a_row_for_each_round_pair_and_layer(tmp_path):
    path, pairs = tmp_path / "overlap.csv", [(0, 1), (0, 2), (1, 2)]
    masks = {(seed, round_): pruned(round_, seed) for seed in (0, 1, 2) for round_ in (2, 1)}
    mask_tables.write_overlap(path, masks)
    rows = pd.read_csv(path).set_index(["round", "seed_a", "seed_b", "layer"])
    expected = [(r, a, b, name) for r in (1, 2) for a, b in pairs for name in SHAPES]
    assert list(rows.index) == expected
    for (round_, a, b, name), row in rows.iterrows():
        expected = overlap(masks[a, round_].layers[name], masks[b, round_].layers[name])
        assert (row["jaccard"], row["jaccard_by_chance"]) == pytest.approx(expected, rel=1e-6)
    one, other = (Mask({"k": np.isin(np.arange(8), k)}) for k in ([0, 1], [0, 2, 3, 4]))
    mask_tables.write_overlap(path, {(4, 1): one, (7, 1): other})
    # 2 and 4 of 8 weights, 1 in both: 1 / 5; by chance 2 · 4 / 8 = 1 in both too
    header = "round,seed_a,seed_b,layer,jaccard,jaccard_by_chance\n"
    assert path.read_text() == f"{header}1,4,7,k,0.2,0.2\n"
    mask_tables.write_overlap(path, {(0, 1): pruned(1)})  # one seed has no pairs
    assert path.read_text() == header


def test_a_unit_is_dead_when_none_of_its_incoming_weights_survives(tmp_path):
    conv = np.zeros((3, 3, 2, 4), bool)
    conv[0, 1, 1, [0, 3]] = True
    dense = np.ones((5, 6), bool)
    dense[:, 2] = False
    dense[1:, 3] = False  # one weight keeps it alive
    masks = {(7, 1): Mask({"conv1/kernel": conv, "output/kernel": dense})}
    mask_tables.write_units(tmp_path / "units.csv", masks)
    lines = (tmp_path / "units.csv").read_text().splitlines()
    assert lines[1:] == ["7,1,conv1/kernel,4,2", "7,1,output/kernel,6,1"]


def test_the_first_layers_inputs_keep_the_mean_share_over_seeds(tmp_path):
    def mask(*kept):
        keep = np.arange(4) < np.array(kept)[:, np.newaxis]
        return Mask({"dense1/kernel": keep, "output/kernel": np.ones((4, 2), bool)})

    masks = {(0, 1): mask(4, 2, 1), (1, 1): mask(2, 2, 0)}
    masks |= {(0, 2): mask(4, 0, 0), (1, 2): mask(1, 0, 0)}
    mask_tables.write_first_layer(tmp_path / "first_layer.csv", masks)
    found = pd.read_csv(tmp_path / "first_layer.csv").to_numpy().tolist()
    assert found == [[1, 0, 0.75], [1, 1, 0.5], [1, 2, 0.125], [2, 0, 0.625], [2, 1, 0], [2, 2, 0]]
