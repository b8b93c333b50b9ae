"""What a ticket costs: floating-point operations of inference, of finding it and of training it."""

import pandas as pd

from lottery.params import Params
from lottery.report.outcomes import KEYS

TRAINING = 3  # times inference: the backward pass costs two (Kaplan et al. 2020, section 2.1)


def flops(
    density: pd.DataFrame, layers: pd.DataFrame, history: pd.DataFrame, params: Params
) -> pd.DataFrame:
    """``variant, round, inference_flops, finding_flops, training_flops``, means over seeds.

    Of the dense network, and of each round's ticket. A weight that survives costs two operations, a
    multiplication and an addition, at each position of its layer's output; one that is 0 costs
    none, as if hardware skipped it. Biases, normalisation, evaluations and criteria's scores are
    not counted. ``inference`` is of one image, ``training`` of the whole run, as long as it was.
    ``finding`` is all training until the round's mask was known: the dense network's and that of
    the rounds before; at initialisation, that up to the rewind iteration. It is missing of masks
    from elsewhere that come without the histories of all rounds before.

    Args:
        density: ``data/masks/density.csv``.
        layers: ``data/dense/layers.csv``.
        history: of the dense network, of pruning and of the tickets.
    """
    tickets = density.merge(layers, on="layer")
    dense = tickets.drop_duplicates(["seed", "layer"])
    counted = pd.concat([dense.assign(round=0, surviving=dense["weights"]), tickets])
    operations = 2 * counted["positions"] * counted["surviving"]
    inference = operations.groupby([counted["seed"], counted["round"]]).sum()
    rounds = range(params.prune.rounds + 1)
    every = pd.MultiIndex.from_product([params.seeds, rounds], names=["seed", "round"])
    step = TRAINING * params.train.batch_size * inference.reindex(every)

    length = history.groupby(KEYS)["iteration"].agg(lambda i: i.max() - i.min())
    runs = length.unstack("variant").reindex(every, columns=["dense", "pruning", "ticket"])
    searched = runs["dense"].fillna(runs["pruning"])
    if not params.prune.trains:
        searched = searched.fillna(0)
    if params.prune.at_initialisation:
        searched = runs["dense"].notna() * params.prune.rewind_iteration
    before = (step * searched).groupby("seed").shift(fill_value=0)
    costs = {
        "inference_flops": inference,
        "finding_flops": before.groupby("seed").cumsum(skipna=False),
        "training_flops": step * runs["dense"].fillna(runs["ticket"]),
    }
    if params.retrain.masks:  # where it tells of no round, the dense network found no mask
        known = runs["pruning"].notna().groupby("seed").transform("any")
        first = before.index.get_level_values("round") == 0
        costs["finding_flops"] = costs["finding_flops"].where(known | first)
    # unknown of one seed is unknown: no mean over some, beside means over all
    means = pd.DataFrame(costs).groupby("round").mean(skipna=False).reset_index()
    means.insert(0, "variant", ["ticket" if number else "dense" for number in means["round"]])
    return means
