"""What tickets cost, counted by hand."""

import math

import pandas as pd
import pytest
from test_plan import params_of

from lottery.report.flops import flops

LENET = {"dense1": (235_200, 1), "dense2": (30_000, 1), "output": (1_000, 1)}
CONV4 = {
    "conv1": (3 * 3 * 3 * 64, 32 * 32),
    "conv2": (3 * 3 * 64 * 64, 32 * 32),
    "conv3": (3 * 3 * 64 * 128, 16 * 16),
    "conv4": (3 * 3 * 128 * 128, 16 * 16),
    "dense1": (8 * 8 * 128 * 256, 1),
    "dense2": (256 * 256, 1),
    "output": (256 * 10, 1),
}
OF_LENET, OF_CONV4 = 2 * 266_200, 2 * 98_306_560  # of one image: a multiplication and an addition


def costs(network=LENET, **changes):
    """Of two seeds that halve each layer each round. An iteration trains on 50 images.

    The dense network trains for 40 iterations, rounds for 30, tickets for 20.
    """
    rows = [
        (seed, r, layer, weights, weights * 0.5**r)
        for seed in (0, 1)
        for r in (1, 2)
        for layer, (weights, _) in network.items()
    ]
    density = pd.DataFrame(rows, columns=["seed", "round", "layer", "weights", "surviving"])
    layers = pd.DataFrame([(n, p) for n, (_, p) in network.items()], columns=["layer", "positions"])
    runs = [("dense", 0, 0, 40), ("ticket", 1, 0, 20), ("ticket", 2, 0, 20)]
    if changes.get("prune__schedule") != "one_shot":
        runs += [("pruning", 1, 10, 40), ("pruning", 2, 10, 40)][changes.pop("searched", slice(2))]
    told = changes.pop("told", (0, 1))  # seeds whose search has histories
    history = [
        (seed, variant, round_, end)
        for seed in (0, 1)
        for variant, round_, *ends in runs
        for end in ends
        if seed in told or variant != "pruning"
    ]
    table = pd.DataFrame(history, columns=["seed", "variant", "round", "iteration"])
    params = params_of({key.replace("__", "."): value for key, value in changes.items()})
    found = flops(density, layers, table, params)
    assert found["variant"].tolist()[:3] == ["dense", "ticket", "ticket"]
    return found


@pytest.mark.parametrize(("network", "inference"), [(LENET, OF_LENET), (CONV4, OF_CONV4)])
def test_costs_of_a_network_and_of_its_tickets_of_half_the_weights_a_round(network, inference):
    found = costs(network)
    assert found["inference_flops"].tolist() == [inference, inference / 2, inference / 4]
    dense, first, second = 3 * 50 * 40, 3 * 50 * 30 / 2, 3 * 50 * 20 / 4  # times inference
    assert found["finding_flops"].tolist() == [0, dense * inference, (dense + first) * inference]
    assert found["training_flops"][2] == second * inference


def test_one_shot_needs_the_dense_network_alone_and_a_mask_at_initialisation_nothing():
    dense = 3 * 50 * 40 * OF_LENET
    assert costs(prune__schedule="one_shot")["finding_flops"].tolist() == [0, dense, dense]
    found = costs(prune__criterion="snip", prune__schedule="one_shot")
    assert found["finding_flops"].tolist() == [0, 0, 0]


def test_what_it_took_to_find_a_mask_from_elsewhere_is_known_by_the_histories_that_come_with_it():
    masks = {"retrain__masks": "tickets/default"}
    found = costs(**masks, searched=slice(0))["finding_flops"].tolist()
    assert found[0] == 0  # the dense network here has found none of them
    assert math.isnan(found[1])
    assert math.isnan(found[2])
    found = costs(**masks, searched=slice(1))["finding_flops"].tolist()
    assert found[:2] == [0, 3 * 50 * 40 * OF_LENET]
    found = costs(**masks, told=[0])["finding_flops"]  # a mean over one seed is none over two
    assert found.isna().tolist() == [False, True, True]
    found = costs(**masks, searched=slice(1, 2), prune__rounds=3)["finding_flops"]
    assert found.isna().tolist() == [False, False, True, True]  # without round 1, of all after it
