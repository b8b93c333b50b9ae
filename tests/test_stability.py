"""Linear mode connectivity, against its definition."""

import re
from functools import cache

import numpy as np
import pandas as pd
import pytest
from clones import STAGES, network
from networks import logits_of

from lottery import params
from lottery.artifacts import files, tables
from lottery.datasets.dataset import open_dataset
from lottery.datasets.split import Split
from lottery.report import text
from lottery.report.outcomes import instabilities
from lottery.running.run import Experiment
from lottery.tickets import stability
from lottery.tickets.ticket import read_dense
from lottery.training import models
from lottery.training.trainer import Trainer


def lines(*accuracies, seed=0, round_=1, between="copies"):
    """The points of a line; losses 1, 2, 1, …"""
    n = len(accuracies)
    table = pd.DataFrame({"position": np.linspace(0, 1, n), "test_accuracy": accuracies})
    losses = {"train_loss": 1.0 + np.arange(n) % 2, "test_loss": 1.0}
    return table.assign(seed=seed, round=round_, between=between, weights_remaining=0.5, **losses)


@pytest.mark.parametrize(
    ("accuracies", "barrier"),
    [
        ((0.9, 0.8, 0.6, 0.7, 0.8), 0.25),  # error 0.4 at most, 0.15 at the ends
        ((0.9, 0.95, 0.9), 0.0),  # nowhere worse than the ends
        ((0.9, 0.7), 0.1),
    ],
)
def test_instability_is_the_highest_error_minus_the_mean_of_the_ends(accuracies, barrier):
    table = lines(*accuracies).sample(frac=1, random_state=0)  # in any order of the rows
    found = instabilities(table)
    assert found["instability"].tolist() == pytest.approx([barrier])
    assert found["worse_end"].tolist() == [min(accuracies[0], accuracies[-1])]
    odd = len(accuracies) % 2  # losses 1, 2, 1, …: the ends are 1 and 1, or 1 and 2
    assert found["barrier"].tolist() == pytest.approx([1 if odd else 0.5])


@pytest.mark.parametrize("missing", [[1], [0, 1], [0, 1, 2]])
def test_a_loss_that_is_not_finite_is_a_barrier(missing):
    table = lines(0.9, 0.9, 0.9)
    table.loc[missing, "train_loss"] = np.nan
    assert instabilities(table)["barrier"].tolist() == [np.inf]


def test_lines_of_several_networks_are_told_apart():
    several = lines(0.9, 0.5, 0.9), lines(0.8, 0.7, 0.8, seed=1), lines(0.6, 0.6, 0.6, round_=0)
    table = pd.concat(several)
    found = instabilities(table).set_index(["seed", "round"])["instability"]
    assert found.to_dict() == pytest.approx({(0, 0): 0, (0, 1): 0.4, (1, 1): 0.1})


def test_networks_that_know_nothing_are_not_stable_and_a_round_is_one_row_whatever_its_masks():
    dead = pd.concat([lines(0.1, 0.1, 0.1, seed=seed) for seed in (0, 1)])
    alive = [lines(0.9, 0.9, 0.9, seed=seed, round_=2) for seed in (0, 1)]
    alive[1]["weights_remaining"] = 0.52
    facts = {"class_counts": [100] * 10, "test": 100}
    dips = [lines(0.9, 0.9 - dip, 0.9, seed=s, round_=3) for s, dip in ((0, 0.015), (1, 0.025))]
    rows = text._stability(pd.concat([dead, *alive, *dips]), facts).splitlines()[2:]
    found = [[cell.strip() for cell in row.split("|")[2:6]] for row in rows]
    zero = "0.00 [0.00, 0.00]"
    assert found[:2] == [["1", "50.00%", zero, "0 of 2"], ["2", "51.00%", zero, "2 of 2"]]
    assert found[2:] == [["3", "50.00%", "2.00 [1.50, 2.50]", "1 of 2"]]


