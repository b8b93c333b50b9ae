"""Pruning in one shot, at initialisation, globally, and without rewinding: through the pipeline."""

import numpy as np
import pandas as pd
import pytest
from clones import STAGES
from networks import logits_of, mean_loss, same

from lottery.artifacts import files
from lottery.datasets.dataset import open_dataset
from lottery.errors import LotteryError
from lottery.masks import random_mask
from lottery.params import VARIANTS, load
from lottery.streams import stream
from lottery.tickets import criteria

STEPS = {"iterations": [20, 30], "factor": 0.1}


def pruned(clone, seed, round_):
    return files.read_masked_weights(files.round_file(clone.path / files.PRUNED, seed, round_))


def dense(clone, seed, name):
    folder = files.seed_folder(clone.path / files.DENSE, seed)
    return files.read_tensors(folder / f"{name}.safetensors")[0]


def history_of(clone, folder):
    return pd.read_csv(clone.path / folder / "history.csv")


def rows_of(clone, seed, round_, variant="ticket"):
    history = history_of(clone, files.RETRAINED).set_index(["seed", "variant", "round"])
    return history.loc[(seed, variant, round_)].sort_values("iteration").reset_index()


def part_of(clone, seed, name):
    """The images and labels of a part of a seed's split."""
    dataset = open_dataset(clone.path / files.DATASET)
    split = dataset.split(load(clone.path / "params.yaml").data, seed)
    return dataset.part(getattr(split, name))


def validation_loss(clone, seed, weights):
    """The mean cross-entropy of weights on a seed's validation images."""
    images, labels = part_of(clone, seed, "validation")
    return mean_loss(logits_of(weights, images), labels)


def compute(clone, **changes):
    """Runs the pipeline, but for its report, with changed parameters, by section."""
    for section, values in changes.items():
        for name, value in values.items():
            clone.change(f"{section}.{name}", value)
    clone.stage(*STAGES[1:-1])


def test_pruning_at_initialisation_globally_trains_nothing_and_every_variant_does_after_it(
    clone, monkeypatch
):
    """Of a narrow network with dropout."""
    monkeypatch.setattr("lottery.training.learned_masks.UPDATE_EVERY", 10)  # of 40 iterations
    monkeypatch.setattr("lottery.params.checks.UNCHANGED", 13)
    drawn_from, batch = {}, criteria.batch

    def batch_of(part, classes, seed):
        drawn_from[seed] = part.images
        return batch(part, classes, seed)

    monkeypatch.setattr(criteria, "batch", batch_of)
    prune = {"criterion": "snip", "scope": "global"}
    prune["rates"] = {"conv": 0.5, "dense": 0.5, "output": 0.5}
    clone.change("seeds", [1])
    model, retrain = {"width": 0.5, "dropout": 0.2}, {"variants": list(VARIANTS), "rounds": [2]}
    compute(clone, model=model, prune=prune, retrain=retrain)
    assert history_of(clone, files.PRUNED).empty
    weights, mask, _ = pruned(clone, 1, 2)
    assert sum(mask.counts.values()) == round(sum(mask.sizes.values()) * 0.25)
    assert mask.within(pruned(clone, 1, 1)[1])
    assert np.array_equal(drawn_from[1], part_of(clone, 1, "train").images)
    assert len({round(mask.counts[n] / mask.sizes[n], 1) for n in mask.sizes}) > 1
    assert same(weights, mask.apply(dense(clone, 1, "initial")))
    assert list(mask.sizes.values()) == [64 * 150, 150 * 50, 50 * 10]
    by_run = history_of(clone, files.RETRAINED).groupby("variant")
    assert by_run["iteration"].max().to_dict() == dict.fromkeys(VARIANTS, 40)
    remaining = by_run["weights_remaining"].mean()
    assert remaining["dense_longer"] == 1
    assert 0.95 * remaining["ticket"] < remaining["small_dense"] <= remaining["ticket"]


