"""Pruning in one shot, at initialisation, globally, and without rewinding: through the pipeline."""

import numpy as np
import pandas as pd
import pytest
from clones import network

from lottery.artifacts import files
from lottery.datasets.dataset import open_dataset
from lottery.masks import random_mask
from lottery.params import VARIANTS, load
from lottery.streams import stream
from lottery.training import models

STEPS = {"iterations": [20, 30], "factor": 0.1}


def pruned(clone, seed, round_):
    return files.read_masked_weights(files.round_file(clone.path / files.PRUNED, seed, round_))


def dense(clone, seed, name):
    return files.read_tensors(
        files.seed_folder(clone.path / files.DENSE, seed) / f"{name}.safetensors"
    )[0]


def rows_of(clone, seed, round_, variant="ticket"):
    history = pd.read_csv(clone.path / files.RETRAINED / "history.csv")
    rows = history[
        (history["seed"] == seed) & (history["variant"] == variant) & (history["round"] == round_)
    ]
    return rows.sort_values("iteration").reset_index()


def validation_loss(clone, seed, weights):
    """The mean cross-entropy of weights on a seed's validation images."""
    dataset = open_dataset(clone.path / files.DATASET)
    rows = dataset.split(load(clone.path / "params.yaml").data, seed).validation
    model = models.build(network("lenet_300_100", dataset.image_shape))
    models.assign(model, weights)
    logits = model(dataset.images[rows].astype(np.float32) / 255).numpy().astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    truth = logits[np.arange(len(logits)), dataset.labels[rows]]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - truth))


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_pruning_at_initialisation_globally_trains_nothing_between_rounds(clone):
    clone.change("prune.criterion", "snip")
    clone.change("prune.scope", "global")
    clone.change("prune.rates", {"conv": 0.5, "dense": 0.5, "output": 0.5})
    clone.change("retrain.variants", list(VARIANTS))
    assert clone.repro() == ["prune", "extract_masks", "retrain", "report"]
    assert pd.read_csv(clone.path / files.PRUNED / "history.csv").empty
    for seed in (0, 1):
        weights, mask, _ = pruned(clone, seed, 2)
        size = sum(mask.sizes.values())
        assert sum(mask.counts.values()) == round(size * 0.25)
        assert mask.within(pruned(clone, seed, 1)[1])
        assert len({round(mask.counts[n] / mask.sizes[n], 1) for n in mask.sizes}) > 1
        assert same(weights, mask.apply(dense(clone, seed, "initial")))
    history = pd.read_csv(clone.path / files.RETRAINED / "history.csv")
    assert set(history["variant"]) == set(VARIANTS)
    report = (clone.path / "reports/report.md").read_text()
    assert (
        "2 rounds of iterative global pruning by snip; tickets keep their initial weights."
        in report
    )
    table = report.partition("## Results")[2].partition("##")[0]
    rows = [line.split("|")[1].split()[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows == ["variant", "dense", *(variant for variant in list(VARIANTS) for _ in (1, 2))]


def test_one_shot_prunes_each_round_from_the_dense_network_and_finetunes_at_the_last_learning_rate(
    clone,
):
    clone.change("train.learning_rate_steps", STEPS)
    clone.change("prune.schedule", "one_shot")
    clone.change("prune.strategy", "finetune")
    clone.change("retrain.variants", ["ticket", "random_reinit"])
    assert clone.repro() == ["train_dense", "prune", "extract_masks", "retrain", "report"]
    assert pd.read_csv(clone.path / files.PRUNED / "history.csv").empty
    trained = dense(clone, 0, "trained")
    for round_ in (1, 2):
        weights, mask, _ = pruned(clone, 0, round_)
        assert same(weights, mask.apply(trained))
        for name, keep in mask.layers.items():
            assert np.abs(trained[name][keep]).min() >= np.abs(trained[name][~keep]).max()
        rows = rows_of(clone, 0, round_)
        assert rows["validation_loss"][0] == pytest.approx(
            validation_loss(clone, 0, mask.apply(trained)), rel=1e-5
        )
        # at a hundredth of the learning rate Adam moves each weight by a hundredth of what it did in the dense network
        assert abs(rows["validation_loss"].iloc[-1] - rows["validation_loss"][0]) < 0.1
    report = (clone.path / "reports/report.md").read_text()
    assert (
        "one-shot layerwise pruning by magnitude; tickets keep their trained weights, trained on at the last"
        in report
    )


def test_learning_rate_rewinding_goes_on_from_the_weights_trained_in_the_round_before(clone):
    clone.change("train.learning_rate_steps", STEPS)
    clone.change("prune.strategy", "learning_rate_rewind")
    clone.change("prune.rewind_iteration", 10)
    clone.change("prune.criterion", "movement")
    clone.change("retrain.variants", ["ticket", "random_reinit", "random_mask"])
    assert clone.repro() == ["train_dense", "prune", "extract_masks", "retrain", "report"]
    trained, rewound = dense(clone, 1, "trained"), dense(clone, 1, "rewind")
    for round_ in (1, 2):
        _, mask, _ = pruned(clone, 1, round_)
        before = trained if round_ == 1 else pruned(clone, 1, 1)[0]
        for name, keep in mask.layers.items():
            moved = np.abs(before[name] - rewound[name])
            survived = (
                np.ones(keep.shape, bool) if round_ == 1 else pruned(clone, 1, 1)[1].layers[name]
            )
            assert moved[keep].min() >= moved[survived & ~keep].max()
        rows = rows_of(clone, 1, round_)
        assert rows["iteration"].tolist() == [10, 20, 30, 40]
        assert rows["validation_loss"][0] == pytest.approx(
            validation_loss(clone, 1, mask.apply(before)), rel=1e-5
        )
        control = random_mask(
            mask, stream("random mask", 1, round_)
        )  # of no earlier mask's weights
        assert rows_of(clone, 1, round_, "random_mask")["validation_loss"][0] == pytest.approx(
            validation_loss(clone, 1, control.apply(trained)), rel=1e-5
        )
    history = pd.read_csv(clone.path / files.PRUNED / "history.csv")
    assert sorted(history["iteration"].unique()) == [10, 20, 30, 40]


def test_a_rewind_iteration_that_early_stopping_does_not_let_a_run_reach_is_named(clone):
    clone.change("train.early_stopping", {"patience": 1, "min_delta": 100.0})
    clone.change("prune.rewind_iteration", 30)
    done = clone.run("python", "-m", "stages.train_dense", check=False)
    assert done.returncode == 1
    said = "with seed 1, train.early_stopping ends it at 10\n"
    assert (
        "params.yaml: prune.rewind_iteration: got 30; accepted: iterations that the dense network reaches: "
        + said
        in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_narrow_network_with_dropout_is_pruned_and_compared_with_a_small_and_a_longer_trained_dense_one(
    clone,
):
    clone.change("model.width", 0.5)
    clone.change("model.dropout", 0.2)
    clone.change("retrain.variants", ["ticket", "small_dense", "dense_longer"])
    assert clone.repro() == ["train_dense", "prune", "extract_masks", "retrain", "report"]
    sizes = pruned(clone, 0, 1)[1].sizes
    assert list(sizes.values()) == [64 * 150, 150 * 50, 50 * 10]
    history = pd.read_csv(clone.path / files.RETRAINED / "history.csv")
    by_run = history.groupby(["variant", "round"])
    assert by_run["iteration"].max().to_dict() == {
        ("ticket", 1): 40,
        ("ticket", 2): 40,
        ("small_dense", 1): 40,
        ("small_dense", 2): 40,
        ("dense_longer", 1): 80,  # the dense run and the ticket's
        ("dense_longer", 2): 120,  # and that of round 1
    }
    remaining = by_run["weights_remaining"].mean()
    assert (remaining["dense_longer"] == 1).all()
    assert (0.95 * remaining["ticket"] < remaining["small_dense"]).all()
    assert (remaining["small_dense"] <= remaining["ticket"]).all()
    report = (clone.path / "reports/report.md").read_text()
    assert "batches of 50, 40 iterations, 0.5 times the width, dropout 0.2; 2 rounds" in report