def test_the_pipeline_evaluates_the_line_between_two_copies_that_nothing_stops_early(clone, capsys):
    clone.change("retrain.analysis", "linear_mode_connectivity")
    clone.change("retrain.rounds", [2])
    clone.change("train.learning_rate", 0.01)  # so that copies part
    clone.change("train.early_stopping", {"patience": 2, "min_delta": 100.0})  # at iteration 20
    clone.change("report.iteration_margin", 0.9)
    clone.stage(*STAGES[1:])
    out = capsys.readouterr().out
    said = re.findall(r"(ticket|copy)(?:, round 2)?: (\d+) iterations", out)
    assert sorted(said) == [("copy", "40")] * 8 + [("ticket", "20")] * 2
    table = pd.read_csv(clone.path / files.RETRAINED / "stability.csv")
    assert tuple(table.columns) == stability.COLUMNS
    sizes = table.groupby(["seed", "round"]).size().to_dict()
    assert sizes == {(s, r): 30 for s in (0, 1) for r in (0, 2)}
    line = table[(table["seed"] == 0) & (table["round"] == 2)]
    assert line["position"].tolist() == pytest.approx(np.linspace(0, 1, 30), abs=1e-6)
    assert line["test_loss"].iloc[0] != line["test_loss"].iloc[-1]
    report = (clone.path / "reports/report.md").read_text()
    section = report.partition("## Linear mode connectivity")[2].partition("##")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in section.splitlines()]
    found = instabilities(table)
    for round_, remaining in ((0, 1.0), (2, line["weights_remaining"].iloc[0])):
        values = 100 * found.loc[found["round"] == round_, "instability"]
        stable = f"{(values < 2).sum()} of 2"
        spread = f"{values.mean():.2f} [{values.min():.2f}, {values.max():.2f}]"
        expected = ["its copy", str(round_), f"{remaining:.2%}", spread, stable]
        assert expected in [row[:5] for row in rows]


def test_lines_along_pruning_join_the_solutions_of_rounds_and_the_dense_network(
    finished_clone, monkeypatch
):
    monkeypatch.chdir(finished_clone.path)
    loaded = params.load()
    rounds = loaded.prune.rounds
    monkeypatch.setattr(stability, "POINTS", 2)  # the ends
    lines, records = stability.along_pruning(Experiment(loaded, ""), 0, lambda *_: None)
    assert not records
    assert [line[:3] for line in lines] == [
        *((0, number, "round before") for number in range(1, rounds + 1)),
        *((0, number, "dense") for number in loaded.retrain_rounds()),
    ]
    folders = (files.DENSE, files.PRUNED)
    history = pd.concat([tables.read(folder / "history.csv") for folder in folders])
    last = history[history["seed"] == 0].groupby("round")["test_accuracy"].last()
    for line in lines:
        masks = files.read_mask(files.round_file(files.MASKS, 0, line.round))[0]
        assert line.weights_remaining == masks.weights_remaining  # where it ends
        begin = line.round - 1 if line.between == "round before" else 0
        for point, number in zip(line.points, (begin, line.round), strict=True):
            assert point["test_accuracy"] == pytest.approx(last[number], abs=1e-6)


@pytest.fixture
def interpolate(finished_clone, monkeypatch):
    """Gives the points on the line between two networks, in the finished clone."""
    monkeypatch.chdir(finished_clone.path)
    loaded, dataset = params.load(), open_dataset()
    split = dataset.split(loaded.data, 0)

    @cache
    def trainer(model):
        return Trainer(model, loaded.train, dataset)

    def between(one, other, model=loaded.model):
        return stability.interpolate(trainer(model), split, one, other)

    between.parts = {"train": dataset.part(split.train), "test": dataset.part(split.test)}
    return between


def test_a_line_ends_in_its_copies_and_passes_through_their_mean(interpolate):
    one, other = (read_dense(seed).trained for seed in (0, 1))
    points = interpolate(one, other)
    assert len(points) == 30
    for index in (0, 13, 29):
        share = index / 29
        assert points[index]["position"] == pytest.approx(share)
        mixed = {name: (1 - share) * one[name] + share * other[name] for name in one}
        for name, (images, labels) in interpolate.parts.items():
            right = np.mean(logits_of(mixed, images).argmax(axis=1) == labels)
            assert points[index][f"{name}_accuracy"] == pytest.approx(right, abs=1 / len(labels))


def test_between_copies_batch_normalisation_has_the_statistics_of_neither(interpolate, monkeypatch):
    monkeypatch.setattr(stability, "POINTS", 3)
    resnet = network("networks:residual", (8, 8, 1), initializer="he_normal")
    one, other = (models.initialise(resnet, "test", seed)[0] for seed in (0, 1))
    spoilt = {n: v + 5 if "moving" in n else v for n, v in other.items()}
    points = (interpolate(one, end, resnet.model) for end in (other, spoilt))
    for point, again in zip(*points, strict=True):
        assert point == pytest.approx(again, rel=1e-4)
        assert point["train_loss"] < 10  # with the statistics it was made with: hundreds


def test_statistics_between_networks_are_those_of_training_images():
    seen = []

    class Seeing:
        def with_statistics_of(self, rows, weights):
            seen.append(rows)
            return weights

        def evaluate(self, rows, weights):
            return float(rows[0]), float(len(rows))

    split, one = Split(*map(np.array, ([1, 2, 3], [4], [5, 6]))), {"a": np.zeros(1, np.float32)}
    points = stability.interpolate(Seeing(), split, one, one)
    assert len(seen) == 30
    assert all(rows is split.train for rows in seen)
    position, *measured = points[7].values()
    assert position == pytest.approx(7 / 29)
    assert measured == [1, 3, 5, 2]