def test_one_shot_prunes_each_round_from_the_dense_network_and_finetunes_at_the_last_learning_rate(
    clone,
):
    prune = {"schedule": "one_shot", "strategy": "finetune"}
    compute(clone, train={"learning_rate_steps": STEPS}, prune=prune)
    assert history_of(clone, files.PRUNED).empty
    trained = dense(clone, 0, "trained")
    for round_ in (1, 2):
        weights, mask, _ = pruned(clone, 0, round_)
        assert same(weights, mask.apply(trained))
        for name, keep in mask.layers.items():
            assert np.abs(trained[name][keep]).min() >= np.abs(trained[name][~keep]).max()
        losses = rows_of(clone, 0, round_)["validation_loss"]
        assert losses[0] == pytest.approx(validation_loss(clone, 0, weights), rel=1e-5)
        # at a hundredth of the learning rate Adam moves weights by a hundredth of the dense run's
        assert abs(losses.iloc[-1] - losses[0]) < 0.1
    clone.change("prune.schedule", "iterative")
    clone.stage("prune")
    rounds = history_of(clone, files.PRUNED).groupby(["seed", "round"])["validation_loss"]
    assert len(rounds) == 4
    assert np.abs(rounds.last() - rounds.first()).max() < 0.1


def test_whole_units_are_pruned_and_stay_at_0_with_their_biases(clone):
    prune = {"pattern": "unit", "rates": {"conv": 0.5, "dense": 0.5, "output": 0.0}}
    compute(clone, prune=prune, retrain={"variants": ["ticket", "random_mask"]})
    trained, before = dense(clone, 1, "trained"), None
    for round_, units in ((1, (150, 50)), (2, (75, 25))):
        weights, mask, _ = pruned(clone, 1, round_)
        assert before is None or mask.within(before)
        before = mask
        for layer, count in zip(("dense1", "dense2"), units, strict=True):
            alive = mask.layers[f"{layer}/kernel"].any(axis=0)
            assert np.count_nonzero(alive) == count == mask.layers[f"{layer}/kernel"].all(0).sum()
            assert not weights[f"{layer}/bias"][~alive].any()  # the gradient of ReLU at 0 is 0
            if round_ == 1:
                norms = np.abs(trained[f"{layer}/kernel"]).sum(axis=0)
                assert norms[alive].min() >= norms[~alive].max()
        assert mask.layers["output/kernel"].all()


def test_learning_rate_rewinding_goes_on_from_the_weights_trained_in_the_round_before(clone):
    how = {"strategy": "learning_rate_rewind", "rewind_iteration": 10, "criterion": "movement"}
    variants = ["ticket", "random_reinit", "random_mask"]
    train = {"learning_rate_steps": STEPS}
    compute(clone, train=train, prune=how, retrain={"variants": variants})
    trained, rewound = dense(clone, 1, "trained"), dense(clone, 1, "rewind")
    before, earlier = trained, None
    for round_ in (1, 2):
        weights, mask, _ = pruned(clone, 1, round_)
        for name, keep in mask.layers.items():
            moved = np.abs(before[name] - rewound[name])
            gone = ~keep if earlier is None else earlier.layers[name] & ~keep
            assert moved[keep].min() >= moved[gone].max()
        rows = rows_of(clone, 1, round_)
        assert rows["iteration"].tolist() == [10, 20, 30, 40]
        control = random_mask(mask, stream("random mask", 1, round_))
        starts = {"ticket": mask.apply(before), "random_mask": control.apply(trained)}
        for variant, start in starts.items():  # the control's: no earlier mask has zeroed any
            loss = rows_of(clone, 1, round_, variant)["validation_loss"][0]
            assert loss == pytest.approx(validation_loss(clone, 1, start), rel=1e-5)
        before, earlier = weights, mask
    assert sorted(history_of(clone, files.PRUNED)["iteration"].unique()) == [10, 20, 30, 40]


def test_a_rewind_iteration_that_early_stopping_does_not_let_a_run_reach_is_named(clone):
    clone.change("train.early_stopping", {"patience": 1, "min_delta": 100.0})
    clone.change("prune.rewind_iteration", 30)
    key = "params.yaml: prune.rewind_iteration: got 30; accepted: iterations that the dense network"
    stop = "reaches: with seed 1, train.early_stopping ends it at 10\n"
    with pytest.raises(LotteryError, match=f"{key} {stop}"):
        clone.stage("train_dense")
