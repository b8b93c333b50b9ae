"""What tickets cost, counted by hand."""

import pandas as pd
import pytest

from lottery.params import Prune, Rates
from lottery.report.flops import flops

PRUNE = Prune(rounds=2, rates=Rates(conv=0.5, dense=0.5, output=0.5), rewind_iteration=0)
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


@pytest.mark.parametrize(("network", "inference"), [(LENET, 2 * 266_200), (CONV4, 2 * 98_306_560)])
def test_costs_of_a_network_and_of_its_tickets_of_half_the_weights_a_round(network, inference):
    rows = [
        (seed, r, layer, weights, weights * 0.5**r)
        for seed in (0, 1)
        for r in (1, 2)
        for layer, (weights, _) in network.items()
    ]
    density = pd.DataFrame(rows, columns=["seed", "round", "layer", "weights", "surviving"])
    positions = {layer: places for layer, (_, places) in network.items()}
    costs = flops(density, positions, PRUNE, images=100).set_index("round")
    assert costs["inference_dense"].tolist() == [inference] * 2
    assert costs["inference"].tolist() == [inference / 2, inference / 4]
    assert costs["training"].tolist() == [150 * inference, 75 * inference]
    assert costs["finding"].tolist() == [300 * inference, 450 * inference]  # dense; and round 1
    assert costs["weights_remaining"].tolist() == [0.5, 0.25]
