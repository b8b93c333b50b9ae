"""What a ticket costs: floating-point operations of inference, of finding it and of training it."""

from collections.abc import Mapping

import pandas as pd

from lottery.params import Prune


def flops(
    density: pd.DataFrame, positions: Mapping[str, int], prune: Prune, *, images: int
) -> pd.DataFrame:
    """``round, weights_remaining, inference_dense, inference, finding, training, training_dense``.

    A surviving weight costs two operations, a multiplication and an addition, at each position of
    its layer's output; one that is zero none. A training image costs three times its inference, as
    the backward pass costs two (Kaplan et al. 2020, section 2.1). ``finding`` is all training until
    the ticket's mask is known, the dense network's included; scores at initialisation cost nothing.

    Args:
        density: ``data/masks/density.csv``; mean over seeds.
        positions: positions in the output of each layer: 1 for a dense one, height times width.
        images: those that one training sees: iterations times batch size.
    """
    layers = density[density["layer"].isin(list(positions))]
    places = layers["layer"].map(positions)
    counted = layers.assign(
        inference_dense=2 * places * layers["weights"],
        inference=2 * places * layers["surviving"],
    )
    sums = counted.groupby(["seed", "round"])[
        ["weights", "surviving", "inference_dense", "inference"]
    ].sum()
    table = sums.groupby("round").mean().reset_index()
    table.insert(1, "weights_remaining", table.pop("surviving") / table.pop("weights"))
    table["training"] = 3 * images * table["inference"]
    table["training_dense"] = 3 * images * table["inference_dense"]
    before = table["training"].cumsum().shift(fill_value=0.0)  # of the rounds before
    table["finding"] = table["training_dense"]
    if prune.at_initialisation:
        table["finding"] = 0.0
    elif prune.schedule == "iterative":
        table["finding"] += before
    return table
